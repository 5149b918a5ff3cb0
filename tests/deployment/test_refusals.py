"""A coordinator that lies, or asks for ever what a bank does not allow, does not fill the bank's disk: what is kept of
its requests has a bound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from hostile_server import Bank, code_of, config_of, write_bank
from keys import Consortium

import client_app.signed
from client_app.signed import signed_file
from fedfinlora.commands.bank import history as show_history
from fedfinlora.deployment.bank_settings import SETTINGS
from fedfinlora.deployment.metrics import BankMetrics, page
from fedfinlora.privacy import history
from fedfinlora.privacy.history import Event, read_history, record, refuses_unread, unread
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys
from fedfinlora.provenance.verify_bank import verify_bank
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import TrainRequest, pack_requests

LIMIT = 3


class Asked:
    """A bank with keys, and the coordinator that signs what it asks."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        self.home.mkdir()
        self.consortium = Consortium(place)
        self.consortium.enrolls(("north",))
        self.bank = Bank(write_bank(self.home), self.home)
        self.bank.node_config |= {
            "node-key": str(self.consortium.key_of("north")),
            "authority": str(self.consortium.ca),
        }

    def request(self, padding: str = "", *words: str) -> RecordDict:
        """Signed, with an attempt of its own."""
        config = replace(config_of(self.home, *words), run_name=padding)
        asks = TrainRequest(config, "run", 1, "0" * 64, source_fingerprint(), np.zeros(4, np.float32))
        evidence = RoundEvidence(ServerKeys(self.consortium.signer, None), "run", 1, "0" * 64, "c" * 64)
        requests = pack_requests(asks, ["north"])
        evidence.ask(requests)
        return requests["north"]

    @property
    def kept(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in signed_file(self.bank.facts).read_bytes().splitlines()]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(history, "MOST_REFUSED_A_DAY", LIMIT)
    return Asked(tmp_path)


def refused(request: Callable[[], RecordDict], bank: Bank, times: int) -> list[str]:
    return [code_of(bank.answers(request())) for _ in range(times)]


def test_beyond_the_limit_refusals_are_only_counted(asked: Asked) -> None:
    rule = "policy-max_rank"
    file = asked.home / SETTINGS
    file.write_text(file.read_text().replace("max_rank: 0", "max_rank: 1"))
    codes = refused(lambda: asked.request(), asked.bank, LIMIT + 4)
    assert codes == [rule] * LIMIT + ["refusals"] * 4
    assert [line["outcome"] for line in asked.bank.history] == ["refused"] * LIMIT
    assert len(asked.kept) == 2 * LIMIT, "each request and its answer"
    assert len(list(signed_file(asked.bank.facts).parent.glob("*.json"))) == 1, "one configuration, once"
    assert unread(asked.bank.facts.history_file) == 4
    public = asked.consortium.key_of("north").with_name("node.key.pub").read_text()
    assert verify_bank(asked.home, "north", asked.consortium.ca.read_bytes(), public, "").wrong == []


def test_an_unsigned_request_counts_too(asked: Asked) -> None:
    content = asked.request()
    del content.config_records["request"]["signature"]
    assert refused(lambda: content, asked.bank, LIMIT + 1) == ["unsigned"] * LIMIT + ["refusals"]


def test_configurations_take_no_more_than_their_limit(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_REFUSED_A_DAY", 100)
    first = asked.request()
    config = str(first.config_records["request"]["config"]).encode()
    certificate = len(str(first.config_records["request"]["certificate"]))
    monkeypatch.setattr(client_app.signed, "KEPT_BYTES", 2 * len(config) + certificate + 100)
    codes = [code_of(asked.bank.answers(asked.request("x" * number))) for number in range(5)]
    folder = signed_file(asked.bank.facts).parent
    assert codes[2:] == ["disk"] * 3
    assert len(list(folder.glob("*.json"))) == 2
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in folder.glob("*.json"))
    assert "archive the folder" in str(asked.bank.history[-1]["detail"])


def test_one_more_is_looked_at_after_a_pause_and_says_how_many_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_REFUSED_A_DAY", LIMIT)
    file = tmp_path / "state" / "history" / "north.jsonl"
    for number in range(LIMIT):
        assert not refuses_unread(file)
        record(file, Event("run", number + 1, "refused", code="policy-max_rank", detail="x" * 10_000))
    assert [refuses_unread(file) for _ in range(5)] == [True] * 5
    assert len(read_history(file)) == LIMIT
    assert max(len(str(line["detail"])) for line in read_history(file)) == history.LONGEST_DETAIL
    monkeypatch.setattr(history, "PAUSE_S", 0.0)
    assert not refuses_unread(file)
    record(file, Event("run", 9, "refused", code="policy-max_rank"))
    assert [line["unread"] for line in read_history(file)] == [0] * LIMIT + [5]
    assert unread(file) == 0
    (tmp_path / SETTINGS).write_text("name: north\n")
    assert (
        'fedfinlora_bank_requests_total{code="refusals",outcome="refused"} 5.0'
        in page(BankMetrics(tmp_path, "north")).body
    )


def test_refusals_of_another_day_or_clock_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_REFUSED_A_DAY", LIMIT)
    file = tmp_path / "north.jsonl"
    for day, at in (("2020-01-01", "2020-01-01T10:00:00+0000"), (None, "2999-01-01T10:00:00+0000")):
        for _ in range(LIMIT):
            record(file, Event("run", 1, "failed", code="data"))
        lines = [{**line, "day": day or line["day"], "time": at} for line in read_history(file)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert not refuses_unread(file)
    file.write_text(json.dumps({"outcome": "sent"}) + "\n")
    assert not refuses_unread(file)


def test_the_history_says_how_many_were_refused_unread(
    asked: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = asked.bank.facts.history_file
    for _ in range(LIMIT):
        record(file, Event("run", 1, "refused", code="policy-max_rank"))
    refuses_unread(file)
    show_history(asked.home)
    assert "refused unread, not listed: 1 request" in capsys.readouterr().out
    monkeypatch.setattr(history, "PAUSE_S", 0.0)
    record(file, Event("run", 2, "sent"))
    show_history(asked.home)
    said = capsys.readouterr().out
    assert "(1 before it were refused unread)" in said
    assert "more requests" not in said
