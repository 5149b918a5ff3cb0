"""What crosses the network: the server's request and a bank's reply, packed into Flower records and checked on arrival.

A request holds the global adapter as one float32 array, and the newest head of the bank's privacy ledger that the
server has seen; a reply holds the delta in the same layout, a fixed list of figures, and the ledger's head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.config.values import build, to_json
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout, Vector, norm
from fedfinlora.model.block_means import NO_MEANS, fault_in, from_text, to_text
from fedfinlora.model.parts import Part
from fedfinlora.privacy.head import SHA256, Head
from fedfinlora.wire.form import LONGEST_RUN_NAME, PLAIN_NAME, reply_fault, request_fault
from fedfinlora.wire.ranges import FigureError, checked
from fedfinlora.wire.reasons import SAFE_REASONS, UNKNOWN, reason_of
from fedfinlora.wire.vectors import ARRAY_KEY, from_arrays, to_arrays

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

BANK_NAME = PLAIN_NAME
MOST_NORM = 1e8
"""Of a delta, also without strategy.max_update_norm: one that is longer could only be made to end the run in
infinities.
"""


class BankError(UserError):
    """A failure at a bank with one of the codes of `fedfinlora.wire.reasons`; the detail stays in the bank's log."""

    def __init__(self, code: str, detail: str, rule: str = "") -> None:
        assert code in SAFE_REASONS
        super().__init__(detail)
        self.code = code
        self.rule = rule or code.removeprefix("policy-")
        """The setting of bank.yaml that refuses, where one does: under the code `privacy` it stays at the bank."""


