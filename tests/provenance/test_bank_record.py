"""A bank's record of what was signed: no line of it can be taken out, moved or added without `verify` naming the
place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from keys import Consortium

from fedfinlora.provenance.bank_record import Asked, append, check_links
from fedfinlora.provenance.lines import FIRST
from fedfinlora.provenance.signatures import LINE, Signer, canonical, digest, load_signer

COUNT = 6


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    made = Consortium(tmp_path_factory.mktemp("keys"))
    made.enrolls(("bank-1", "bank-2"))
    return made


@pytest.fixture
def signer(consortium: Consortium) -> Signer:
    return load_signer(consortium.key_of("bank-1"))


@pytest.fixture
def public(consortium: Consortium) -> str:
    return consortium.key_of("bank-1").with_name("node.key.pub").read_text()


def record(file: Path, signer: Signer, count: int = COUNT) -> list[bytes]:
    for number in range(count):
        append(file, Asked({"round": number}, "", ""), signer)
    return file.read_bytes().split(b"\n")[:-1]


def test_a_record_as_it_was_made_hangs_together(tmp_path: Path, signer: Signer, public: str) -> None:
    lines = record(tmp_path / "signed" / "bank-1.jsonl", signer)
    assert check_links(lines, public) == []
    assert json.loads(lines[0])["previous"] == FIRST
    assert (tmp_path / "signed" / "bank-1.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: lines[:2] + lines[3:], 3),
        (lambda lines: lines[1:], 1),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 3),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
        (lambda lines: [*lines[:2], lines[2].replace(b'"round":2', b'"round":9'), *lines[3:]], 3),
        (lambda lines: [lines[0].replace(b'"round":0', b'"round":9'), *lines[1:]], 1),
        (lambda lines: [*lines[:2], b"{", *lines[3:]], 3),
        (lambda lines: [*lines[:2], b"[]", *lines[3:]], 3),
    ],
    ids=[
        "one out of the middle",
        "the first",
        "two in another order",
        "one twice",
        "changed",
        "the first changed",
        "cut",
        "no object",
    ],
)
def test_a_line_that_is_missing_added_or_changed_is_named(
    tmp_path: Path, signer: Signer, public: str, change: Callable[[list[bytes]], list[bytes]], named: int
) -> None:
    lines = record(tmp_path / "bank-1.jsonl", signer)
    wrong = check_links(change(lines), public)
    assert wrong[0][0] == named
    assert all("\n" not in what for _, what in wrong)


def test_chaining_the_rest_again_needs_the_banks_key(
    tmp_path: Path, consortium: Consortium, signer: Signer, public: str
) -> None:
    lines = record(tmp_path / "bank-1.jsonl", signer)
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"\n".join(lines[:2]) + b"\n")
    stranger = load_signer(consortium.key_of("bank-2"))
    for line in lines[3:]:
        append(other, Asked(json.loads(line)["asked"], "", ""), stranger)
    assert [number for number, what in check_links(other.read_bytes().split(b"\n")[:-1], public)] == [3, 4, 5]


def test_lines_without_a_chain_are_wrong(tmp_path: Path, signer: Signer, public: str) -> None:
    """Else whoever takes link and seal off all lines could take out any of them."""
    lines = record(tmp_path / "bank-1.jsonl", signer)
    bare = [
        canonical({name: value for name, value in json.loads(line).items() if name not in ("previous", "seal")})
        for line in lines
    ]
    assert check_links(bare[1:], public)[0][1].startswith(f"the first {len(lines) - 1} lines are not chained")
    assert check_links([*bare[:2], *lines[2:]], public)
    assert check_links([*lines, canonical({"asked": {}})], public), "a bare line after a chained one"


def test_a_seal_is_needed_where_there_is_a_chain(tmp_path: Path, signer: Signer, public: str) -> None:
    line = canonical({"asked": {}, "previous": FIRST})
    assert check_links([line], public)[0][1].startswith("its seal is wrong")
    sealed = canonical(
        {"asked": {}, "previous": FIRST, "seal": signer.sign(LINE, digest({"asked": {}, "previous": FIRST}))}
    )
    assert check_links([sealed], public) == []


@pytest.mark.parametrize("cut", [b'{"asked": {"rou', b'{"asked": {}}', b"\x00\x00"])
def test_a_line_that_a_crash_cut_off_is_taken_away(tmp_path: Path, signer: Signer, public: str, cut: bytes) -> None:
    file = tmp_path / "bank-1.jsonl"
    record(file, signer, 2)
    with open(file, "ab") as stream:
        stream.write(cut)
    lines = record(file, signer, 1)
    assert len(lines) == 3
    assert check_links(lines, public) == []
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes(cut)
    assert check_links(record(alone, signer, 1), public) == []


def test_several_writers_make_one_chain(tmp_path: Path, consortium: Consortium, signer: Signer, public: str) -> None:
    """Threads of this process and another process, as Flower starts one for each message."""
    file = tmp_path / "bank-1.jsonl"
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedfinlora.provenance.bank_record import Asked, append\n"
        "from fedfinlora.provenance.signatures import load_signer\nsigner = load_signer(Path(sys.argv[2]))\n"
        "for number in range(20):\n    append(Path(sys.argv[1]), Asked({'round': number}, '', ''), signer)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(file), str(consortium.key_of("bank-1"))])
    threads = [threading.Thread(target=record, args=(file, signer, 10)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    lines = file.read_bytes().split(b"\n")[:-1]
    assert len(lines) == 50
    assert check_links(lines, public) == []
