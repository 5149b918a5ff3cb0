"""The server as a witness of the banks' ledgers: what it keeps over runs and crashes, and that a ledger that went back
is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, only, with_head
from flwr.app import Message
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

from fedfinlora.commands import coordinator, coordinator_setup
from fedfinlora.deployment.watching import Listen
from fedfinlora.errors import UserError
from fedfinlora.privacy.head import Head
from fedfinlora.run.records import BankEntry, RoundLine
from fedfinlora.wire.messages import RejectedReply, unpack_request
from server_app.federated import run_federated
from server_app.witness import HEADS_FILE, WITNESS_VARIABLE, Witness, witness_root


def head(number: int, digit: str = "a") -> Head:
    return Head(number, digit * 64)


def refusal(witness: Witness, bank: str, shown: Head, sent: Head | None) -> RejectedReply:
    with pytest.raises(RejectedReply) as error:
        witness.check(bank, shown, sent)
    return error.value


class TestWitness:
    def test_a_ledger_that_has_not_grown_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        witness = Witness(tmp_path)
        witness.keep("north", head(5))
        for shown in (head(5), head(5, "b"), head(4), head(0)):
            found = refusal(witness, "north", shown, head(5))
            assert (found.code, found.said_by_bank) == ("ledger", False)
            assert f"has {shown.number} lines and had 5 before" in str(found)
            assert "budget as spent" in str(found)
            assert str(tmp_path / HEADS_FILE) in str(found)
            assert "backup" not in str(found)
        witness.check("north", head(6), head(5))

    def test_banks_that_share_a_ledger_are_compared_each_with_itself(self, tmp_path: Path) -> None:
        """In a simulation south's line may be 9 when north's 8 arrives."""
        witness = Witness(tmp_path)
        witness.keep("south", head(9))
        witness.check("north", head(8), None)

    def test_two_runs_at_once_may_be_answered_out_of_order_but_no_line_twice(self, tmp_path: Path) -> None:
        """Both requests went out at line 4; the answer of the one, line 6, comes before the other's, line 5."""
        one, two = Witness(tmp_path), Witness(tmp_path)
        one.keep("north", head(4))
        assert one.heads(["north"]) == two.heads(["north"]) == {"north": head(4)}
        two.check("north", head(6), head(4))
        two.keep("north", head(6))
        one.check("north", head(5), head(4))
        one.keep("north", head(5))
        assert one.heads(["north"]) == {"north": head(6)}
        refusal(one, "north", head(6, "b"), head(4))

    def test_heads_outlive_the_process_and_other_banks_have_none(self, tmp_path: Path) -> None:
        Witness(tmp_path).keep("north", head(3))
        assert Witness(tmp_path).heads(["north", "south"]) == {"north": head(3)}
        assert json.loads((tmp_path / HEADS_FILE).read_text()) == {"north": {"number": 3, "hash": "a" * 64}}

    def test_a_resumed_run_brings_back_what_its_rounds_say(self, tmp_path: Path) -> None:
        rounds = [RoundLine(1, banks=(BankEntry("north", ledger=head(7, "c")), BankEntry("south"))), RoundLine(2)]
        assert Witness(tmp_path, rounds).heads(["north", "south"]) == {"north": head(7, "c")}
        Witness(tmp_path).keep("north", head(8))
        assert Witness(tmp_path, rounds).heads(["north"]) == {"north": head(8)}

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"north": 3}', '{"north": {"number": -1, "hash": ""}}'])
    def test_a_damaged_file_is_named_with_what_to_do(self, tmp_path: Path, content: str) -> None:
        (tmp_path / HEADS_FILE).write_text(content)
        with pytest.raises(UserError, match=r"heads\.json is damaged.*Take it away"):
            Witness(tmp_path)

    def test_a_folder_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        witness = Witness(tmp_path / "folder")
        (tmp_path / "folder").write_text("in the way")
        with pytest.raises(UserError, match="Cannot write"):
            witness.keep("north", head(1))

    def test_several_processes_keep_each_others_heads(self, tmp_path: Path) -> None:
        program = (
            "import sys\nfrom pathlib import Path\nfrom fedfinlora.privacy.head import Head\nfrom server_app.witness "
            "import Witness\n"
            "witness = Witness(Path(sys.argv[1]))\n"
            "for number in range(1, 31):\n    witness.keep(sys.argv[2], Head(number, 'a' * 64))\n"
        )
        running = [
            subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], cwd=Path(__file__).parents[2])
            for name in ("north", "south")
        ]
        assert [process.wait(timeout=60) for process in running] == [0, 0]
        assert Witness(tmp_path).heads(["north", "south"]) == {"north": head(30), "south": head(30)}

    def test_hundreds_of_banks_are_kept_in_seconds(self, tmp_path: Path) -> None:
        names, started = [f"bank-{number:04}" for number in range(100)], time.monotonic()
        witness = Witness(tmp_path)
        for number, name in enumerate(names):
            witness.keep(name, head(number))
        assert len(Witness(tmp_path).heads(names)) == 100
        assert time.monotonic() - started < 20

    def test_where_it_lies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A simulation with ledgers of its own has a witness of its own; a coordinator's lies in its folder."""
        monkeypatch.delenv(WITNESS_VARIABLE, raising=False)
        monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
        assert witness_root() == tmp_path / "ledger" / "witness"
        monkeypatch.setenv(WITNESS_VARIABLE, str(tmp_path / "own"))
        assert witness_root() == tmp_path / "own"

    def test_a_coordinators_runs_have_the_coordinators_witness(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[dict[str, str]] = []

        def popen(command: Any, env: dict[str, str], **more: Any) -> Any:
            seen.append(env)
            raise OSError

        coordinator_setup.init(tmp_path / "c", [], 9092, "127.0.0.1", 10)
        monkeypatch.setattr(coordinator.subprocess, "Popen", popen)
        monkeypatch.setattr(coordinator, "watch_coordinator", lambda *arguments: None)
        with pytest.raises(OSError):
            coordinator.start(tmp_path / "c", Listen(0, "127.0.0.1"))
        assert seen[0][WITNESS_VARIABLE] == str(tmp_path / "c" / "witness")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.delenv(WITNESS_VARIABLE, raising=False)
    return Runs(write_rows(tmp_path / "rows", train=48), tmp_path)


PRIVATE = ("privacy=example", "privacy.epsilon=8")


def sent_heads(grid: FakeGrid | None) -> list[tuple[int, str, dict[str, int]]]:
    """(round, bank, the numbers of the heads that its request brought) of every train request."""
    assert grid is not None
    found = []
    for message in grid.messages:
        if message.metadata.message_type == "train":
            request = unpack_request(message.content)
            numbers = {bank: each.number for bank, each in request.ledger_heads.items()}
            found.append((request.round, grid.bank_of(message.metadata.dst_node_id), numbers))
    return sorted(found, key=lambda each: each[:2])


def numbers_in(run: Path) -> dict[str, list[int | None]]:
    """Bank -> the ledger's number in each round's entry; None where it has none."""
    found: dict[str, list[int | None]] = {}
    for line in rounds_of(run):
        for entry in line["banks"]:
            found.setdefault(entry["bank"], []).append(entry.get("ledger", {}).get("number"))
    return found


def in_round(number: int, change: Callable[[Message, Message], Any]) -> Callable[[Message, Message], Any]:
    return lambda message, reply: change(message, reply) if message.metadata.group_id == str(number) else reply


class TestRuns:
    def test_a_private_reply_shows_its_ledger_and_the_next_request_returns_it(self, runs: Runs) -> None:
        run = runs.start("one", *PRIVATE, rounds=3)
        numbers = numbers_in(run)
        assert set(numbers) == {"bank-0", "bank-1"}
        for shown in numbers.values():
            assert None not in shown
            assert shown == sorted(set(shown))
        heads = sent_heads(runs.grid)
        assert [each[2] for each in heads[:2]] == [{}, {}], "nothing is known before the first round"
        for number, bank, brought in heads[2:]:
            assert brought == {bank: numbers[bank][number - 2]}

    def test_another_run_continues_from_the_witness(self, runs: Runs) -> None:
        last = {bank: shown[-1] for bank, shown in numbers_in(runs.start("one", *PRIVATE)).items()}
        runs.start("two", *PRIVATE, rounds=1)
        assert [each[2] for each in sent_heads(runs.grid)] == [{bank: last[bank]} for bank in ("bank-0", "bank-1")]

    def test_without_privacy_nothing_is_shown_or_kept(self, runs: Runs, tmp_path: Path) -> None:
        assert numbers_in(runs.start("plain")) == {"bank-0": [None, None], "bank-1": [None, None]}
        assert not (tmp_path / "ledger").exists()

    def test_a_rolled_back_ledger_is_rejected_and_the_run_continues(self, runs: Runs) -> None:
        back = only(
            "bank-1",
            in_round(2, lambda message, reply: Message(with_head(reply, ledger_number=1), reply_to=message)),
        )
        run = runs.start("one", *PRIVATE, rounds=3, tamper=back)
        entries = [line["banks"][1] for line in rounds_of(run)]
        assert [entry["status"] for entry in entries] == ["ok", "rejected", "ok"]
        assert entries[1]["code"] == "ledger"
        assert "lines were lost or taken back" in entries[1]["reason"]
        assert [entry["status"] for entry in (line["banks"][0] for line in rounds_of(run))] == ["ok"] * 3

    def test_a_reply_that_hides_its_ledger_is_rejected(self, runs: Runs) -> None:
        def hidden(message: Message, reply: Message) -> Message:
            for key in ("ledger-number", "ledger-hash"):
                del reply.content.config_records["reply"][key]
            return Message(reply.content, reply_to=message)

        run = runs.start("one", *PRIVATE, rounds=1, tamper=only("bank-1", hidden))
        assert rounds_of(run)[0]["banks"][1]["code"] == "malformed"

    def test_a_ledger_that_was_rolled_back_is_refused_by_the_bank_itself(self, runs: Runs, tmp_path: Path) -> None:
        """Its files as they were after the first run are put back before the third: all checks of the chain hold."""
        runs.start("one", *PRIVATE, rounds=1)
        ledger = tmp_path / "ledger"
        before = {file: file.read_bytes() for file in ledger.iterdir() if file.is_file()}
        runs.start("two", *PRIVATE, rounds=1)
        for file in ledger.iterdir():
            if file.is_file():
                file.unlink()
        for file, content in before.items():
            file.write_bytes(content)
        with pytest.raises(UserError, match="0 of 2 replies are usable"):
            runs.start("three", *PRIVATE, rounds=1)

    def test_a_resumed_run_keeps_the_witness_also_if_the_server_lost_its_file(self, runs: Runs, tmp_path: Path) -> None:
        stop = only("bank-1", in_round(2, lambda message, reply: None))
        words = ("strategy.deadline_s=0.3", "strategy.quorum=2", *PRIVATE)
        with pytest.raises(UserError, match=r"strategy\.quorum=2"):
            runs.start("run", *words, tamper=stop)
        run = runs.folder / "run"
        first = {bank: shown[0] for bank, shown in numbers_in(run).items()}
        os.remove(tmp_path / "ledger" / "witness" / HEADS_FILE)
        runs.resume(run)
        assert [each[2] for each in sent_heads(runs.grid)] == [{bank: first[bank]} for bank in ("bank-0", "bank-1")]
        assert len(rounds_of(run)) == 2

    def test_two_runs_on_the_same_rows_at_once_are_both_booked(self, runs: Runs) -> None:
        """The second run comes and goes while the first waits for its first round's replies."""
        inner: list[Path] = []

        def meanwhile(message: Message, reply: Message) -> Message:
            if not inner:
                inner.append(run_federated(FakeGrid(runs.nodes(2)), runs.config("inner", *PRIVATE, rounds=1)))
            return reply

        outer = runs.start("outer", *PRIVATE, rounds=2, tamper=only("bank-1", meanwhile))
        for run in (outer, *inner):
            assert {entry["status"] for line in rounds_of(run) for entry in line["banks"]} == {"ok"}
