"""Requests and replies survive the trip; all that was tampered with is refused with a fixed code, never averaged or
executed.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import DELTA, FIGURES, HEAD, LAYOUT, REQUEST, over_the_wire, reply

from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_plain
from fedfinlora.model.adapter import Layout
from fedfinlora.privacy.head import Head
from fedfinlora.wire.messages import (
    ALWAYS_SENT,
    REVEALABLE,
    BankError,
    Figures,
    RejectedReply,
    TrainRequest,
    pack_error,
    pack_reply,
    pack_request,
    pack_requests,
    unpack_reply,
    unpack_request,
)
from fedfinlora.wire.ranges import RANGES
from fedfinlora.wire.reasons import SAFE_REASONS, UNKNOWN, UNKNOWN_REASON
from fedfinlora.wire.vectors import ARRAY_KEY, FLAT_FLOAT32, PART_NUMBERS, to_array


def with_array(
    content: RecordDict, data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (10,), key: str = "delta"
) -> RecordDict:
    """The same message with other bytes behind the declared dtype and shape."""
    content.array_records[key] = ArrayRecord(
        {ARRAY_KEY: Array(dtype=dtype, shape=shape, stype=FLAT_FLOAT32, data=data)}
    )
    return content


def npy(array: Any, allow_pickle: bool = False) -> bytes:
    """The bytes of an .npy file, which the wire does not use."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npy_header(shape: str) -> bytes:
    """The beginning of an .npy file that promises an array of `shape` and holds almost nothing of it."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 40


class Bomb:
    """Leaves a mark when it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


# --- the trip -------------------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent() -> None:
    found = unpack_request(over_the_wire(pack_request(REQUEST)))
    assert replace(found, adapter=DELTA) == REQUEST
    assert found.adapter.tobytes() == DELTA.tobytes()
    assert found.adapter.dtype == np.float32


def test_a_reply_arrives_as_it_was_sent() -> None:
    found = unpack_reply(over_the_wire(reply()), LAYOUT, 100.0)
    assert (found.bank, found.figures) == ("bank-1", FIGURES)
    assert found.delta.tobytes() == DELTA.tobytes()
    assert found.delta_norm == pytest.approx(float(np.linalg.norm(DELTA)), rel=1e-7)


def test_a_ledgers_head_arrives_as_it_was_sent() -> None:
    assert unpack_reply(over_the_wire(reply(ledger=HEAD)), LAYOUT, 0, private=True).ledger == HEAD
    assert unpack_reply(over_the_wire(reply(ledger=HEAD)), LAYOUT, 0).ledger == HEAD
    assert unpack_reply(over_the_wire(reply()), LAYOUT, 0).ledger is None


def test_a_bank_is_sent_its_own_ledger_head_and_no_other_banks() -> None:
    sent = pack_requests(REQUEST, ["bank-1", "bank-2", "bank-3"])
    heads = {bank: unpack_request(over_the_wire(content)).ledger_heads for bank, content in sent.items()}
    assert heads == {"bank-1": {"bank-1": HEAD}, "bank-2": {"bank-2": Head(0, "0" * 64)}, "bank-3": {}}
    assert "a" * 64 not in str(sent["bank-2"].config_records["request"])
    assert len({id(content.array_records["adapter"][ARRAY_KEY]) for content in sent.values()}) == 1, (
        "one adapter in memory"
    )


def test_a_request_without_ledger_heads_has_none() -> None:
    content = pack_request(REQUEST)
    del content.config_records["request"]["ledger-heads"]
    assert unpack_request(content).ledger_heads == {}


def test_a_holdout_loss_that_was_not_measured_stays_nan() -> None:
    found = unpack_reply(over_the_wire(reply(replace(FIGURES, holdout_loss=math.nan))), LAYOUT, 0)
    assert math.isnan(found.figures.holdout_loss)


