"""`bench train --rows xbrl`: one optimiser step on many questions on one XBRL filing, and a loop that takes the same
rows one by one.

Both start each turn from the same adapter, without dropout or clipping, make logits at answer positions only and divide
by the answer tokens of the step. The loop's time is linear in its rows, so it takes a few of them; its gradient is
compared with ours on the same few.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.benches.paired import judged
from data.encode import encode_rows
from data.sources import load_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector, trainable, write_adapter
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.model.packing import Example, common_prefix_tokens, in_order, make_pack
from fedfinlora.seeds import generator
from fedfinlora.train.loop import Stretch, train
from fedfinlora.train.memory import peak_bytes, reset_peak
from fedfinlora.train.row_order import LONG_BEGINNING_TOKENS

if TYPE_CHECKING:
    from torch import nn

TASK = "xbrl_tags_extract"
FEWEST_ROWS = 16
"""Fewer questions on a filing share too little of it for the comparison that is meant."""
REFERENCE_ROWS = 4
TURNS = 4


@dataclass(frozen=True)
class _Step:
    """One optimiser step, by whichever of the two."""

    tokens: int
    seconds: float
    peak_gib: float
    loss: float
    gradient: Vector
    """(layout.size,) float32."""
    checkpointed_layers: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def bench_filing(overrides: Sequence[str]) -> dict[str, Any]:
    """Tokens a second of both, their ratio and how far their gradients differ."""
    given = compose(overrides)
    config = replace(
        given,
        peft=replace(given.peft, dropout=0.0),
        train=replace(
            given.train, optimizer="adamw", schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0
        ),
        dataset=replace(given.dataset, tasks=(TASK,)),
    )
    session = get_session(config)
    rows = _rows_of_a_filing(config, session)
    few = rows[:REFERENCE_ROWS]
    start = initial_adapter(session, config)
    # Away from where B is zero and with it every gradient of A.
    start += generator(config.seed, "bench").normal(0.0, 0.01, start.size).astype(np.float32)
    shared = make_pack(rows).tokens
    print(
        f"{len(rows)} rows of one filing, {_tokens(rows)} tokens, {shared} once what they share is there once",
        flush=True,
    )
    beginning = min(common_prefix_tokens(rows[0].read_ids, row.read_ids) for row in rows)
    if beginning < LONG_BEGINNING_TOKENS:
        print(
            (
                f"note: the rows have only {beginning} tokens in common, those of real filings thousands: the ratio "
                "says "
                "little"
            ),
            flush=True,
        )
    _ours(session, config, few[:1], start)  # caches and thread pools warm up
    ours: list[_Step] = []
    theirs: list[_Step] = []
    for turn in range(TURNS):
        sides = [
            lambda: ours.append(_ours(session, config, rows, start)),
            lambda: theirs.append(_row_by_row(session, config, few, start)),
        ]
        for side in sides[:: -1 if turn % 2 else 1]:
            side()
        print(
            f"turn {turn + 1} of {TURNS}: ours {ours[-1].tokens_per_s:.0f} tokens/s ({len(rows)} rows, "
            f"{ours[-1].seconds:.1f} s), "
            f"row by row {theirs[-1].tokens_per_s:.0f} tokens/s ({len(few)} rows, {theirs[-1].seconds:.1f} s)",
            flush=True,
        )
    same = _ours(session, config, few, start)
    difference, by_tensor = _differences(session, same.gradient, theirs[-1].gradient)
    return {
        **judged(*([1 / step.tokens_per_s for step in steps] for steps in (ours, theirs))),
        "ours": {**_figures(ours), "checkpointed_layers": max(step.checkpointed_layers for step in ours)},
        "reference": {"name": "the same rows one after the other, batch 1, gradients accumulated", **_figures(theirs)},
        "differs": {
            "gradient_relative": difference,
            "gradient_relative_of_the_worst_tensor": by_tensor,
            "loss_relative": abs(same.loss - theirs[-1].loss) / abs(theirs[-1].loss),
        },
        "rows": len(rows),
        "reference_rows": len(few),
        "tokens": _tokens(rows),
        "tokens_read": shared,
        "tokens_in_common": beginning,
        "turns": TURNS,
        "task": TASK,
        "model": config.model.name,
        "quantization": config.model.quantization,
        "dataset": config.dataset.source,
    }


def _rows_of_a_filing(config: Config, session: Session) -> list[Example]:
    """train.batch_rows questions on one filing, both drawn by the run's seed; at least FEWEST_ROWS."""
    loaded = load_rows(config.dataset, "train", (TASK,), config.seed).rows
    ordered = in_order(encode_rows(session.tokenizer, loaded, context_tokens(config.model)).examples)
    filings: list[list[Example]] = [ordered[:1]] if ordered else []
    for before, row in itertools.pairwise(ordered):
        common = common_prefix_tokens(before.read_ids, row.read_ids)
        if common > 0.5 * max(len(before.read_ids), len(row.read_ids)):
            filings[-1].append(row)
        else:
            filings.append([row])
    wanted = max(FEWEST_ROWS, config.train.batch_rows)
    most = max(map(len, filings), default=0)
    if config.dataset.source == "sample" and 0 < most < wanted:
        print(f"note: the bundled sample's filings have {most} rows at most: the ratio says little", flush=True)
        wanted = most
    enough = [filing for filing in filings if len(filing) >= wanted]
    if not enough:
        raise UserError(
            f"No filing has {wanted} {TASK} train rows (the most is {most}). Set dataset=finlora dataset.root=DIR to a "
            "folder with "
            f"XBRL train rows, or a smaller train.batch_rows, from {FEWEST_ROWS} on."
        )
    draw = generator(config.seed, "bench", "filing")
    filing = enough[int(draw.integers(len(enough)))]
    return [filing[place] for place in draw.permutation(len(filing))[:wanted]]


