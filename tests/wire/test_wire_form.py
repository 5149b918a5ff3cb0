"""What has no name on the wire, or is longer than it may be, is refused before anything of it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from keys import Consortium
from wire_examples import HEAD, LAYOUT, REQUEST, over_the_wire, reply

from client_app.facts import bank_facts
from client_app.signed import bank_keys, check_request, sign_answer, signed_file
from fedfinlora.provenance.evidence import RoundEvidence, ServerKeys, answer_signed
from fedfinlora.provenance.lines import values_of
from fedfinlora.provenance.signatures import load_signer
from fedfinlora.wire.messages import (
    BankError,
    RejectedReply,
    check_reply_form,
    check_request_form,
    pack_error,
    pack_request,
    pack_requests,
    unpack_reply,
    unpack_request,
)
from fedfinlora.wire.reasons import SAFE_REASONS

SECRET = "Acme Corp will default"
Change = Callable[[RecordDict], None]


def head(record: str, **values: Any) -> Change:
    return lambda content: content.config_records[record].update(
        {key.replace("_", "-"): value for key, value in values.items()}
    )


def figure(name: str, value: Any) -> Change:
    return lambda content: content.metric_records["figures"].__setitem__(name, value)


REPLIES: dict[str, Change] = {
    "a record more": lambda content: content.__setitem__("more", ConfigRecord({"text": SECRET})),
    "metrics more": lambda content: content.__setitem__(SECRET, MetricRecord({"loss": 1.0})),
    "arrays more": lambda content: content.__setitem__("more", ArrayRecord()),
    "a value more": head("reply", more=SECRET),
    "a name that is long": head("reply", **{SECRET * 1000: 1}),
    "a long bank": head("reply", bank="x" * 65),
    "a long text in many bytes": head("reply", run="ä" * 101),
    "a reason": head("reply", reason="The bank ran out of memory."),
    "a status of its own": head("reply", status=SECRET),
    "a bank that is no name": head("reply", bank=SECRET),
    "a layout that is no hash": head("reply", layout_id=SECRET),
    "a policy that is no hash": head("reply", policy_sha256=SECRET),
    "a ledger that is no hash": head("reply", ledger_hash=SECRET),
    "a request that is no hash": head("reply", request=SECRET),
    "an attempt that is no number": head("reply", attempt=SECRET),
    "a signature that is none": head("reply", signature=SECRET),
    "a code that is none": head("reply", code=SECRET),
    "a long attempt": head("reply", attempt="0" * 2**20),
    "bytes": head("reply", layout_id=b"\0" * 8),
    "a list": head("reply", round=[1] * 1000),
    "a number for a text": head("reply", code=7),
    "a figure more": figure("salaries", 1.0),
    "a figure of many": figure("rows", [1] * 1000),
    "a figure of an unknown long name": figure(SECRET * 1000, 1),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_reply_with_more_than_it_may_have_is_refused_and_not_quoted(what: str) -> None:
    content = reply(ledger=HEAD)
    REPLIES[what](content)
    with pytest.raises(RejectedReply) as error:
        unpack_reply(over_the_wire(content), LAYOUT, 0)
    assert error.value.code == "malformed"
    assert "Acme" not in str(error.value)
    assert len(str(error.value)) < 200


REQUESTS: dict[str, Change] = {
    "a record more": lambda content: content.__setitem__("more", ConfigRecord({"text": SECRET})),
    "a value more": head("request", more=SECRET),
    "a long layout": head("request", layout_id="0" * 65),
    "a long source": head("request", source_sha256="0" * 65),
    "a long configuration": head("request", config="{" + " " * 2**19 + "}"),
    "many heads": head("request", ledger_heads="{" + " " * 2**12 + "}"),
    "a long certificate": head("request", certificate="x" * 5000),
    "a layout that is no hash": head("request", layout_id=SECRET),
    "a bank that is no name": head("request", bank=SECRET),
    "a long run": head("request", run="x" * 201),
    "a list": head("request", round=[1, 2]),
    "bytes": head("request", attempt=b"\0"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_with_more_than_it_may_have_is_refused(what: str) -> None:
    content = pack_request(REQUEST)
    REQUESTS[what](content)
    with pytest.raises(BankError) as error:
        unpack_request(over_the_wire(content))
    assert error.value.code == "config"
    assert "Acme" not in str(error.value)


def test_all_that_is_sent_may_be_sent(tmp_path: Path) -> None:
    """Requests and replies of every kind, signed."""
    consortium = Consortium(tmp_path)
    consortium.enrolls(("bank-1",))
    evidence = RoundEvidence(ServerKeys(consortium.signer, None), "ä" * 100, 2, "0" * 64, "c" * 64)
    requests = pack_requests(REQUEST, ["bank-1"])
    evidence.ask(requests)
    check_request_form(requests["bank-1"])
    signer = load_signer(consortium.key_of("bank-1"))
    for content in (reply(ledger=HEAD), *(pack_error("x" * 64, code) for code in SAFE_REASONS)):
        answer_signed(content, evidence.banks["bank-1"]["request"], signer)
        check_reply_form(over_the_wire(content))


def test_a_reply_that_is_refused_for_its_form_is_not_kept_in_the_run(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    consortium.enrolls(("bank-1",))
    public = consortium.key_of("bank-1").with_name("node.key.pub").read_text()
    for banks in ({"bank-1": public}, None):
        evidence = RoundEvidence(ServerKeys(consortium.signer, banks), REQUEST.run, REQUEST.round, "0" * 64, "c" * 64)
        evidence.ask(pack_requests(REQUEST, ["bank-1"]))
        content = reply()
        content.metric_records["figures"]["salaries"] = 12345.5
        answer_signed(content, evidence.banks["bank-1"]["request"], load_signer(consortium.key_of("bank-1")))
        with pytest.raises(RejectedReply) as error:
            evidence.check("bank-1", content)
        assert error.value.code == "malformed"
        evidence.outcome("bank-1", error.value.code)
        kept = json.dumps(values_of(evidence.line("0" * 64, {})))
        assert "salaries" not in kept
        assert "12345.5" not in kept


def test_a_run_name_of_the_banks_own_is_not_kept_in_the_run(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    consortium.enrolls(("bank-1",))
    public = consortium.key_of("bank-1").with_name("node.key.pub").read_text()
    evidence = RoundEvidence(
        ServerKeys(consortium.signer, {"bank-1": public}), REQUEST.run, REQUEST.round, "0" * 64, "c" * 64
    )
    evidence.ask(pack_requests(REQUEST, ["bank-1"]))
    content = reply()
    answer_signed(
        content, {**evidence.banks["bank-1"]["request"], "run": SECRET}, load_signer(consortium.key_of("bank-1"))
    )
    with pytest.raises(RejectedReply, match="another request"):
        evidence.check("bank-1", content)
    evidence.outcome("bank-1", "signature")
    assert "Acme" not in json.dumps(values_of(evidence.line("0" * 64, {})))


def test_a_request_that_is_refused_for_its_form_is_not_kept_at_the_bank(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    consortium.enrolls(("bank-1",))
    node_config = {
        "bank": "bank-1", "data-path": str(tmp_path), "state-dir": str(tmp_path / "state"),
        "node-key": str(consortium.key_of("bank-1")), "authority": str(consortium.ca),
    }  # fmt: skip
    facts, keys = bank_facts(node_config), bank_keys(node_config)
    evidence = RoundEvidence(ServerKeys(consortium.signer, None), REQUEST.run, REQUEST.round, "0" * 64, "c" * 64)
    requests = pack_requests(REQUEST, ["bank-1"])
    requests["bank-1"].config_records["request"]["more"] = SECRET
    evidence.ask(requests)
    with pytest.raises(BankError) as error:
        check_request(requests["bank-1"], facts, keys)
    assert error.value.code == "config"
    assert not signed_file(facts).exists()
    answer = pack_error("bank-1", "config")
    requests["bank-1"].config_records["request"]["run"] = SECRET * 1000
    sign_answer(answer, requests["bank-1"], facts, keys)
    assert "Acme" not in signed_file(facts).read_text()
    check_reply_form(answer)