def test_a_reply_holds_the_delta_and_the_figures_and_nothing_else() -> None:
    content = reply()
    assert set(content.keys()) == {"reply", "delta", "figures"}
    assert set(content.config_records["reply"]) == {"status", "bank", "layout-id", "policy-sha256"}
    assert set(content.metric_records["figures"]) == {item.name for item in fields(Figures)}
    assert len(content.array_records["delta"][ARRAY_KEY].data) <= 4 * LAYOUT.size + 256


# --- replies that must not be averaged ------------------------------------------------------------


def rejected(content: RecordDict, max_update_norm: float = 100.0) -> RejectedReply:
    """The refusal of a reply. Anything else that is raised would end the whole run."""
    with pytest.raises(RejectedReply) as error:
        unpack_reply(content, LAYOUT, max_update_norm)
    return error.value


def changed(value: float | None, dtype: Any = np.float32) -> Any:
    delta = DELTA.astype(dtype)
    if value is not None:
        delta[3] = value
    return delta


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (lambda: reply(layout_id="0" * 16), "layout"),
        (lambda: reply(layout_id=""), "layout"),
        (lambda: reply(delta=DELTA.astype(np.float64)), "layout"),
        (lambda: reply(delta=DELTA.astype(np.float16)), "layout"),
        (lambda: reply(delta=DELTA[:9]), "layout"),
        (lambda: reply(delta=DELTA.reshape(2, 5)), "layout"),
        (lambda: reply(delta=np.float32([])), "layout"),
        (lambda: with_array(reply(), DELTA.astype(np.float64).tobytes()), "layout"),
        (lambda: with_array(reply(), DELTA[:5].tobytes()), "layout"),
        (lambda: with_array(reply(), np.zeros(10**5, np.float32).tobytes()), "layout"),
        (lambda: with_array(reply(), npy(DELTA)), "layout"),
        (lambda: with_array(reply(), DELTA.tobytes()[:-4]), "layout"),
        (lambda: with_array(reply(), DELTA.tobytes() + b"\0"), "layout"),
        (lambda: with_array(reply(), b""), "layout"),
        (lambda: with_array(reply(), b"not numbers at all"), "layout"),
        (lambda: reply(delta=changed(math.nan)), "not-finite"),
        (lambda: reply(delta=changed(math.inf)), "not-finite"),
        (lambda: reply(delta=changed(-math.inf)), "not-finite"),
        (lambda: reply(replace(FIGURES, train_loss=math.nan)), "not-finite"),
        (lambda: reply(replace(FIGURES, rows=0)), "no-rows"),
        (lambda: reply(delta=changed(1e6)), "norm"),
        (lambda: reply(delta=changed(3e38)), "norm"),
    ],
)
def test_a_tampered_reply_is_refused_with_its_code(content: Any, code: str) -> None:
    refusal = rejected(content())
    assert refusal.code == code
    assert str(refusal)
    assert "\n" not in str(refusal)


@pytest.mark.parametrize("missing", ["reply", "delta", "figures"])
def test_a_reply_without_one_of_its_records_is_malformed(missing: str) -> None:
    content = reply()
    del content[missing]
    assert rejected(content).code == "malformed"


def test_a_reply_without_its_array_or_with_another_key_is_malformed() -> None:
    content = reply()
    content.array_records["delta"] = ArrayRecord({"weights": to_array(DELTA)})
    assert rejected(content).code == "malformed"


@pytest.mark.parametrize("key", ["bank", "status", "layout-id"])
def test_a_reply_without_one_of_its_headings_is_malformed(key: str) -> None:
    content = reply()
    del content.config_records["reply"][key]
    assert rejected(content).code == "malformed"


def test_a_large_vector_travels_in_parts_and_each_must_be_there() -> None:
    large = np.random.default_rng(0).normal(size=2 * PART_NUMBERS + 3).astype(np.float32)
    layout = Layout(("a",), ((large.size,),))
    content = over_the_wire(reply(delta=large, layout_id=layout.id))
    assert [array.shape[0] for array in content.array_records["delta"].values()] == [PART_NUMBERS, PART_NUMBERS, 3]
    assert unpack_reply(content, layout, 0).delta.tobytes() == large.tobytes()
    request = TrainRequest(Config(), "run", 1, layout.id, "0" * 64, large)
    assert unpack_request(over_the_wire(pack_request(request))).adapter.tobytes() == large.tobytes()
    del content.array_records["delta"]["vector-1"]
    with pytest.raises(RejectedReply, match="2 parts, expected 3") as error:
        unpack_reply(content, layout, 0)
    assert error.value.code == "layout"


