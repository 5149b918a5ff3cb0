"""`verify`: what it proves of a run, and that one changed, cut or missing file is named, by it, by `report` and by
`resume`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_grid import only
from flwr.app import Message
from keys import Consortium
from liar import write_chain
from round_runs import Runs, raising
from tiny_runs import SCORED, result_of, rounds_of, write_rows

import server_app.federated
from fedfinlora.commands.report import report
from fedfinlora.commands.verify import verify
from fedfinlora.deployment.certificates import make_authority
from fedfinlora.errors import UserError
from fedfinlora.files import write_json
from fedfinlora.model.adapter_folder import PROVENANCE_FILE
from fedfinlora.provenance.bom import BOM_FILE, bom_of
from fedfinlora.provenance.chain import Chain, is_covered
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.provenance.folder import sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, End
from fedfinlora.provenance.lines import read_values as read_line
from fedfinlora.provenance.signatures import REQUEST
from fedfinlora.wire.messages import pack_error

NOT_OF_THE_RUN = ("progress.jsonl", "report.html", "audit.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium, Runs]:
    """A signed run of two rounds with scores and deltas; bank-1 refuses in round 2."""
    folder = tmp_path_factory.mktemp("made")
    runs = Runs(write_rows(folder / "rows"), folder)
    runs.consortium = Consortium(folder / "keys")

    def refuses(message: Message, reply: Message) -> Message:
        return Message(pack_error("bank-1", "data"), reply_to=message) if message.metadata.group_id == "2" else reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        runs.consortium.serves(patch)
        run = runs.start(
            "run", *SCORED, "strategy.keep_deltas=true", "evaluation.validation_rows=2", tamper=only("bank-1", refuses)
        )
    return run, runs.consortium, runs


@pytest.fixture
def run(made: tuple[Path, Consortium, Runs], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def ca(made: tuple[Path, Consortium, Runs]) -> Path:
    return made[1].ca


def files_in(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


def test_a_run_is_verified_from_its_folder_alone(
    made: tuple[Path, Consortium, Runs], run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder lies elsewhere than where it was made, and nothing but ca.crt comes with it. An unsigned refusal
    proves nothing and is not counted.
    """
    assert verify(run, ca, enrolled=made[1].home / "enrolled") == 0
    reported = capsys.readouterr().out
    assert "every line signed by the coordinator, whose certificate is the authority's" in reported
    assert (
        "round 1: 2 banks asked, 2 requests and 2 replies signed, aggregate and step computed again from 2 deltas"
        in reported
    )
    assert (
        "round 2: 2 banks asked, 2 requests and 1 reply signed, aggregate and step computed again from 1 delta"
        in reported
    )
    assert "adapters: 2 of 2" in reported
    assert "adapters/final: signed by CN=fedfinlora coordinator" in reported
    assert reported.endswith("\nok\n")


def test_it_does_not_grow_beyond_what_the_docs_say(run: Path) -> None:
    lines = (run / CHAIN_FILE).read_bytes().splitlines(keepends=True)
    banks = len(rounds_of(run)[0]["banks"])
    assert [read_line(line.rstrip())["kind"] for line in lines] == [
        "begin",
        "saved",
        "round",
        "saved",
        "round",
        "saved",
        "end",
    ]
    assert len(lines[2]) < 2000 + 1300 * banks
    assert len(lines[3]) < 2500


def test_one_flipped_bit_anywhere_is_found_and_named(run: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In every file that is the run's, at its begin, its end and three places drawn between."""
    draw = random.Random(0)
    covered = [name for name in files_in(run) if is_covered(name) or name == CHAIN_FILE]
    assert {
        "config.yaml",
        "rounds.jsonl",
        "manifest.json",
        "result.json",
        "state/run.json",
        CHAIN_FILE,
        "deltas/start.f32",
    } <= set(covered)
    assert any(name.startswith("eval/") for name in covered)
    missed = []
    for name in covered:
        file = run / name
        content = file.read_bytes()
        for place in {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(3))}:
            changed = bytearray(content)
            changed[place] ^= 1 << draw.randrange(8)
            file.write_bytes(bytes(changed))
            status = verify(run, ca)
            if status != 1 or str(file) not in capsys.readouterr().out:
                missed.append((name, place))
        file.write_bytes(content)
    assert missed == []
    assert verify(run, ca) == 0


