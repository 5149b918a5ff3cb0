"""`verify` of a bank's home: its record is compared with its history and its ledger, and no file more is passed
over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from hostile_server import ANSWER, Bank, code_of, write_bank
from keys import Consortium

from client_app.signed import signed_file
from fedfinlora.commands.verify import verify
from fedfinlora.privacy.history import history_file
from fedfinlora.privacy.ledger_files import HEAD, LINES
from fedfinlora.provenance.bank_record import PREVIOUS, SEAL
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.lines import FIRST
from fedfinlora.provenance.signatures import LINE, canonical, digest, load_signer
from fedfinlora.wire.messages import TrainRequest, pack_requests

NAME = "north"
PRIVATE = ("privacy=example", "privacy.epsilon=8")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    consortium = Consortium(tmp_path_factory.mktemp("keys"))
    consortium.enrolls((NAME,))
    return consortium


def bank_of(home: Path, consortium: Consortium) -> Bank:
    bank = Bank(home / "bank.yaml", home)
    bank.node_config |= {"node-key": str(consortium.key_of(NAME)), "authority": str(consortium.ca)}
    return bank


def signed(consortium: Consortium, asks: TrainRequest) -> RecordDict:
    """A request with the coordinator's signature."""
    evidence = RoundEvidence(ServerKeys(consortium.signer, None), asks.run, asks.round, "0" * 64, "c" * 64)
    requests = pack_requests(asks, [NAME])
    evidence.ask(requests)
    return requests[NAME]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, consortium: Consortium) -> tuple[Path, Path]:
    """(home of a bank, ca.crt): it has trained two private rounds and refused a plain one, through the real
    ClientApp.
    """
    folder = tmp_path_factory.mktemp("made")
    home = folder / "home"
    home.mkdir()
    write_bank(folder).rename(home / "bank.yaml")  # the rows are elsewhere
    bank = bank_of(home, consortium)
    codes = []
    for number, words in ((1, PRIVATE), (2, PRIVATE), (3, ())):
        asked = signed(consortium, bank.request(*words, round_number=number))
        codes.append(code_of(bank.answers(asked)))
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


def edited(home: Path, **values: Any) -> Callable[[Callable[[dict[str, Any]], bool]], None]:
    """Change these fields in the lines of the history that a condition holds for; no fields = remove the lines."""

    def edit(of: Callable[[dict[str, Any]], bool]) -> None:
        file = history_file(home / "state", NAME)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert any(of(line) for line in lines)
        left = [{**line, **values} if of(line) else line for line in lines if values or not of(line)]
        file.write_text("".join(json.dumps(line) + "\n" for line in left))

    return edit


def added(home: Path, count: int = 1, **values: Any) -> None:
    """Add lines like the last one, a refusal, to the history."""
    file = history_file(home / "state", NAME)
    last = json.loads(file.read_text().splitlines()[-1])
    file.write_text(file.read_text() + count * (json.dumps({**last, **values}) + "\n"))


def rechained(home: Path, without: int) -> None:
    """The record of a bank that was killed before it wrote one line, counted from 0: chained and sealed with its
    key.
    """
    signer, previous, lines = load_signer(home / "node.key"), FIRST, []
    for number, text in enumerate(record_of(home).read_bytes().splitlines()):
        if number != without:
            body = {**json.loads(text), PREVIOUS: previous}
            del body[SEAL]
            lines.append(canonical({**body, SEAL: signer.sign(LINE, digest(body))}))
            previous = sha256(lines[-1]).hexdigest()
    record_of(home).write_bytes(b"\n".join(lines) + b"\n")


def is_sent(line: dict[str, Any]) -> bool:
    return bool(line["outcome"] == "sent")


def is_refused(line: dict[str, Any]) -> bool:
    return bool(line["outcome"] == "refused")


def is_booked(line: dict[str, Any]) -> bool:
    return bool(line["outcome"] == "booked")


def is_spent(line: dict[str, Any]) -> bool:
    return line["epsilon_spent"] is not None