def _ours(session: Session, config: Config, rows: Sequence[Example], start: Vector) -> _Step:
    write_adapter(session.model, start)
    reset_peak(session.device)
    stretch = Stretch(0, 1, 1, float(len(rows)))
    result = train(session.model, rows, stretch, config.train, seed=config.seed, bank="bench")
    gradient = result.optimizer.first_moment / np.float32(
        1 - config.train.beta1
    )  # Adam's, after one step without clipping
    peak_gib = peak_bytes(session.device) / 2**30
    return _Step(_tokens(rows), result.wall_s, peak_gib, result.loss, gradient, result.checkpointed_layers)


def _row_by_row(session: Session, config: Config, rows: Sequence[Example], start: Vector) -> _Step:
    import torch

    model: nn.Module = session.model
    write_adapter(model, start)
    parameters = list(trainable(model).values())
    settings = config.train
    update = torch.optim.AdamW(parameters, settings.learning_rate, (settings.beta1, settings.beta2), weight_decay=0.0)
    answers = sum(len(row.answer_ids) for row in rows)
    reset_peak(session.device)
    started = time.monotonic()
    model.train()
    total = 0.0
    for row in rows:
        token_ids = torch.tensor([row.read_ids], device=session.device)
        logits = model(input_ids=token_ids, logits_to_keep=len(row.answer_ids), use_cache=False).logits[0].float()
        wanted = torch.tensor(row.answer_ids, device=session.device)
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / answers
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    gradient = torch.cat([parameter.grad.reshape(-1).float().cpu() for parameter in parameters]).numpy()  # type: ignore[union-attr]
    update.step()
    seconds = time.monotonic() - started
    update.zero_grad(set_to_none=True)
    model.eval()
    return _Step(_tokens(rows), seconds, peak_bytes(session.device) / 2**30, total, gradient, 0)


def _differences(session: Session, one: Vector, other: Vector) -> tuple[float, float]:
    """|one - other| / |other| of the whole gradient and of the tensor in which it is largest."""
    views, others = session.layout.views(one), session.layout.views(other)
    worst = max(float(np.linalg.norm(views[name] - view) / np.linalg.norm(view)) for name, view in others.items())
    return float(np.linalg.norm(one - other) / np.linalg.norm(other)), worst


def _figures(steps: Sequence[_Step]) -> dict[str, Any]:
    return {
        "tokens_per_s": statistics.median(step.tokens_per_s for step in steps),
        "seconds": [step.seconds for step in steps],
        "peak_gib": max(step.peak_gib for step in steps),
    }


def _tokens(rows: Sequence[Example]) -> int:
    """Tokens of prompts and answers, each row counted in full."""
    return sum(len(row.prompt_ids) + len(row.answer_ids) for row in rows)
