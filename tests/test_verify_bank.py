"""`verify` of a bank's home: its record is compared with its history and its ledger, and no file more is passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_server import ANSWER, Bank, code_of, write_bank
from keys import Consortium

from client_app.signed import signed_file
from fedfinlora.commands.verify import verify
from fedfinlora.deployment.history import history_file
from fedfinlora.privacy.ledger_files import HEAD, LINES
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.wire import pack_requests

NAME = "north"
PRIVATE = ("privacy=example", "privacy.epsilon=8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(home of a bank, ca.crt): it has trained two private rounds and refused a plain one, through the real ClientApp."""
    folder = tmp_path_factory.mktemp("made")
    home = folder / "home"
    home.mkdir()
    consortium = Consortium(folder)
    consortium.enrolls((NAME,))
    bank = Bank(write_bank(folder).rename(home / "bank.yaml"), home)  # the rows are elsewhere
    bank.node_config |= {"node-key": str(consortium.key_of(NAME)), "authority": str(consortium.ca)}
    codes = []
    for number, words in ((1, PRIVATE), (2, PRIVATE), (3, ())):
        asks = bank.request(*words, round_number=number)
        evidence = RoundEvidence(ServerKeys(consortium.signer, None), asks.run, number, "0" * 64, "c" * 64)
        requests = pack_requests(asks, [NAME])
        evidence.ask(requests)
        codes.append(code_of(bank.answers(requests[NAME])))
    assert codes == [ANSWER, ANSWER, "policy-generation"]
    for name in ("node.key", "node.key.pub"):
        (home / name).write_bytes(consortium.key_of(NAME).with_name(name).read_bytes())
    return home, consortium.ca


@pytest.fixture
def home(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made[0], tmp_path / "home"))


@pytest.fixture
def ca(made: tuple[Path, Path]) -> Path:
    return made[1]


def record_of(home: Path) -> Path:
    return home / "state" / "signed" / f"{NAME}.jsonl"


def cut(file: Path, lines: int) -> None:
    """Remove the last lines."""
    content = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(content[: len(content) - lines]))


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_home_as_it_was_made_is_proven(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(home, ca) == 0
    said = capsys.readouterr().out
    assert "3 requests signed by the coordinator, 3 answers signed by north" in said
    assert "2 lines, the last is the head's" in said


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty record": (lambda home: record_of(home).write_bytes(b""), "the record does not have the request"),
    "no record": (lambda home: shutil.rmtree(record_of(home).parent), "the record does not have the request"),
    "a record without its last answer that was sent": (lambda home: cut(record_of(home), 3), "the record was cut off at its end"),
    "a record without its last request": (lambda home: cut(record_of(home), 2), "the record does not have the request"),
    "a record without its last rounds": (lambda home: cut(record_of(home), 4), "round 2 of run"),
    "no history": (lambda home: history_file(home / "state", NAME).unlink(), "lines of the history are missing or changed"),
    "a history without its last round that was sent": (
        lambda home: cut(history_file(home / "state", NAME), 2), "lines of the history are missing or changed",
    ),
    "a history of another ledger": (
        lambda home: changed(history_file(home / "state", NAME), '"outcome": "sent"', '"outcome": "gone"'),
        "lines of the history are missing or changed",
    ),
    "a history that is cut": (
        lambda home: history_file(home / "state", NAME).write_bytes(history_file(home / "state", NAME).read_bytes()[:-9]),
        "its last line is cut off",
    ),
    "a ledger without its last line": (lambda home: cut(home / "ledger" / LINES, 1), "it names no line of the ledger"),
    "a ledger that was rolled back, with its head": (
        lambda home: (cut(home / "ledger" / LINES, 1), first_head(home)), "which it does not have: it was cut or rolled back",
    ),
    "no ledger": (lambda home: shutil.rmtree(home / "ledger"), "ledger.jsonl: cannot be read"),
    "a ledger with another figure": (lambda home: changed(home / "ledger" / LINES, '"steps": ', '"steps": 1'), "it is damaged"),
    "a file next to the record": (lambda home: (record_of(home).parent / "more.py").write_text(""), "it is no part of a bank's record"),
    "another configuration": (
        lambda home: next(record_of(home).parent.glob("*.json")).write_text("{}"), "it is not the file that its name says",
    ),
    "a configuration under a name that is no hash": (
        lambda home: (record_of(home).parent / "x.json").write_text("{}"), "it is no part of a bank's record",
    ),
    "a line of no kind": (lambda home: record_of(home).open("a").write('{"more": 1}\n'), "it is neither a request nor an answer"),
    "a link among the history": (
        lambda home: (home / "state" / "history" / "more").symlink_to("/etc"), "it is a symbolic link",
    ),
}  # fmt: skip


def first_head(home: Path) -> None:
    line = json.loads((home / "ledger" / LINES).read_text().splitlines()[-1])
    (home / "ledger" / HEAD).write_text(json.dumps({"number": 1, "hash": line["hash"]}))


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(home: Path, ca: Path, lie: str, capsys: pytest.CaptureFixture[str]) -> None:
    tell, named = LIES[lie]
    tell(home)
    assert verify(home, ca) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG  ")]
    assert any(named in line for line in said), said


UNPROVEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file in the home": (lambda home: (home / "more.py").write_text(""), "no bank makes these files"),
    "a file in the state": (lambda home: (home / "state" / "more").write_text(""), "no bank makes these files"),
    "a file next to the history": (lambda home: (home / "state" / "history" / "x").write_text(""), "no bank makes these files"),
    "a record under another name": (
        lambda home: shutil.copy(record_of(home), record_of(home).with_name("south.jsonl")), "it is a record under another name",
    ),
    "nothing at all": (
        lambda home: (shutil.rmtree(home / "state"), shutil.rmtree(home / "ledger")), "the bank was never asked, or both were removed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNPROVEN)
def test_what_cannot_be_proven_is_named(home: Path, ca: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, named = UNPROVEN[what]
    make(home)
    assert verify(home, ca) == 3
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOT PROVEN  ")]
    assert any(named in line for line in said), said


def test_a_history_that_is_older_than_the_record_is_not_proven(
    home: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a bank that has archived its record, or had none."""
    file = history_file(home / "state", NAME)
    first = json.loads(file.read_text().splitlines()[0])
    older = {**first, "time": "2020-01-01T00:00:00+0000", "run": "older", "outcome": "begun"}
    file.write_text(json.dumps(older) + "\n" + file.read_text())
    assert verify(home, ca) == 3
    assert "1 of its lines are older than the record" in capsys.readouterr().out


def test_an_answer_that_the_bank_was_killed_before_is_no_lie(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was booked and is in the history; later answers show that nothing was cut off after it."""
    file = history_file(home / "state", NAME)
    lines = file.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if '"outcome": "sent"' in line)
    sent = json.loads(lines[place])
    file.write_text("\n".join([*lines[:place], json.dumps({**sent, "policy_sha256": "f" * 64}), *lines[place:]]) + "\n")
    assert verify(home, ca) == 0
    assert "so the bank was killed in that moment" in capsys.readouterr().out


def test_signed_file_is_where_verify_looks(home: Path) -> None:
    bank = Bank(home / "bank.yaml", home)
    assert signed_file(bank.facts) == record_of(home)