def test_a_home_as_it_was_made_is_proven(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(home, ca) == 0
    said = capsys.readouterr().out
    assert "3 requests signed by the coordinator, 3 answers signed by north" in said
    assert "2 lines, the last is the head's" in said
    assert "not signed: rows, sampling_rate, noise_multiplier" in said
    assert (
        "not looked at: 6 files (ledger/cohorts/ 1, ledger/index 1, ledger/key 1, ledger/lock 1, state/run/ 2)" in said
    )


def test_a_policy_that_was_changed_since_is_said(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is no fault: a bank changes its policy when it likes, and its answers say under which one they were
    made.
    """
    assert verify(home, ca) == 0
    assert "bank.yaml: it is the policy of the last answer\n" in capsys.readouterr().out
    before, after = (
        sha256((home / "bank.yaml").read_bytes()).hexdigest(),
        (home / "bank.yaml").read_bytes() + b"# more\n",
    )
    (home / "bank.yaml").write_bytes(after)
    assert verify(home, ca) == 0
    said = capsys.readouterr().out
    assert f"policy {before[:16]}: answers from 20" in said
    assert "bank.yaml: it was changed after the last answer of 20" in said
    assert f"the policy of that one was {before[:16]}, now it is {sha256(after).hexdigest()[:16]}\n" in said


def test_refusals_of_every_kind_are_proven(
    home: Path, ca: Path, consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unsigned, asked twice, of no round, of other code, of another model, and a private round after all of them."""
    bank = bank_of(home, consortium)
    again = signed(consortium, replace(bank.request(*PRIVATE, round_number=3), run="other", source_sha256="0" * 64))
    asked = [
        pack_requests(bank.request(*PRIVATE, round_number=3), [NAME])[NAME], again, again,
        signed(consortium, replace(bank.request(*PRIVATE), round=9)),
        signed(consortium, replace(bank.request(*PRIVATE, round_number=4), layout_id="0" * 16)),
        signed(consortium, bank.request(*PRIVATE, round_number=4)),
    ]  # fmt: skip
    codes = [code_of(bank.answers(one)) for one in asked]
    assert codes[:5] == ["unsigned", "source", "unsigned", "config", "layout"]
    status = verify(home, ca)
    said = capsys.readouterr().out
    assert status == 0, said
    assert "3 requests could not be read; the refusals that the bank signed are in the record" in said


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty record": (lambda home: record_of(home).write_bytes(b""), "the record does not have the request"),
    "no record": (lambda home: shutil.rmtree(record_of(home).parent), "the record does not have the request"),
    "a record without its last answer that was sent": (
        lambda home: cut(record_of(home), 3), "the record was cut off at its end",
    ),
    "a record without its last request": (lambda home: cut(record_of(home), 2), "the record does not have the request"),
    "a record without its last rounds": (lambda home: cut(record_of(home), 4), "round 2 of run"),
    "no history": (
        lambda home: history_file(home / "state", NAME).unlink(), "lines of the history are missing or changed",
    ),
    "a history without its last round that was sent": (
        lambda home: cut(history_file(home / "state", NAME), 2), "lines of the history are missing or changed",
    ),
    "a history of another ledger": (
        lambda home: changed(history_file(home / "state", NAME), '"outcome": "sent"', '"outcome": "gone"'),
        "lines of the history are missing or changed",
    ),
    "a history that is cut": (
        lambda home: history_file(home / "state",
            NAME).write_bytes(history_file(home / "state", NAME).read_bytes()[:-9]),
        "its last line is cut off",
    ),
    "a ledger without its last line": (lambda home: cut(home / "ledger" / LINES, 1), "it names no line of the ledger"),
    "a ledger that was rolled back, with its head": (
        lambda home: (cut(home / "ledger" / LINES, 1), first_head(home)),
            "which it does not have: it was cut or rolled back",
    ),
    "no ledger": (lambda home: shutil.rmtree(home / "ledger"), "ledger.jsonl: cannot be read"),
    "a ledger with another figure": (
        lambda home: changed(home / "ledger" / LINES, '"steps": ', '"steps": 1'), "it is damaged",
    ),
    "a file next to the record": (
        lambda home: (record_of(home).parent / "more.py").write_text(""), "it is no part of a bank's record",
    ),
    "another configuration": (
        lambda home: next(record_of(home).parent.glob("*.json")).write_text("{}"),
            "it is not the file that its name says",
    ),
    "a configuration under a name that is no hash": (
        lambda home: (record_of(home).parent / "x.json").write_text("{}"), "it is no part of a bank's record",
    ),
    "a line of no kind": (
        lambda home: record_of(home).open("a").write('{"more": 1}\n'), "it is neither a request nor an answer",
    ),
    "a history without its refusals": (
        lambda home: edited(home)(is_refused), "the record has the answer (policy-generation)",
    ),
    "a history without what was booked": (lambda home: edited(home)(is_booked), "it was booked 0 times"),
    "a history that was booked twice": (
        lambda home: history_file(home / "state", NAME).write_text(
            "".join(2 * line if "booked" in line else line for line in history_file(home / "state", NAME).open())
        ),
        "as booked 2 times",
    ),
    "a history without what was begun": (
        lambda home: edited(home)(lambda line: line["outcome"] == "begun"), "not begun",
    ),
    "another code of a refusal": (
        lambda home: edited(home, code="memory")(is_refused), "the record has the answer (policy-generation)",
    ),
    "a refusal as failed": (
        lambda home: edited(home, outcome="failed")(is_refused), "the record has the answer (policy-generation)",
    ),
    "an outcome of no kind": (lambda home: edited(home, outcome="nothing")(is_refused), "its outcome is none of begun"),
    "a refusal of no round": (lambda home: edited(home, round=0)(is_refused), "the code is none of such a request"),
    "one refusal more": (lambda home: added(home, code="memory"), "lines of the history were added or changed"),
    "a lower epsilon": (lambda home: edited(home, epsilon_spent=0.01)(is_spent), "its epsilon_spent differ"),
    "a higher epsilon": (lambda home: edited(home, epsilon_spent=99.0)(is_spent), "its epsilon_spent differ"),
    "no epsilon": (lambda home: edited(home, epsilon_spent=None)(is_spent), "its epsilon_spent differ"),
    "another epsilon where it was booked": (
        lambda home: edited(home, epsilon_spent=0.01)(is_booked), "booked with another epsilon_spent",
    ),
    "other steps": (lambda home: edited(home, steps=7)(is_sent), "its steps differ"),
    "another policy": (lambda home: edited(home, policy_sha256="f" * 64)(is_sent), "its policy_sha256 differ"),
    "other figures": (lambda home: edited(home, figures=[])(is_sent), "its figures differ"),
    "another line of the ledger": (
        lambda home: edited(home, ledger_hash="f" * 64)(is_sent), "the record has the answer (an update)",
    ),
    "no privacy": (
        lambda home: edited(home, privacy="none")(is_spent), "has privacy none, and its request had example",
    ),
    "a record without its last answer": (lambda home: cut(record_of(home), 1), "the record was cut off at its end"),
    "a record without its last round, and the history too": (
        lambda home: (cut(record_of(home), 4), cut(history_file(home / "state", NAME), 4)),
        "has round 2 of run, and the record does not have the request",
    ),
    "requests of no kind that were not read": (
        lambda home: added(home, 1000, round=0, run="evil", code="FAKE"), "the code is none of such a request",
    ),
    "no cohorts": (
        lambda home: shutil.rmtree(home / "ledger" / "cohorts"), "is missing, and a line of the ledger names it",
    ),
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
    "a file next to the history": (
        lambda home: (home / "state" / "history" / "x").write_text(""), "no bank makes these files",
    ),
    "a record under another name": (
        lambda home: shutil.copy(record_of(home), record_of(home).with_name("south.jsonl")),
            "it is a record under another name",
    ),
    "a refusal that anyone could have added": (
        lambda home: added(home, 2, round=0, run="1", code="unsigned"),
            "2 refusals (unsigned) of requests that could not be read",
    ),
    "a request that was broken off": (
        lambda home: (cut(record_of(home), 1), edited(home)(is_refused)), "round 3 of run was broken off",
    ),
    "an answer that the bank was killed before": (lambda home: rechained(home, 1), "round 1 of run was broken off"),
    "training that the bank was killed in": (
        lambda home: (rechained(home, 1), edited(home)(lambda line: line["round"] == 1 and is_sent(line))),
        "round 1 of run was broken off",
    ),
    "nothing at all": (
        lambda home: (shutil.rmtree(home / "state"), shutil.rmtree(home / "ledger")),
            "the bank was never asked, or both were removed",
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
    assert "older than the record" in capsys.readouterr().out


def test_an_answer_that_the_bank_was_killed_before_is_no_lie(
    home: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was booked and is in the history; later answers show that nothing was cut off after it."""
    rechained(home, 1)
    assert verify(home, ca) == 3
    assert "so the bank was killed in that moment" in capsys.readouterr().out


def test_unsigned_figures_are_named(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(home, rows=10**9, detail="more", noise_multiplier=100.0)(is_sent)
    assert verify(home, ca) == 0
    assert "not signed: rows, sampling_rate, noise_multiplier" in capsys.readouterr().out


def test_signed_file_is_where_verify_looks(home: Path) -> None:
    bank = Bank(home / "bank.yaml", home)
    assert signed_file(bank.facts) == record_of(home)