class RejectedReply(Exception):
    """A reply that must not be averaged. `code` is fixed; the message never has content."""

    def __init__(self, code: str, reason: str, said_by_bank: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.said_by_bank = said_by_bank
        """The bank itself answered with an error; otherwise the server found fault with its answer."""


@dataclass(frozen=True)
class TrainRequest:
    """What a bank is asked to do in one round."""

    config: Config
    run: str
    round: int
    """From 1."""
    layout_id: str
    source_sha256: str
    adapter: Vector
    """(size,) float32: the global adapter. (0,) where the bank resumes from its own (strategy.sync=drift)."""
    ledger_heads: Mapping[str, Head] = field(default_factory=dict)
    """Bank -> the newest head of its privacy ledger that the server has seen, in any run: the bank's own ledger must
    still have that line."""
    silent: bool = False
    """strategy.sync=drift: the bank keeps its update, and sends how far its adapter is from the last global one."""
    second_moments: Vector = field(default_factory=NO_MEANS.copy, compare=False)
    """strategy=fedadamw_local: (tensors,) float32, one mean for each tensor; (0,) where they start at zero."""


@dataclass(frozen=True)
class Figures:
    """The figures of a reply: the whole of what a bank says about its work."""

    rows: int
    """Rows trained on in this round (repeats counted)."""
    steps: int
    """Optimiser steps taken."""
    tokens: int
    answer_tokens: int
    train_loss: float
    holdout_rows: int
    holdout_loss: float
    """Of the received global adapter on held-out rows; NaN when not measured."""
    train_s: float
    load_s: float
    """Time spent loading the base model for this message; 0 when the process had it."""
    bank_rows: int
    """Rows that the bank trains on at all."""
    skipped_rows: int
    """Lines and rows that the bank could not use: bad ones in its files and those too long for the context window."""
    epsilon_planned: float = math.nan
    """Of this run, when all of its rounds are done; NaN without privacy."""
    epsilon_spent: float = math.nan
    """On the bank's data so far, over all runs in its ledger."""
    delta: float = math.nan
    """With what probability these promises may fail."""

    @classmethod
    def withheld(cls, steps: int, load_s: float, epsilon_planned: float, epsilon_spent: float, delta: float) -> Figures:
        """What a bank under example-level privacy says."""
        return cls(
            rows=0, steps=steps, tokens=0, answer_tokens=0, train_loss=math.nan, holdout_rows=0, holdout_loss=math.nan,
            train_s=0.0,
            load_s=load_s, bank_rows=0, skipped_rows=0, epsilon_planned=epsilon_planned, epsilon_spent=epsilon_spent,
            delta=delta,
        )  # fmt: skip


NOT_SENT = asdict(Figures.withheld(0, 0.0, math.nan, math.nan, math.nan))
"""In the place of a figure that was not reported."""
ALWAYS_SENT = ("steps", "epsilon_planned", "epsilon_spent", "delta")
"""Figures without which a reply says nothing: that work was done, and what it promises."""
REVEALABLE = tuple(item.name for item in fields(Figures) if item.name not in ALWAYS_SENT)
"""Figures that a bank's policy may withhold; they are then not in the reply."""


@dataclass(frozen=True)
class Reply:
    """A checked reply."""

    bank: str
    delta: Vector
    """(size,) float32, finite."""
    figures: Figures
    delta_norm: float
    policy_sha256: str = ""
    """The hash of the bank's settings and policy; "" where it has none."""
    withheld: tuple[str, ...] = ()
    """Figures that the bank did not send; they are 0 or NaN."""
    ledger: Head | None = None
    """Of the bank's privacy ledger, with this round's line; None where the round was not booked."""
    sent_bytes: int = 0
    """Of the delta as it came: fewer than `delta` has where the round sends a part of it."""
    second_moments: Vector = field(default_factory=NO_MEANS.copy, compare=False)
    """strategy=fedadamw_local: (tensors,) float32, the mean of each tensor's second moments after the round."""


def pack_request(request: TrainRequest) -> RecordDict:
    """Server side: the request with every ledger head that it has."""
    from flwr.app import ArrayRecord, RecordDict

    return RecordDict(
        {"request": _request_record(request, request.ledger_heads), "adapter": ArrayRecord(to_arrays(request.adapter))}
    )


def pack_requests(request: TrainRequest, banks: Iterable[str]) -> dict[str, RecordDict]:
    """Server side: one request for each bank, all with the same adapter in memory, each with that bank's ledger head
    alone.
    """
    from flwr.app import ArrayRecord, RecordDict

    adapter, heads = ArrayRecord(to_arrays(request.adapter)), request.ledger_heads
    return {
        bank: RecordDict(
            {"request": _request_record(request, {bank: heads[bank]} if bank in heads else {}), "adapter": adapter}
        )
        for bank in banks
    }


def _request_record(request: TrainRequest, heads: Mapping[str, Head]) -> ConfigRecord:
    from flwr.app import ConfigRecord

    return ConfigRecord(
        {
            "config": to_json(request.config),
            "run": request.run,
            "round": request.round,
            "layout-id": request.layout_id,
            "source-sha256": request.source_sha256,
            **({"silent": 1} if request.silent else {}),
            **_means_in_head(request.second_moments),
            "ledger-heads": json.dumps({bank: asdict(head) for bank, head in sorted(heads.items())}, allow_nan=False),
        }
    )


def _means_in_head(means: Vector) -> dict[str, str]:
    return {"second-moments": to_text(means)} if means.size else {}


def check_request_form(content: RecordDict) -> None:
    """BankError where a request has names or lengths that none may have."""
    if fault := request_fault(content):
        raise BankError("config", f"unusable request: {fault}")


def check_reply_form(content: RecordDict) -> None:
    """RejectedReply where a reply has names, texts or a code that none may have."""
    if fault := reply_fault(content, NOT_SENT):
        raise RejectedReply("malformed", f"In the reply {fault}.")
    code = str(dict(content.config_records.get("reply", {})).get("code", "internal"))
    if code not in SAFE_REASONS:
        raise RejectedReply(UNKNOWN, reason_of(code), said_by_bank=True)


def unpack_request(content: RecordDict) -> TrainRequest:
    """Bank side. BankError for anything that is not as `pack_request` makes it."""
    check_request_form(content)
    try:
        values = content.config_records["request"]
        config = build(json.loads(str(values["config"])))
        run, round_number, layout_id = (
            str(values["run"]),
            checked("round", values.get("round")),
            str(values["layout-id"]),
        )
        source = str(values["source-sha256"])
        silent = bool(checked("silent", values.get("silent", 0)))
        heads = _ledger_heads(str(values.get("ledger-heads", "{}")))
        moments = from_text(str(values.get("second-moments", "")))
        arrays = content.array_records["adapter"]
        _ = arrays[ARRAY_KEY]
        size = sum(int(array.shape[0]) for array in arrays.values())
    except (KeyError, IndexError, ValueError, TypeError, RecursionError, UserError) as error:
        raise BankError("config", f"unusable request: {error}") from error
    if (
        not run
        or "/" in run
        or run in (".", "..")
        or not run.isprintable()
        or len(run.encode("utf-8", "replace")) > LONGEST_RUN_NAME
    ):
        raise BankError("config", "unusable run name in the request")
    if not 1 <= round_number <= config.num_server_rounds:
        raise BankError("config", f"round {round_number} in the request")
    try:
        vector = from_arrays(arrays, size)
    except ValueError as error:
        raise BankError("layout", f"unusable adapter array: {error}") from error
    if not np.isfinite(vector).all():
        raise BankError("adapter", "the received adapter is not finite")
    return TrainRequest(config, run, round_number, layout_id, source, vector, heads, silent, moments)


def _ledger_heads(text: str) -> dict[str, Head]:
    """Bank -> head. ValueError or TypeError for anything else."""
    values = json.loads(text)
    if not isinstance(values, dict) or not all(BANK_NAME.fullmatch(name) for name in values):
        raise ValueError("ledger-heads")
    return {
        name: Head(**{**head, "number": checked("ledger-heads", dict(head).get("number"))})
        for name, head in values.items()
    }


def pack_reply(
    bank: str,
    layout_id: str,
    delta: Vector,
    figures: Figures,
    policy_sha256: str = "",
    reveal: Sequence[str] = REVEALABLE,
    ledger: Head | None = None,
    second_moments: Vector = NO_MEANS,
) -> RecordDict:
    """Bank side. Figures that are not in `reveal` stay at the bank; `ledger` is the head with this round's line."""
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    head: dict[str, Any] = {"status": "ok", "bank": bank, "layout-id": layout_id, "policy-sha256": policy_sha256}
    if ledger is not None:
        head |= {"ledger-number": ledger.number, "ledger-hash": ledger.hash}
    head |= _means_in_head(second_moments)
    return RecordDict(
        {
            "reply": ConfigRecord(head),
            "delta": ArrayRecord(to_arrays(delta)),
            "figures": MetricRecord(
                {name: value for name, value in asdict(figures).items() if name in (*ALWAYS_SENT, *reveal)}
            ),
        }
    )


def pack_error(bank: str, code: str) -> RecordDict:
    """Bank side: the only way in which an error leaves a bank."""
    from flwr.app import ConfigRecord, RecordDict

    code = code if code in SAFE_REASONS else "internal"
    return RecordDict({"reply": ConfigRecord({"status": "error", "bank": bank, "code": code})})


def unpack_reply(
    content: RecordDict,
    layout: Layout,
    max_update_norm: float,
    private: bool = False,
    needs_rows: bool = True,
    part: Part | None = None,
    clip_norm: float | None = None,
) -> Reply:
    """Server side: check one reply; RejectedReply says why it must not be averaged.

    Sizes are checked before the array is made, the norm in float64. `max_update_norm` 0 means MOST_NORM. A `private`
    reply withholds rows and losses and says what it has spent; without `needs_rows` a bank may withhold rows. `part`:
    all that a round sends; the rest is zero. `clip_norm`: train.clip_norm where the reply has second moments, else
    None.
    """
    check_reply_form(content)
    try:
        head = content.config_records["reply"]
        bank = str(head["bank"])
        if head["status"] != "ok":
            code = str(head.get("code", "internal"))
            raise RejectedReply(code, reason_of(code), said_by_bank=True)
        layout_id, policy_sha256 = head["layout-id"], str(head.get("policy-sha256", ""))
        if policy_sha256 and not SHA256.fullmatch(policy_sha256):
            raise ValueError("policy-sha256")
        ledger = _ledger_head(head)
        moments = from_text(str(head.get("second-moments", "")))
        arrays = content.array_records["delta"]
        _ = arrays[ARRAY_KEY]
        figures, withheld = read_figures(dict(content.metric_records["figures"]), private)
    except FigureError as error:
        raise RejectedReply("malformed", f"In the reply {error}.") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RejectedReply("malformed", f"The reply lacks or garbles something ({type(error).__name__}).") from error
    if layout_id != layout.id:
        raise RejectedReply("layout", f"The delta has another layout than {layout.id}.")
    sent = _finite(arrays, part.size if part else layout.size)
    delta = part.whole(sent) if part else sent
    _check_figures(figures, withheld, ledger, private, needs_rows)
    length = norm(delta)
    if length > (max_update_norm or MOST_NORM):
        limit = (
            f"strategy.max_update_norm={max_update_norm:g}"
            if max_update_norm
            else f"{MOST_NORM:g}, which no training gives"
        )
        raise RejectedReply("norm", f"The delta's norm is {length:.4g}, more than {limit}.")
    if clip_norm is None and moments.size:
        raise RejectedReply("malformed", "The reply has second moments, and no one asked for them.")
    if clip_norm is not None and (fault := fault_in(moments, layout, clip_norm)):
        raise RejectedReply("moments", f"The second moments are not as agreed: {fault}.")
    return Reply(bank, delta, figures, length, policy_sha256, withheld, ledger, sent.nbytes, moments)


def _finite(arrays: ArrayRecord, size: int) -> Vector:
    """The numbers of a reply, (size,) float32. RejectedReply for others."""
    try:
        sent = from_arrays(arrays, size)
    except ValueError as error:
        raise RejectedReply("layout", f"The delta is not as agreed: {error}.") from error
    if not np.isfinite(sent).all():
        raise RejectedReply("not-finite", f"{int((~np.isfinite(sent)).sum())} of {size} numbers are NaN or infinite.")
    return sent


def _check_figures(
    figures: Figures, withheld: Sequence[str], ledger: Head | None, private: bool, needs_rows: bool
) -> None:
    """RejectedReply where the figures do not say what the round needs."""
    if private:
        if any(map(math.isnan, (figures.epsilon_spent, figures.epsilon_planned, figures.delta))):
            raise RejectedReply("malformed", "The bank does not say what its private steps have spent.")
        if ledger is None:
            raise RejectedReply("malformed", "The bank does not say where its privacy ledger is.")
    elif figures.rows == 0 and (needs_rows or "rows" not in withheld):
        raise RejectedReply("no-rows", f"The bank says that it trained on 0 rows in {figures.steps} steps.")
    elif "train_loss" not in withheld and math.isnan(figures.train_loss):
        raise RejectedReply("not-finite", "The bank's training loss is not finite.")


def _ledger_head(values: Mapping[str, Any]) -> Head | None:
    """The head in a reply. ValueError or KeyError for half of one."""
    if "ledger-number" not in values and "ledger-hash" not in values:
        return None
    return Head(checked("ledger-number", values.get("ledger-number")), values["ledger-hash"])


def read_figures(values: Mapping[str, Any], private: bool) -> tuple[Figures, tuple[str, ...]]:
    """(what is read of a reply's figures, names of those that were withheld); of a `private` reply nothing that its
    rows decide. FigureError.
    """
    withheld = tuple(name for name in REVEALABLE if name not in values)
    found = Figures(
        **{
            item.name: NOT_SENT[item.name] if item.name in withheld else checked(item.name, values.get(item.name))
            for item in fields(Figures)
        }
    )
    if private:
        found = Figures.withheld(found.steps, found.load_s, found.epsilon_planned, found.epsilon_spent, found.delta)
    return found, withheld