def test_a_private_reply_without_its_ledgers_head_is_malformed() -> None:
    with pytest.raises(RejectedReply, match="ledger") as error:
        unpack_reply(over_the_wire(reply()), LAYOUT, 0, private=True)
    assert error.value.code == "malformed"


@pytest.mark.parametrize(
    "head",
    [
        {"ledger-number": 7},
        {"ledger-hash": "a" * 64},
        {"ledger-number": -1, "ledger-hash": "a" * 64},
        {"ledger-number": 2**60, "ledger-hash": "a" * 64},
        {"ledger-number": "7", "ledger-hash": "a" * 64},
        {"ledger-number": 7.0, "ledger-hash": "a" * 64},
        {"ledger-number": True, "ledger-hash": "a" * 64},
        {"ledger-number": 7, "ledger-hash": "a" * 63},
        {"ledger-number": 7, "ledger-hash": "A" * 64},
        {"ledger-number": 7, "ledger-hash": 7},
        {"ledger-number": 7, "ledger-hash": "Acme Corp will default".ljust(64, "x")},
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_a_ledger_head_that_is_none_is_malformed(head: dict[str, Any], private: bool) -> None:
    content = reply()
    for key, value in head.items():
        content.config_records["reply"][key] = value
    with pytest.raises(RejectedReply) as error:
        unpack_reply(content, LAYOUT, 0, private=private)
    assert error.value.code == "malformed"
    assert "Acme" not in str(error.value)


def without_figure(name: str) -> RecordDict:
    values = asdict(FIGURES)
    del values[name]
    content = reply()
    content.metric_records["figures"] = MetricRecord(values)
    return content


@pytest.mark.parametrize("name", ALWAYS_SENT)
def test_a_reply_without_a_required_metric_is_malformed(name: str) -> None:
    assert rejected(without_figure(name)).code == "malformed"


@pytest.mark.parametrize("name", REVEALABLE)
def test_metrics_may_be_withheld_but_not_rows_used_as_weights(name: str) -> None:
    found = unpack_reply(over_the_wire(without_figure(name)), LAYOUT, 100.0, needs_rows=False)
    assert found.withheld == (name,)
    value = getattr(found.figures, name)
    assert value == 0 or math.isnan(value)
    if name == "rows":
        assert rejected(without_figure(name)).code == "no-rows"


def test_reported_rows_must_be_positive_also_if_they_are_no_weights() -> None:
    with pytest.raises(RejectedReply) as error:
        unpack_reply(reply(replace(FIGURES, rows=0)), LAYOUT, 100.0, needs_rows=False)
    assert error.value.code == "no-rows"


@pytest.mark.parametrize("value", [True, [1, 2], [1.5], "160", None])
@pytest.mark.parametrize("name", ["rows", "train_loss"])
def test_a_figure_that_is_no_number_is_malformed(name: str, value: Any) -> None:
    content = reply()
    record = MetricRecord(asdict(FIGURES))
    dict.__setitem__(record, name, value) if isinstance(record, dict) else record._data.__setitem__(name, value)
    content.metric_records["figures"] = record
    assert rejected(content).code == "malformed"


# --- the table of ranges --------------------------------------------------------------------------


def arrives(name: str, value: Any) -> Any:
    """What comes out of the real unpacking for a figure with this value; RejectedReply or BankError where it does
    not.
    """
    if name in FIGURE_NAMES:
        content = reply()
        record = {**asdict(FIGURES), name: value}
        content.metric_records["figures"] = raw_record(
            {key: found for key, found in record.items() if found is not None}
        )
        # `no-rows` is another question than what a number may be.
        return getattr(unpack_reply(content, LAYOUT, 0, needs_rows=False).figures, name)
    if name == "ledger-number":
        content = reply(ledger=HEAD)
        raw_set(content.config_records["reply"], name, value)
        found = unpack_reply(content, LAYOUT, 0).ledger
        return found and found.number
    content = pack_request(replace(REQUEST, silent=name == "silent"))
    if name in ("round", "silent"):
        raw_set(content.config_records["request"], name, value)
        return getattr(unpack_request(content), name)
    assert name == "ledger-heads"
    head = {"hash": "a" * 64, **({} if value is None else {"number": value})}
    content.config_records["request"][name] = json.dumps({"bank-1": head})
    return unpack_request(content).ledger_heads["bank-1"].number


FIGURE_NAMES = {item.name for item in fields(Figures)}


def raw_record(values: dict[str, Any]) -> MetricRecord:
    """A record of figures that Flower itself would not make of these values."""
    record = MetricRecord({})
    for key, value in values.items():
        raw_set(record, key, value)
    return record


def raw_set(record: Any, key: str, value: Any) -> None:
    if value is None:
        record._data.pop(key, None)
    else:
        record._data[key] = value


def bounds_of(name: str) -> tuple[Any, Any]:
    """The lowest and the highest value that the table allows, in its type."""
    known = RANGES[name]
    highest = min(known.highest, REQUEST.config.num_server_rounds) if name == "round" else known.highest
    return known.kind(known.lowest), known.kind(highest)


def test_every_figure_that_crosses_is_in_the_table() -> None:
    head = {
        key
        for key, value in pack_reply("a", "b", DELTA, FIGURES, ledger=HEAD).config_records["reply"].items()
        if not isinstance(value, str)
    }
    asked = {
        key
        for key, value in pack_request(replace(REQUEST, silent=True)).config_records["request"].items()
        if not isinstance(value, str)
    }
    assert FIGURE_NAMES | head | asked | {"ledger-heads"} == set(RANGES)
    assert {known.sender for name, known in RANGES.items() if name in FIGURE_NAMES | head} == {"bank"}
    assert {known.sender for name, known in RANGES.items() if name not in FIGURE_NAMES | head} == {"coordinator"}
    assert RANGES["rows"].highest < 2**40


@pytest.mark.parametrize("name", RANGES)
def test_a_figure_at_either_end_of_its_range_arrives(name: str) -> None:
    for value in bounds_of(name):
        if (name, value) != ("rows", 0):
            assert arrives(name, value) == value


WRONG: dict[str, Any] = {
    "below": lambda name: RANGES[name].lowest - 1 if RANGES[name].kind is int else math.nextafter(RANGES[name].lowest,
        -math.inf),
    "above": lambda name: RANGES[name].highest + 1 if RANGES[name].kind is int else math.nextafter(RANGES[name].highest, math.inf),  # noqa: E501
    "far below": lambda name: RANGES[name].kind(-(2**62)),
    "far above": lambda name: 2**62 if RANGES[name].kind is int else 1.7e308,
    "NaN": lambda name: math.nan,
    "infinite": lambda name: math.inf,
    "minus infinite": lambda name: -math.inf,
    "a whole number as a fraction": lambda name: 2.0,
    "a fraction": lambda name: 1.5,
    "text": lambda name: "7",
    "a truth": lambda name: True,
    "a list": lambda name: [7, 7],
    "missing": lambda name: None,
}  # fmt: skip


def may_be(name: str, what: str) -> bool:
    """Whether such a value is right for this figure after all."""
    known, value = RANGES[name], WRONG[what](name)
    if what == "missing":
        return name in REVEALABLE
    if isinstance(value, str | list | bool):
        return False
    if known.kind is int and isinstance(value, float):
        return False
    return known.lowest <= value <= known.highest or (known.may_be_nan and math.isnan(value))


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", RANGES)
def test_a_figure_out_of_its_range_or_type_is_refused_by_name(name: str, what: str) -> None:
    value = WRONG[what](name)
    if name == "train_loss" and what == "NaN":
        assert rejected(reply(replace(FIGURES, train_loss=math.nan))).code == "not-finite"
        return
    if may_be(name, what) or (name == "silent" and value is None):  # a round that is not silent does not have it
        arrives(name, value)
        return
    with pytest.raises((RejectedReply, BankError)) as error:
        arrives(name, value)
    assert error.value.code == ("malformed" if RANGES[name].sender == "bank" else "config")
    assert name in str(error.value) or name.split("-")[-1] in str(error.value), "it is named"


def test_a_private_reply_must_have_its_three_figures_of_privacy() -> None:
    for name in ("epsilon_planned", "epsilon_spent", "delta"):
        with pytest.raises(RejectedReply, match="what its private steps have spent"):
            unpack_reply(reply(replace(FIGURES, **{name: math.nan}), ledger=HEAD), LAYOUT, 0, private=True)
    booked_as_infinite = replace(FIGURES, epsilon_spent=math.inf, epsilon_planned=math.inf)
    assert (
        unpack_reply(reply(booked_as_infinite, ledger=HEAD), LAYOUT, 0, private=True).figures.epsilon_spent == math.inf
    )


def numbers_of(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all numbers in a configuration."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += numbers_of(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(f"{prefix}{key}")
    return found


NUMBERS = numbers_of(to_plain(Config()))


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_of_the_configuration_that_is_none_is_refused_by_name(key: str) -> None:
    for text in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        str(10**400),
        "-" + str(10**400),
        '"7x"',
        "true",
        "[7]",
        "null",
    ):
        values = to_plain(REQUEST.config)
        *groups, name = key.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[name] = "HERE"
        with pytest.raises(BankError, match=name) as error:
            unpack_request(request_with(config=json.dumps(values).replace('"HERE"', text)))
        assert error.value.code == "config"


def test_a_pickled_array_is_refused_and_never_unpickled() -> None:
    objects = np.empty(10, dtype=object)
    objects[:] = [Bomb()] * 10
    Bomb.exploded = False
    for data in (npy(objects, allow_pickle=True), pickle.dumps(Bomb())):
        assert rejected(with_array(reply(), data)).code in ("malformed", "layout")
        assert rejected(with_array(reply(), data, dtype="object")).code in ("malformed", "layout")
    content = reply()
    content.array_records["delta"] = ArrayRecord(
        {ARRAY_KEY: Array(dtype="float32", shape=(10,), stype="pickle", data=pickle.dumps(Bomb()))}
    )
    assert rejected(content).code == "layout"
    assert not Bomb.exploded


@pytest.mark.parametrize("shape", [f"({10**15},)", f"({10**30},)", "(-1,)", "'ten'", "(10, 10**9)", "(", "1 if"])
def test_an_array_whose_header_promises_the_impossible_is_refused(shape: str) -> None:
    assert rejected(with_array(reply(), npy_header(shape))).code in ("malformed", "layout")


def test_a_zip_archive_in_place_of_an_array_is_refused() -> None:
    stream = io.BytesIO()
    np.savez(stream, vector=DELTA)
    assert rejected(with_array(reply(), stream.getvalue())).code in ("malformed", "layout")
    assert rejected(with_array(reply(), b"PK\x03\x04" + b"\0" * 60)).code in ("malformed", "layout")


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_reply_or_a_refusal(data: bytes) -> None:
    for start in (b"", b"\x93NUMPY\x01\x00", npy(DELTA)[:60], b"PK\x03\x04"):
        with contextlib.suppress(RejectedReply):
            found = unpack_reply(with_array(reply(), start + data), LAYOUT, 0)
            assert found.delta.shape == (10,)
            assert np.isfinite(found.delta).all()


@given(place=st.integers(0, 39), value=st.integers(0, 255))
def test_any_changed_byte_gives_a_reply_or_a_refusal(place: int, value: int) -> None:
    data = bytearray(DELTA.tobytes())
    data[place] = value
    try:
        found = unpack_reply(with_array(reply(), bytes(data)), LAYOUT, 0)
    except RejectedReply:
        return
    assert found.delta.dtype == np.float32
    assert found.delta.shape == (10,)


@pytest.mark.parametrize(("limit", "accepted"), [(0, True), (1e9, True), (3.0, True), (2.0, False)])
def test_the_norm_limit_is_a_limit_on_the_l2_norm_and_0_is_none(limit: float, accepted: bool) -> None:
    delta = np.zeros(10, np.float32)
    delta[:2] = (1.5, 2.0)
    if accepted:
        assert unpack_reply(reply(delta=delta), LAYOUT, limit).delta_norm == pytest.approx(2.5)
    else:
        assert "2.5" in str(rejected(reply(delta=delta), limit))


def test_a_norm_beyond_float32_is_refused_also_without_a_limit() -> None:
    found = rejected(reply(delta=np.full(10, 3e38, np.float32)), 0)
    assert (found.code, f"{math.sqrt(10) * 3e38:.4g}" in str(found)) == ("norm", True)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(SAFE_REASONS))
def test_an_error_travels_as_its_code_and_the_reader_has_the_sentence(code: str) -> None:
    content = over_the_wire(pack_error("bank-1", code))
    assert set(content.keys()) == {"reply"}
    assert dict(content.config_records["reply"]) == {
        "status": "error",
        "bank": "bank-1",
        "code": code,
    }
    refusal = rejected(content)
    assert (refusal.code, str(refusal)) == (code, SAFE_REASONS[code])


def test_an_unknown_code_leaves_the_bank_as_internal() -> None:
    secret = "row 17: Acme Corp will default /data/secret.jsonl"
    content = pack_error("bank-1", secret)
    assert content.config_records["reply"]["code"] == "internal"
    assert "Acme" not in json.dumps(dict(content.config_records["reply"]))


@pytest.mark.parametrize(
    ("key", "text", "code", "sentence"),
    [
        ("code", "acme-will-default", UNKNOWN, UNKNOWN_REASON),
        ("code", "<script>Acme Corp</script>", "malformed", "In the reply code is not written as it should be."),
        ("reason", "Acme Corp will default", "malformed", "In the reply a value of its head has an unknown name."),
        ("status", "Acme", "malformed", "In the reply status is not written as it should be."),
    ],
)
def test_no_text_of_a_banks_own_is_read_in_its_error(key: str, text: str, code: str, sentence: str) -> None:
    content = pack_error("bank-1", "data")
    content.config_records["reply"][key] = text
    refusal = rejected(content)
    assert (refusal.code, str(refusal)) == (code, sentence)


def test_a_bank_error_keeps_its_detail_at_home() -> None:
    error = BankError("data", "row 17: Acme Corp will default")
    assert "Acme" not in json.dumps(dict(pack_error("bank-1", error.code).config_records["reply"]))
    with pytest.raises(AssertionError):
        BankError("no such code", "")


def test_a_refusal_never_quotes_what_the_bank_sent() -> None:
    secret = "Acme Corp will default"
    contents = [reply(layout_id=secret)]
    content = reply()
    content.metric_records["figures"] = MetricRecord({secret: 1})
    contents.append(content)
    contents.append(with_array(reply(), secret.encode()))
    contents.append(with_array(reply(), npy(DELTA), dtype=secret))
    for content in contents:
        assert secret not in str(rejected(content))


# --- requests that a bank must not follow ---------------------------------------------------------


def refused(content: RecordDict) -> str:
    """The code of a bank's refusal of a request."""
    with pytest.raises(BankError) as error:
        unpack_request(content)
    return error.value.code


def request_with(**values: Any) -> RecordDict:
    content = pack_request(REQUEST)
    for key, value in values.items():
        content.config_records["request"][key.replace("_", "-")] = value
    return content


@pytest.mark.parametrize("run", ["", ".", "..", "/", "../other", "a/b", "/etc/cron.d", "run/"])
def test_a_run_name_that_leaves_its_folder_is_refused(run: str) -> None:
    assert refused(request_with(run=run)) == "config"


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '"text"',
        '{"train": 3}',
        '{"no_such_key": 1}',
        '{"peft": {"rank": -1}}',
        '{"peft": {"rank": "four"}}',
        '{"peft": {"method": "qlora"}, "model": {"quantization": "none"}}',
        "[" * 5000,
    ],
)
def test_a_configuration_that_does_not_validate_is_refused(config: str) -> None:
    assert refused(request_with(config=config)) == "config"