def test_a_file_more_does_not_decide_what_is_looked_at(run: Path, ca: Path) -> None:
    """With a bank's settings in it a folder would be taken for a bank's, whose record is empty."""
    for folder in (run, run / "adapters" / "final"):
        (folder / "bank.yaml").write_text("name: x\ndata: /x\n")
        with pytest.raises(UserError, match="or of two of them"):
            verify(folder, ca)
        (folder / "bank.yaml").unlink()
    assert verify(run, ca) == 0


def _hole(file: Path) -> None:
    """Eight terabytes that take no place on the disk."""
    with open(file, "ab") as stream:
        stream.truncate(2**43)


def _nested(folder: Path) -> None:
    for _ in range(80):
        folder = folder / "x"
    folder.mkdir(parents=True)


ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
HOSTILE: dict[str, Callable[[Path], Any]] = {
    "a folder whose number is no digit": lambda run: (run / "adapters" / "round_\u00b2").mkdir(),
    "a round that is a text": lambda run: (run / "rounds.jsonl").write_text('{"round": "1", "banks": []}\n'),
    "brackets without end": lambda run: (run / "rounds.jsonl").write_text("[" * 100_000 + "\n"),
    "a configuration of brackets": lambda run: (run / "config.yaml").write_text("[" * 100_000),
    "a configuration of a billion aliases": lambda run: (run / "config.yaml").write_text(ALIASES),
    "a seed of 5,000 digits": lambda run: (run / "config.yaml").write_text(f"seed: {'9' * 5000}\n"),
    "a hole of terabytes more": lambda run: _hole(run / "more"),
    "a hole in the chain": lambda run: _hole(run / CHAIN_FILE),
    "a hole in the rounds": lambda run: _hole(run / "rounds.jsonl"),
    "folders in folders": lambda run: _nested(run / "adapters"),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_what_would_break_a_reader_is_named(
    run: Path, ca: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """No traceback and no wait."""
    HOSTILE[damage](run)
    assert verify(run, ca) == 1
    assert "WRONG  " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", '"x"'])
def test_a_manifest_of_another_kind_is_named(
    run: Path, ca: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (run / "manifest.json").write_text(text)
    assert verify(run, ca) == 1
    said = capsys.readouterr().out
    assert "manifest.json is damaged: it holds no JSON object." in said
    assert "Error)" not in said


def test_a_run_that_has_ended_has_its_last_line(run: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / CHAIN_FILE).read_bytes().splitlines(keepends=True)
    (run / CHAIN_FILE).write_bytes(b"".join(lines[:-1]))
    assert verify(run, ca) == 1
    assert "its last line is missing: adapters/final says that the run has ended" in capsys.readouterr().out
    # Broken off by Ctrl-C: the command that followed the run has written how it ended.
    shutil.rmtree(run / "adapters" / "final")
    result = result_of(run)
    (run / "result.json").write_text(json.dumps({**result, "status": "stopped"}), "utf-8")
    capsys.readouterr()
    assert verify(run, ca) == 3
    assert "nothing shows whether later lines were cut off" in capsys.readouterr().out
    (run / "result.json").write_text(json.dumps(result), "utf-8")
    assert verify(run, ca) == 1
    assert "its last line is missing: result.json says that the run has ended" in capsys.readouterr().out


def test_a_bank_that_the_reader_does_not_know_is_named(
    made: tuple[Path, Consortium, Runs], run: Path, ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known"
    shutil.copytree(made[1].home / "enrolled", known)
    next(iter(sorted(known.glob("*.pub")))).unlink()
    assert verify(run, ca, enrolled=known) == 1
    assert "--enrolled has no key of " in capsys.readouterr().out


def test_every_file_that_is_missing_or_too_much_is_named(
    run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files_in(run):
        if not is_covered(name):
            continue
        file = run / name
        content = file.read_bytes()
        file.unlink()
        assert verify(run, ca) == 1, name
        assert str(file) in capsys.readouterr().out
        file.write_bytes(content)
    (run / "adapters" / "final" / "more.py").write_text("")
    assert verify(run, ca) == 1
    assert "more.py" in capsys.readouterr().out


def test_every_file_cut_at_a_random_byte_is_named_or_not_needed(
    made: tuple[Path, Consortium, Runs],
    run: Path,
    ca: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`verify`, `report` and `resume` end with a line that names the file, or work; none ends with a traceback."""
    draw, runs = random.Random(1), made[2]
    made[1].serves(monkeypatch)
    whole = shutil.copytree(run, run.with_name("whole"))
    for name in files_in(whole):
        content = (whole / name).read_bytes()
        if not content:
            continue
        cut = content[: draw.randrange(len(content))]
        (run / name).write_bytes(cut)
        named = verify(run, ca) == 1 and str(run / name) in capsys.readouterr().out
        assert named == (is_covered(name) or name == CHAIN_FILE), name
        _works_or_names(lambda: report([run], run / "report.html"), run / name)
        if _works_or_names(lambda: runs.resume(run), run / name):
            capsys.readouterr()
            assert verify(run, ca) == 0 or str(run / name) in capsys.readouterr().out, name
        shutil.rmtree(run)
        shutil.copytree(whole, run)
    capsys.readouterr()


def _works_or_names(action: Callable[[], Any], file: Path) -> bool:
    """Whether it works; else its error must name the file."""
    try:
        action()
    except UserError as error:
        named = file.name in str(error)
        assert named, (file, error)  # noqa: PT017 - most of them work
        return False
    return True


@pytest.mark.parametrize("where", ["", "state", "adapters/final", "eval/base"])
def test_what_is_no_file_is_named_and_not_opened(
    run: Path, ca: Path, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A FIFO would be waited for for ever, and a link leads to what nothing has signed."""
    folder = run / where
    (tmp_path / "elsewhere").mkdir()
    makers: dict[str, Callable[[Path], Any]] = {
        "a symbolic link": lambda path: path.symlink_to(run / "config.yaml"),
        "a symbolic link ": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "a symbolic link  ": lambda path: path.symlink_to("nowhere"),
        "a FIFO": os.mkfifo,
        "a socket": listens,
    }
    for what, make in makers.items():
        for name in (".hidden", "more"):
            make(folder / name)
            assert verify(run, ca) == 1
            assert f"WRONG  {folder / name}: it is {what.strip()}\n" in capsys.readouterr().out
            (folder / name).unlink()
    assert verify(run, ca) == 0


def listens(path: Path) -> None:
    """Make a socket; its name may be longer than an address allows."""
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


@pytest.mark.parametrize(
    "name", ["config.yaml", CHAIN_FILE, "adapters/final/model.sig", "rounds.jsonl", "deltas/start.f32"]
)
@pytest.mark.parametrize("kind", ["a FIFO", "a symbolic link"])
def test_a_file_that_has_become_something_else_is_named(
    run: Path, ca: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, kept = run / name, tmp_path / "kept"
    file.rename(kept)
    os.mkfifo(file) if kind == "a FIFO" else file.symlink_to(kept)
    for folder in (run, *([file.parent] if file.parent.name == "final" else [])):
        assert verify(folder, ca) == 1
        assert f"{file}: it is {kind}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [".hidden", "eval/.cache/more", "state/.hidden", "adapters/final/.gitattributes", "tensorboard/more"]
)
def test_an_added_file_of_any_name_is_named(run: Path, ca: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("")
    assert verify(run, ca) == 1
    assert f"{run / name}: it was not there when the run ended" in capsys.readouterr().out


def test_a_name_cannot_write_on_the_readers_terminal(run: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "more\x1b[2J\nok").write_text("")
    assert verify(run, ca) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "more\\x1b[2J\\nok: it was not there" in said


class TestWhoSaidIt:
    def test_another_authority_is_not_believed(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_authority(tmp_path / "other", 5)
        assert verify(run, tmp_path / "other" / "ca.crt") == 1
        assert "of another authority" in capsys.readouterr().out

    def test_without_an_authority_it_says_that_no_one_vouches(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert verify(run) == 0
        assert "name its ca.crt with --ca" in capsys.readouterr().out

    def test_a_key_that_the_reader_knows_otherwise_is_named(
        self, run: Path, ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = Consortium(tmp_path / "others")
        other.enrolls(["bank-1"])
        assert verify(run, ca, enrolled=other.home / "enrolled") == 1
        assert "the key of bank-1 is not the one" in capsys.readouterr().out

    def test_a_coordinator_cannot_give_a_banks_reply_to_another(
        self, made: tuple[Path, Consortium, Runs], run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It signs everything again, the keys under other names too; what a bank has signed says who it is."""
        signer, other = made[1].signer, {"bank-0": "bank-1", "bank-1": "bank-0"}
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        begin, rounds = lines[0], [line for line in lines if line["kind"] == "round"]
        begin["banks"] = {other[bank]: key for bank, key in begin["banks"].items()}
        for line in rounds:
            banks = {other[bank]: entry for bank, entry in line["banks"].items()}
            line["weights"] = {other[bank]: weight for bank, weight in line["weights"].items()}
            for bank, entry in banks.items():
                entry["request"]["bank"] = bank
                entry["request_signature"] = signer.sign(REQUEST, {**line["request"], **entry["request"]})
            line["banks"] = banks
        write_chain(run, lines, signer)
        assert verify(run, ca) == 1
        said = capsys.readouterr().out
        assert "the reply of bank-0 has another bank than it answers" in said
        assert "not signed by the coordinator" not in said

    def test_no_two_banks_have_one_key(
        self, made: tuple[Path, Consortium, Runs], run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        lines[0]["banks"]["bank-1"] = lines[0]["banks"]["bank-0"]
        write_chain(run, lines, made[1].signer)
        assert verify(run, ca) == 1
        assert "two banks have one key" in capsys.readouterr().out

    def test_every_begin_is_signed_where_the_reader_asks_for_it(
        self, made: tuple[Path, Consortium, Runs], run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        unsigned = {**lines[0], "certificate": "", "banks": None}
        write_chain(run, [unsigned, lines[0], *lines[1:]], made[1].signer)
        assert verify(run, ca) == 1
        assert f"{CHAIN_FILE}, line 1: it is not signed, and --ca asks for signatures" in capsys.readouterr().out

    @pytest.mark.parametrize("what", ["rows", "delta", "weights", "request", "banks", "an older round"])
    def test_a_rewritten_chain_cannot_be_signed(
        self, run: Path, ca: Path, what: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever holds the folder makes every hash right again, and the signatures stay wrong."""
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        first = lines[2]
        if what == "rows":
            first["banks"]["bank-0"]["figures"]["rows"] = 10**6
        if what == "delta":
            first["banks"]["bank-0"]["delta-sha256"] = "0" * 64
        if what == "weights":
            first["weights"]["bank-0"] = 99.0
        if what == "request":
            first["request"]["layout-id"] = "0" * 16
        if what == "banks":
            del first["banks"]["bank-1"]
        if what == "an older round":
            lines.insert(3, first)
        write_chain(run, lines)
        assert verify(run, ca) == 1
        assert CHAIN_FILE in capsys.readouterr().out


def write_statement(run: Path, statement: dict[str, Any]) -> None:
    """A release's statement with the bill of materials that follows from it, and their hashes in the chain."""
    folder = run / "adapters" / "final"
    write_json(folder / PROVENANCE_FILE, statement)
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):  # of a statement that is none
        files = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
        write_json(folder / BOM_FILE, bom_of(run.name, files, statement["predicate"]))
    lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
    lines[-1]["files"] |= {
        f"adapters/final/{name}": sha256_of_file(folder / name) for name in (PROVENANCE_FILE, BOM_FILE)
    }
    write_chain(run, lines)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(write_rows(tmp_path / "rows"), tmp_path)


class TestSimulations:
    """Without keys: the chain of hashes, and the deltas where they were kept."""

    RULES = (
        (), ("strategy=fedavgm", "strategy.schedule=cosine", "strategy.warmup_rounds=1"),
        ("strategy=fedadam", "strategy.bias_correction=true"),
        ("strategy.weighting=declared", "strategy.sizes=[bank-0:5,bank-1:70]"), ("peft.freeze_a=true",),
    )  # fmt: skip

    @pytest.mark.parametrize("words", RULES, ids=lambda words: " ".join(words) or "fedavg")
    def test_every_rule_is_computed_again_to_the_last_bit(
        self, runs: Runs, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = runs.start("run", "strategy.keep_deltas=true", *words)
        is_frozen = "peft.freeze_a=true" in words
        assert verify(run) == (3 if is_frozen else 0), capsys.readouterr().out
        reported = capsys.readouterr().out
        assert ("A is frozen, so the chain does not have it" in reported) == is_frozen
        assert "NOT SIGNED: a simulation has no keys" in reported
        assert "round 2: 2 banks asked, aggregate and step computed again from 2 deltas" in reported
        assert delta_file(run, 1, "bank-0").stat().st_mode & 0o777 == 0o600

    def test_updates_that_give_another_adapter_are_found_despite_right_hashes(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing is signed here, so somebody can write the whole chain again: the arithmetic alone is against it."""
        import hashlib

        run = runs.start("run", "strategy.keep_deltas=true", rounds=1)
        file = delta_file(run, 1, "bank-0")
        file.write_bytes(bytes(len(file.read_bytes())))
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        lines[2]["banks"]["bank-0"]["delta-sha256"] = lines[-1]["files"]["deltas/round_000001/bank-0.f32"] = found
        write_chain(run, lines)
        assert verify(run) == 1
        assert "the kept deltas give another adapter" in capsys.readouterr().out

    def test_a_statement_that_differs_from_the_chain_is_named_by_field(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Everything that has a hash of it has the right one."""
        run = runs.start("run", "privacy=example", "privacy.epsilon=8", "train.batch_rows=4")
        assert verify(run) == 0
        assert "its statement was compared with provenance.jsonl, field by field" in capsys.readouterr().out
        file = run / "adapters" / "final" / PROVENANCE_FILE
        statement = json.loads(file.read_bytes())
        predicate = statement["predicate"]
        fields = [(name,) for name, value in predicate.items() if not isinstance(value, dict)]
        fields += [(name, key) for name, value in predicate.items() if isinstance(value, dict) for key in value]
        for path in fields:
            changed = copy.deepcopy(statement)
            holder = changed["predicate"] if len(path) == 1 else changed["predicate"][path[0]]
            holder[path[-1]] = [*holder[path[-1]], "more"] if isinstance(holder[path[-1]], list) else "other"
            write_statement(run, changed)
            assert verify(run) == 1, path
            assert f"{file}: {'.'.join(path)} is not what {CHAIN_FILE}" in capsys.readouterr().out, path
        lacking, more = copy.deepcopy(statement), copy.deepcopy(statement)
        del lacking["predicate"]["banks"]
        more["predicate"]["code"]["more"] = ""
        for changed, name in ((lacking, "banks"), (more, "code.more")):
            write_statement(run, changed)
            assert verify(run) == 1
            assert f"{file}: it lacks, or has too much: {name}" in capsys.readouterr().out
        write_statement(run, statement)
        assert verify(run) == 0

    @pytest.mark.parametrize("what", ["rows", "train_loss", "policy_sha256", "ledger", "privacy", "status", "weights"])
    def test_a_chain_that_differs_from_rounds_jsonl_on_a_bank_is_named(
        self, runs: Runs, what: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        private = (
            ("privacy=example", "privacy.epsilon=8", "train.batch_rows=4") if what in ("ledger", "privacy") else ()
        )
        run = runs.start("run", *private, rounds=1)
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        own = lines[2]["banks"]["bank-1"]
        changes: dict[str, Callable[[], Any]] = {
            "rows": lambda: own["figures"].update(rows=7),
            "train_loss": lambda: own["figures"].update(train_loss="nan"),
            "policy_sha256": lambda: own["reply"].update({"policy-sha256": "a" * 64}),
            "ledger": lambda: own["reply"].update({"ledger-number": 9}),
            "privacy": lambda: own["figures"].update(epsilon_spent=0.25),
            "status": lambda: own["reply"].update(status="error"),
            "weights": lambda: lines[2]["weights"].update({"bank-1": 0.25}),
        }
        changes[what]()
        write_chain(run, lines)
        assert verify(run) == 1
        said = capsys.readouterr().out
        expected = {
            "status": "the reply of bank-1 has another status than it answers",
            "weights": "round 1: the weight of bank-1 is 0.25",
        }  # fmt: skip
        assert expected.get(what, f"{run / 'rounds.jsonl'}, line 1: {what} of bank-1 is ") in said

    def test_without_deltas_it_says_what_it_has_not_checked(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = runs.start("run", "privacy=example", "privacy.epsilon=8", "train.batch_rows=4")
        assert not start_file(run).exists()
        assert verify(run) == 0
        assert "hashes only: its deltas were not kept" in capsys.readouterr().out
        card = run / "privacy.json"
        card.write_text(card.read_text().replace('"delta"', '"Delta"', 1))
        assert verify(run) == 1
        assert f"{card}: it does not follow" in capsys.readouterr().out

    def test_a_run_that_a_crash_broke_off_is_one_chain(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Round 2 is trained twice: its line was written, its checkpoint was not."""
        save = server_app.federated.RunScores.close_round

        def dies(self: Any, arrays: Any, line: Any, selection: Any) -> Any:
            return save(self, arrays, line, selection) if line.round == 1 else raising(OSError("power cut"))()

        monkeypatch.setattr(server_app.federated.RunScores, "close_round", dies)
        with pytest.raises(OSError, match="power cut"):
            runs.start("run", "strategy.keep_deltas=true", rounds=3)
        run = runs.folder / "run"
        monkeypatch.undo()
        monkeypatch.setenv("FEDFINLORA_WITNESS", str(runs.folder / "witness"))
        runs.resume(run)
        lines = [read_line(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]
        assert [(line["kind"], line.get("round")) for line in lines] == [
            ("begin", 0), ("saved", 0), ("round", 1), ("saved", 1), ("round", 2), ("end", None),
            ("begin", 1), ("saved", 1), ("round", 2), ("saved", 2), ("round", 3), ("saved", 3), ("end", None),
        ]  # fmt: skip
        assert lines[4]["attempt"] != lines[8]["attempt"]
        assert verify(run) == 0, capsys.readouterr().out

    def test_noise_of_the_aggregators_own_is_not_to_be_computed_again(self, runs: Runs) -> None:
        with pytest.raises(UserError, match=r"strategy\.keep_deltas=true: the aggregator's noise is secret"):
            runs.config("run", "privacy=bank", "strategy.weighting=equal", "strategy.keep_deltas=true")


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file"])
def test_what_is_no_run_is_said(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "there"
    if what == "an empty folder":
        folder.mkdir()
    if what == "a file":
        folder.write_text("")
    with pytest.raises(UserError, match=str(folder)):
        verify(folder)


def test_a_chain_in_which_there_is_nothing_is_wrong(run: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / CHAIN_FILE).write_bytes(b"")
    assert verify(run, ca) == 1
    (run / CHAIN_FILE).unlink()
    assert verify(run, ca) == 1
    assert f"{run / CHAIN_FILE}: cannot be read" in capsys.readouterr().out
    Chain(run).append(End("run", "completed", {}))
    assert verify(run) == 1
    assert "does not begin with a line of kind begin" in capsys.readouterr().out
