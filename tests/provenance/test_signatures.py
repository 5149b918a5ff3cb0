"""Who said it: requests that the coordinator signs, replies that banks sign, and what is refused because they are
not.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import only, with_delta, with_figures, with_head
from flwr.app import ArrayRecord, Message, RecordDict
from keys import Consortium
from round_runs import Runs
from tiny_runs import rounds_of, same_run, write_rows
from wire_examples import DELTA, FIGURES, LAYOUT, REQUEST

from client_app.facts import bank_facts
from client_app.signed import bank_keys, check_request, sign_answer, signed_file
from fedfinlora.commands.verify import verify
from fedfinlora.deployment.certificates import issue_bank, issue_server, issue_signing, make_authority, open_authority
from fedfinlora.errors import UserError
from fedfinlora.privacy.history import Event, history_file, record
from fedfinlora.provenance.chain import Chain
from fedfinlora.provenance.evidence import MOST_STATEMENT_BYTES, RoundEvidence, ServerKeys, answer_signed, server_keys
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt, End, read_line
from fedfinlora.provenance.signatures import (
    LINE,
    REPLY,
    Signer,
    WrongSignature,
    canonical,
    certified_key,
    check,
    digest,
    load_signer,
    public_key_of,
)
from fedfinlora.provenance.signatures import (
    REQUEST as REQUEST_PURPOSE,
)
from fedfinlora.wire.messages import BankError, RejectedReply, pack_error, pack_reply, pack_requests
from fedfinlora.wire.vectors import to_arrays

BANKS = ("bank-1", "bank-2")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    made = Consortium(tmp_path_factory.mktemp("keys"))
    made.enrolls(BANKS)
    return made


@pytest.fixture
def evidence(consortium: Consortium) -> RoundEvidence:
    """A round in which both banks were asked; `asked` has the requests."""
    banks = {bank: consortium.key_of(bank).with_name("node.key.pub").read_text() for bank in BANKS}
    return RoundEvidence(ServerKeys(consortium.signer, banks), REQUEST.run, REQUEST.round, "0" * 64, "c" * 64)


def asked(evidence: RoundEvidence) -> dict[str, RecordDict]:
    contents = pack_requests(REQUEST, BANKS)
    evidence.ask(contents)
    return contents


def answered(evidence: RoundEvidence, bank: str, signer: Signer, content: RecordDict | None = None) -> RecordDict:
    """A reply to what the bank was asked, signed."""
    content = content or pack_reply(bank, LAYOUT.id, DELTA, FIGURES)
    answer_signed(content, evidence.banks[bank]["request"], signer)
    return content


class TestBytes:
    def test_what_is_signed_does_not_depend_on_the_order_of_keys(self) -> None:
        assert canonical({"b": [1, 2.5], "a": {"ä": True}}) == canonical({"a": {"ä": True}, "b": (1, 2.5)})
        assert canonical({"a": 1}) != canonical({"a": 1.0}), "a whole number is not a number"

    def test_it_is_json_for_all_figures(self) -> None:
        content = canonical({"loss": math.nan, "epsilon": math.inf, "low": -math.inf})
        assert json.loads(content) == {"loss": "nan", "epsilon": "inf", "low": "-inf"}
        assert {name: float(value) for name, value in json.loads(content).items()}["low"] == -math.inf

    def test_a_signature_for_one_purpose_is_none_for_another(self, consortium: Consortium) -> None:
        signer = consortium.signer
        signature = signer.sign(REPLY, {"a": 1})
        check(signer.key.public_key(), REPLY, {"a": 1}, signature)
        for purpose in (REQUEST_PURPOSE, LINE):
            with pytest.raises(WrongSignature):
                check(signer.key.public_key(), purpose, {"a": 1}, signature)

    @pytest.mark.parametrize("signature", ["", "!", "AAAA", "ä", "A" * 10_000])
    def test_what_is_no_signature_is_refused(self, consortium: Consortium, signature: str) -> None:
        with pytest.raises(WrongSignature):
            check(consortium.signer.key.public_key(), REPLY, {}, signature)

    def test_a_key_of_another_curve_is_refused(self, consortium: Consortium) -> None:
        issue_server(consortium.home, ["localhost"], 5)
        with pytest.raises(UserError, match="P-384"):
            load_signer(consortium.home / "server.key")
        with pytest.raises(UserError, match="cannot be read"):
            load_signer(consortium.home / "nothing.key")
        with pytest.raises(UserError, match="no private key"):
            load_signer(consortium.ca)
        with pytest.raises(WrongSignature, match="garbled"):
            public_key_of("ecdsa-sha2-nistp384 AAAA")


class TestReplies:
    def test_what_a_bank_signed_is_taken(self, consortium: Consortium, evidence: RoundEvidence) -> None:
        asked(evidence)
        evidence.check("bank-1", answered(evidence, "bank-1", load_signer(consortium.key_of("bank-1"))))
        assert evidence.banks["bank-1"]["reply"]["request"] == digest(evidence.banks["bank-1"]["request"])

    @pytest.mark.parametrize("signer", ["bank-2", "coordinator", "stranger"])
    def test_a_forged_reply_to_the_right_message_is_refused(
        self, consortium: Consortium, evidence: RoundEvidence, signer: str
    ) -> None:
        """Everything in it is right: message, request, figures. It is not signed with the bank's key."""
        asked(evidence)
        key = {"bank-2": load_signer(consortium.key_of("bank-2")), "coordinator": consortium.signer}.get(signer)
        content = pack_reply("bank-1", LAYOUT.id, DELTA, FIGURES)
        answer_signed(content, evidence.banks["bank-1"]["request"], key)
        with pytest.raises(RejectedReply) as refusal:
            evidence.check("bank-1", content)
        assert refusal.value.code == "signature"
        assert "reply" not in evidence.banks["bank-1"]

    def test_a_bank_that_is_not_enrolled_is_refused(self, consortium: Consortium) -> None:
        lonely = RoundEvidence(ServerKeys(consortium.signer, {}), REQUEST.run, REQUEST.round, "0" * 64)
        asked(lonely)
        with pytest.raises(RejectedReply, match="No key of this bank"):
            lonely.check("bank-1", answered(lonely, "bank-1", load_signer(consortium.key_of("bank-1"))))

    CHANGES: tuple[tuple[str, Callable[[RecordDict], None]], ...] = (
        ("a figure", lambda content: content.metric_records["figures"].__setitem__("rows", 10**9)),
        ("a figure taken away", lambda content: content.metric_records["figures"].__delitem__("train_loss")),
        ("a figure more", lambda content: content.metric_records["figures"].__setitem__("more", 1.0)),
        ("the ledger's head", lambda content: content.config_records["reply"].__setitem__("ledger-number", 7)),
        ("the policy", lambda content: content.config_records["reply"].__setitem__("policy-sha256", "a" * 64)),
        ("the bank", lambda content: content.config_records["reply"].__setitem__("bank", "bank-2")),
        ("the round", lambda content: content.config_records["reply"].__setitem__("round", 99)),
        ("the layout", lambda content: content.config_records["reply"].__setitem__("layout-id", "0" * 16)),
        ("the delta", lambda content: content.array_records.__setitem__("delta", ArrayRecord(to_arrays(-DELTA)))),
        ("no delta", lambda content: content.array_records.__delitem__("delta")),
        ("no figures", lambda content: content.metric_records.__delitem__("figures")),
        ("no head", lambda content: content.config_records.__delitem__("reply")),
        ("no signature", lambda content: content.config_records["reply"].__delitem__("signature")),
        ("a signature that is a number", lambda content: content.config_records["reply"].__setitem__("signature", 7)),
        ("bytes in the head", lambda content: content.config_records["reply"].__setitem__("bank", b"bank-1")),
    )

    @pytest.mark.parametrize("what", [name for name, _ in CHANGES])
    def test_a_reply_that_was_changed_after_signing_is_refused(
        self, consortium: Consortium, evidence: RoundEvidence, what: str
    ) -> None:
        asked(evidence)
        content = answered(evidence, "bank-1", load_signer(consortium.key_of("bank-1")))
        dict(self.CHANGES)[what](content)
        with pytest.raises(RejectedReply) as refusal:
            evidence.check("bank-1", content)
        assert refusal.value.code == "signature"

    def test_a_reply_to_another_round_attempt_or_run_is_refused(
        self, consortium: Consortium, evidence: RoundEvidence
    ) -> None:
        """The bank itself signed it: for another request."""
        signer, keys = load_signer(consortium.key_of("bank-1")), evidence.keys
        asked(evidence)
        for run, number in ((REQUEST.run, REQUEST.round), (REQUEST.run, REQUEST.round + 1), ("another", REQUEST.round)):
            other = RoundEvidence(keys, run, number, "0" * 64, "c" * 64)
            asked(other)
            with pytest.raises(RejectedReply, match="another request"):
                evidence.check("bank-1", answered(other, "bank-1", signer))

    def test_an_error_is_signed_too(self, consortium: Consortium, evidence: RoundEvidence) -> None:
        asked(evidence)
        evidence.check(
            "bank-1",
            answered(evidence, "bank-1", load_signer(consortium.key_of("bank-1")), pack_error("bank-1", "privacy")),
        )
        with pytest.raises(RejectedReply, match="not signed"):
            evidence.check("bank-2", pack_error("bank-2", "privacy"))

    def test_it_costs_milliseconds_and_reads_the_delta_once(
        self, consortium: Consortium, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A delta of 5 MB, as of Llama 3.1 8B at rank 8 on two modules; the time is printed, for docs/deployment.md."""
        vector = np.random.default_rng(0).normal(size=2**20 + 2**18).astype(np.float32)
        keys = ServerKeys(
            consortium.signer, {"bank-1": consortium.key_of("bank-1").with_name("node.key.pub").read_text()}
        )
        signer, content = load_signer(consortium.key_of("bank-1")), pack_reply("bank-1", LAYOUT.id, vector, FIGURES)
        evidence = RoundEvidence(keys, REQUEST.run, REQUEST.round, "0" * 64)
        timed: dict[str, list[float]] = {"ask": [], "sign": [], "check": []}
        for _ in range(10):
            started = time.perf_counter()
            asked(evidence)
            timed["ask"].append((time.perf_counter() - started) / len(BANKS))
            started = time.perf_counter()
            answer_signed(content, evidence.banks["bank-1"]["request"], signer)
            timed["sign"].append(time.perf_counter() - started)
            started = time.perf_counter()
            evidence.check("bank-1", content)
            timed["check"].append(time.perf_counter() - started)
        with capsys.disabled():
            print({name: f"{1000 * min(seconds):.1f} ms" for name, seconds in timed.items()})
        assert min(timed["sign"]) + min(timed["check"]) < 0.2


class TestRequests:
    """At a bank with keys."""

    @pytest.fixture
    def node_config(self, consortium: Consortium, tmp_path: Path) -> dict[str, Any]:
        return {
            "bank": "bank-1", "data-path": str(tmp_path), "state-dir": str(tmp_path / "state"),
            "node-key": str(consortium.key_of("bank-1")), "authority": str(consortium.ca),
        }  # fmt: skip

    def checks(self, content: RecordDict, node_config: dict[str, Any]) -> None:
        check_request(content, bank_facts(node_config), bank_keys(node_config))

    def test_what_the_coordinator_signed_is_taken_and_kept_with_the_answer(
        self,
        consortium: Consortium,
        evidence: RoundEvidence,
        node_config: dict[str, Any],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """So a bank proves later what it was asked, to anybody who has ca.crt."""
        request = asked(evidence)["bank-1"]
        self.checks(request, node_config)
        with pytest.raises(BankError, match="asked before") as again:  # a recorded request, or one of another day
            self.checks(request, node_config)
        assert again.value.code == "unsigned"
        content = pack_reply("bank-1", LAYOUT.id, DELTA, FIGURES, reveal=())
        sign_answer(content, request, bank_facts(node_config), bank_keys(node_config))
        evidence.check("bank-1", content)
        file = signed_file(bank_facts(node_config))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines[0]["asked"] == evidence.banks["bank-1"]["request"]
        assert lines[1]["answered"]["delta-sha256"] == evidence.banks["bank-1"]["delta-sha256"]
        assert "rows" not in lines[1]["answered"]["figures"], "what the policy withholds is not in what is signed"
        assert {file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777} == {0o600, 0o700}
        config = file.parent / f"{lines[0]['asked']['config-sha256']}.json"
        assert config.read_text() == request.config_records["request"]["config"]

        from hostile_server import write_bank

        home = write_bank(tmp_path / "home").parent
        settings = home / "bank.yaml"
        settings.write_text(settings.read_text().replace("name: north", "name: bank-1"))
        (home / "state").mkdir()
        file.parent.rename(home / "state" / "signed")
        record(history_file(home / "state", "bank-1"), Event(REQUEST.run, REQUEST.round, "begun"))
        reported = {name: value for name, value in lines[1]["answered"]["figures"].items() if value and value != "nan"}
        sent = Event(
            REQUEST.run,
            REQUEST.round,
            "sent",
            steps=reported["steps"],
            figures=tuple(reported),
            epsilon_spent=reported.get("epsilon_spent"),
        )
        record(history_file(home / "state", "bank-1"), sent)
        for name in ("node.key.pub",):
            (home / name).write_bytes(consortium.key_of("bank-1").with_name(name).read_bytes())
        assert verify(home, consortium.ca) == 0
        assert "1 requests signed by the coordinator, 1 answers" in capsys.readouterr().out
        kept = home / "state" / "signed" / "bank-1.jsonl"
        original = kept.read_bytes()
        for change in (original.replace(b'"round":2', b'"round":1', 1), original[:-7]):
            kept.write_bytes(change)
            assert verify(home, consortium.ca) == 1
            assert str(kept) in capsys.readouterr().out

    CHANGES: tuple[tuple[str, Callable[[RecordDict], None]], ...] = (
        ("the configuration", lambda content: content.config_records["request"].__setitem__("config", "{}")),
        ("the round", lambda content: content.config_records["request"].__setitem__("round", 1)),
        ("the run", lambda content: content.config_records["request"].__setitem__("run", "other")),
        ("the ledger's head", lambda content: content.config_records["request"].__setitem__("ledger-heads", "{}")),
        ("one value more", lambda content: content.config_records["request"].__setitem__("more", 1)),
        ("the adapter", lambda content: content.array_records.__setitem__("adapter", ArrayRecord(to_arrays(-DELTA)))),
        ("no signature", lambda content: content.config_records["request"].__delitem__("signature")),
        ("no certificate", lambda content: content.config_records["request"].__delitem__("certificate")),
        ("no request", lambda content: content.config_records.__delitem__("request")),
        ("no adapter", lambda content: content.array_records.__delitem__("adapter")),
    )

    @pytest.mark.parametrize("what", [name for name, _ in CHANGES])
    def test_a_request_that_was_changed_after_signing_is_refused(
        self, evidence: RoundEvidence, node_config: dict[str, Any], what: str
    ) -> None:
        request = copy.deepcopy(asked(evidence)["bank-1"])
        if what == "the ledger's head":
            request.config_records["request"]["ledger-heads"] = '{"bank-1": {}}'
        else:
            dict(self.CHANGES)[what](request)
        with pytest.raises(BankError) as refusal:
            self.checks(request, node_config)
        assert refusal.value.code == "unsigned"
        assert not signed_file(bank_facts(node_config)).exists()

    def test_a_request_to_another_bank_is_refused(self, evidence: RoundEvidence, node_config: dict[str, Any]) -> None:
        with pytest.raises(BankError, match="another bank"):
            self.checks(asked(evidence)["bank-2"], node_config)

    @pytest.mark.parametrize(
        "who", ["another authority", "a bank", "a bank's certificate", "the server", "ended", "not yet", "another key"]
    )
    def test_only_a_coordinator_of_the_banks_own_authority_is_obeyed(
        self, consortium: Consortium, node_config: dict[str, Any], tmp_path: Path, who: str
    ) -> None:
        """The authority issues certificates to banks and to the server too: none of them is good for requests."""
        signer = consortium.signer
        if who == "another authority":
            make_authority(tmp_path / "other", 10)
            issue_signing(tmp_path / "other", 5)
            signer = load_signer(tmp_path / "other" / "signing.key", tmp_path / "other" / "signing.crt")
        if who == "a bank":
            signer = load_signer(consortium.key_of("bank-2"))
        if who == "a bank's certificate":
            public = consortium.key_of("bank-2").with_name("node.key.pub").read_bytes()
            issue_bank(tmp_path / "bank-2.crt", "bank-2", public, 5, open_authority(consortium.home))
            signer = load_signer(consortium.key_of("bank-2"), tmp_path / "bank-2.crt")
        if who == "the server":
            issue_server(consortium.home, ["localhost"], 5)
            signer = Signer(signer.key, (consortium.home / "server.crt").read_text())
        if who == "another key":
            signer = Signer(load_signer(consortium.key_of("bank-2")).key, signer.certificate)
        if who in ("ended", "not yet"):
            at = datetime.now(UTC) + timedelta(days=6 if who == "ended" else -1)
            with pytest.raises(WrongSignature, match="not good at this time"):
                certified_key(signer.certificate, consortium.ca.read_bytes(), at)
            return
        contents = pack_requests(REQUEST, BANKS)
        RoundEvidence(ServerKeys(signer, {}), REQUEST.run, REQUEST.round, "0" * 64).ask(contents)
        with pytest.raises(BankError) as refusal:
            self.checks(contents["bank-1"], node_config)
        assert refusal.value.code == "unsigned"

    def test_a_bank_without_its_key_answers_nothing(self, evidence: RoundEvidence, node_config: dict[str, Any]) -> None:
        for name in ("node-key", "authority"):
            with pytest.raises(BankError, match="cannot be read"):
                bank_keys({**node_config, name: "/nowhere"})
            with pytest.raises(BankError, match="cannot be read"):
                bank_keys({key: value for key, value in node_config.items() if key != name})

    def test_what_cannot_be_kept_is_not_worked_on(
        self, evidence: RoundEvidence, node_config: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "state").write_text("a file")
        with pytest.raises(BankError) as refusal:
            self.checks(asked(evidence)["bank-1"], node_config)
        assert refusal.value.code == "disk"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(write_rows(tmp_path / "rows"), tmp_path)


class TestRuns:
    """Through the real server and ClientApp."""

    def test_signatures_change_no_parameter_and_a_wrong_one_is_rejected(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """bank-1 is forged in round 1, its old reply comes again in round 2, it sends a claim of rows that it has not
        signed in round 3.
        """
        plain = runs.start("plain")
        runs.consortium = Consortium(runs.folder / "keys").serves(monkeypatch)
        assert server_keys().banks == {}
        signed = runs.start("signed")
        assert set(server_keys().banks or {}) == {"bank-0", "bank-1"}
        assert same_run(plain, signed)
        assert verify(signed, runs.consortium.ca, enrolled=runs.consortium.home / "enrolled") == 0
        assert "2 requests and 2 replies signed" in capsys.readouterr().out

        earlier: list[RecordDict] = []
        bank_0 = load_signer(runs.consortium.key_of("bank-0"))

        def lies(message: Message, reply: Message) -> Message:
            number = int(message.metadata.group_id)
            if number == 1:
                earlier.append(copy.deepcopy(reply.content))
                content = with_delta(reply, lambda delta: -delta)
                answer_signed(content, _statement(message), bank_0)
            elif number == 2:
                content = earlier[0]
            elif number == 3:
                content = with_figures(reply, rows=10**6)
            else:
                content = reply.content
            return Message(content, reply_to=message)

        run = runs.start("lied-to", rounds=4, tamper=only("bank-1", lies))
        found = [[(bank["status"], bank["code"]) for bank in line["banks"]] for line in rounds_of(run)]
        assert found == [[("ok", ""), ("rejected", "signature")]] * 3 + [[("ok", ""), ("ok", "")]]
        # Its old reply, which it has signed itself, is kept; what it has not signed shows nothing.
        assert [line.banks["bank-1"].reply is not None for line in attempts_of(run)] == [False, True, False, True]
        capsys.readouterr()
        assert verify(run, runs.consortium.ca) == 0
        assert "round 2: 2 banks asked, 2 requests and 2 replies signed" in capsys.readouterr().out
        assert runs.grid is not None

    def test_what_a_rejected_bank_has_signed_is_kept_and_can_be_shown(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """NaN in a delta and in a figure, a figure out of its range, another layout: each signed by the bank. A name of
        its own choice is not kept.
        """
        consortium = runs.consortium = Consortium(runs.folder / "keys").serves(monkeypatch)
        lies: list[tuple[str, Callable[[Message], RecordDict]]] = [
            ("not-finite", lambda reply: with_delta(reply, lambda delta: delta * np.float32(np.nan))),
            ("not-finite", lambda reply: with_figures(reply, train_loss=math.nan)),
            ("malformed", lambda reply: with_figures(reply, rows=-1)),
            ("layout", lambda reply: with_head(reply, layout_id="0" * 16)),
            ("malformed", lambda reply: with_head(reply, bank="Acme.Corp.will.default." + "x" * 41)),
        ]

        def lying(message: Message, reply: Message) -> Message:
            content = lies[int(message.metadata.group_id) - 1][1](reply)
            answer_signed(content, _statement(message), load_signer(consortium.key_of("bank-1")))
            return Message(content, reply_to=message)

        run = runs.start("run", rounds=len(lies), tamper=only("bank-1", lying))
        assert [line["banks"][1]["code"] for line in rounds_of(run)] == [code for code, _ in lies]
        size = (run / CHAIN_FILE).stat().st_size
        public = public_key_of(consortium.key_of("bank-1").with_name("node.key.pub").read_text())
        *kept, last = attempts_of(run)
        for line in kept:
            check(public, REPLY, line.banks["bank-1"].statement, line.banks["bank-1"].reply_signature)
        assert last.banks["bank-1"].reply is None
        assert not [file for file in run.rglob("*") if file.is_file() and b"Acme.Corp" in file.read_bytes()]
        assert verify(run, consortium.ca) == 0, capsys.readouterr().out
        assert size < 40_000, "no delta"

    def test_a_reply_with_a_book_in_its_head_is_not_kept(self, consortium: Consortium, evidence: RoundEvidence) -> None:
        """Else one bank fills the run's folder."""
        asked(evidence)
        content = pack_reply("bank-1", LAYOUT.id, DELTA, FIGURES)
        content.config_records["reply"]["more"] = "x" * MOST_STATEMENT_BYTES
        with pytest.raises(RejectedReply, match="head and figures have"):
            evidence.check("bank-1", answered(evidence, "bank-1", load_signer(consortium.key_of("bank-1")), content))
        assert "reply" not in evidence.banks["bank-1"]

    def test_a_bank_with_keys_refuses_a_server_without(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing of its rows is read: the refusal says nothing of them, and its state is empty."""
        runs.consortium = Consortium(runs.folder / "keys")
        runs.nodes(2)
        with pytest.raises(UserError, match="not what the coordinator signed"):
            runs.start("run")
        assert runs.grid is not None
        codes = {
            reply.content["reply"]["code"] for reply in runs.grid.arrived if reply.metadata.message_type == "train"
        }
        assert codes == {"unsigned"}

    def test_a_coordinator_rejects_banks_without_keys(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        consortium = Consortium(runs.folder / "keys").serves(monkeypatch)
        consortium.nodes(runs.nodes(2))
        with pytest.raises(UserError, match=r"0 of 2 replies are usable.*not signed"):
            runs.start("run")


def attempts_of(run: Path) -> list[Attempt]:
    lines = [read_line(line).line for line in (run / CHAIN_FILE).read_bytes().splitlines()]
    return [line for line in lines if isinstance(line, Attempt)]


def _statement(message: Message) -> dict[str, Any]:
    from fedfinlora.provenance.evidence import request_statement

    return request_statement(message.content)


class TestChain:
    def test_a_line_cut_off_by_a_crash_is_removed_and_the_chain_continues(self, tmp_path: Path) -> None:
        chain = Chain(tmp_path)
        chain.append(End("a", "stopped", {}))
        first = (tmp_path / CHAIN_FILE).read_bytes()
        (tmp_path / CHAIN_FILE).write_bytes(first + b'{"kind":"rou')
        Chain(tmp_path).append(End("a", "completed", {}))
        lines = (tmp_path / CHAIN_FILE).read_bytes().splitlines()
        assert read_line(lines[1]).previous == read_line(lines[0]).sha256
        assert (tmp_path / CHAIN_FILE).stat().st_mode & 0o777 == 0o600

    def test_a_chain_that_was_changed_is_not_gone_on_with(self, tmp_path: Path) -> None:
        Chain(tmp_path).append(End("a", "completed", {}))
        file = tmp_path / CHAIN_FILE
        file.write_bytes(file.read_bytes().replace(b'"a"', b'"b"'))
        with pytest.raises(UserError, match=r"provenance\.jsonl is damaged"):
            Chain(tmp_path)