@pytest.mark.parametrize(
    "heads",
    [
        "",
        "[]",
        "3",
        "null",
        '{"bank-1": 7}',
        '{"bank-1": null}',
        '{"bank-1": {"number": 7}}',
        f'{{"bank-1": {{"number": -1, "hash": "{"a" * 64}"}}}}',
        f'{{"bank-1": {{"number": 7.5, "hash": "{"a" * 64}"}}}}',
        f'{{"bank-1": {{"number": true, "hash": "{"a" * 64}"}}}}',
        f'{{"bank-1": {{"number": 1e999, "hash": "{"a" * 64}"}}}}',
        f'{{"bank-1": {{"number": 7, "hash": "{"g" * 64}"}}}}',
        f'{{"bank-1": {{"number": 7, "hash": "{"a" * 64}", "more": 1}}}}',
        f'{{"../bank": {{"number": 7, "hash": "{"a" * 64}"}}}}',
        "[" * 5000,
    ],
)
def test_ledger_heads_that_are_none_are_refused(heads: str) -> None:
    assert refused(request_with(ledger_heads=heads)) == "config"


def test_rows_ledger_and_budget_share_one_code() -> None:
    assert "budget" not in SAFE_REASONS
    assert all(word in SAFE_REASONS["privacy"] for word in ("rows", "ledger", "budget", "does not say which"))


@pytest.mark.parametrize("key", ["config", "run", "round", "layout-id", "source-sha256"])
def test_a_request_without_one_of_its_values_is_refused(key: str) -> None:
    content = pack_request(REQUEST)
    del content.config_records["request"][key]
    assert refused(content) == "config"


@pytest.mark.parametrize("record", ["request", "adapter"])
def test_a_request_without_one_of_its_records_is_refused(record: str) -> None:
    content = pack_request(REQUEST)
    del content[record]
    assert refused(content) == "config"


@pytest.mark.parametrize("round_number", ["two", [1, 2], 0, -3])
def test_a_round_that_is_none_is_refused(round_number: Any) -> None:
    assert refused(request_with(round=round_number)) == "config"


@pytest.mark.parametrize(
    ("adapter", "code"),
    [
        (lambda: to_array(DELTA.astype(np.float64)), "layout"),
        (lambda: to_array(DELTA.reshape(2, 5)), "layout"),
        (lambda: Array("float32", (10,), "numpy.ndarray", npy(np.zeros(10**5, np.float32))), "layout"),
        (lambda: Array("float32", (10,), "numpy.ndarray", npy(DELTA.astype(np.float64))), "layout"),
        (lambda: Array("float32", (10,), "numpy.ndarray", npy(DELTA[:4])), "layout"),
        (lambda: Array("float32", (10,), "numpy.ndarray", npy(DELTA)[:-4]), "layout"),
        (lambda: Array("float32", (10,), "numpy.ndarray", npy_header(f"({10**15},)")), "layout"),
        (lambda: Array("float32", (10,), "pickle", pickle.dumps(Bomb())), "layout"),
        (lambda: to_array(changed(math.nan)), "adapter"),
        (lambda: to_array(changed(math.inf)), "adapter"),
    ],
)
def test_an_adapter_that_is_not_as_declared_is_refused(adapter: Any, code: str) -> None:
    content = pack_request(REQUEST)
    content.array_records["adapter"] = ArrayRecord({ARRAY_KEY: adapter()})
    Bomb.exploded = False
    assert refused(content) == code
    assert not Bomb.exploded
