"""`audit` under privacy=example and dp_lora: one bank that has the audit's rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.encode import encode_rows
from data.rows import Row
from fedfinlora.commands.audit_canaries import reader_view, server_view
from fedfinlora.commands.audit_ledger import ledger_probes
from fedfinlora.commands.audit_workbench import (
    Workbench,
    asked_of_the_bank,
    canary_rows,
    declared,
    float_rounding,
    one_step,
    with_noise,
)
from fedfinlora.config.schema import Config
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.packing import Example
from fedfinlora.privacy.accounting import default_delta
from fedfinlora.privacy.audit import CANARIES, LEDGER, NOISE, SENSITIVITY, Check
from fedfinlora.privacy.canary_audit import Claim, canary_check
from fedfinlora.privacy.dp_lora import SENSITIVITY as PUBLISHED_SENSITIVITY
from fedfinlora.privacy.ledger_audit import ledger_check
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.privacy.noise_audit import Draws, NoiseTest, measured_again, noise_check, noise_tests
from fedfinlora.privacy.sensitivity_audit import Replay, sensitivity_check
from fedfinlora.train.gradient_step import PassLimits

SERVER, READER = "the server, from each gradient", "who reads the final adapter"
ROW_CANARIES = 200
"""At most so many canary rows: training on them takes time, and the reader's view shows little."""
OTHER_ROWS = 16
"""Rows of the replay besides the unit that is there or not."""
CUSTOMER_ROWS = 6
"""Of the audit's own customer."""
CLIPS = (1.0, 0.01)
"""Clip norms of the replay, over the run's: with the smaller one every row is clipped."""
WIDE_CLIP = 1e3
"""Of the noise test, over the run's: next to such noise rows and dropout weigh nothing."""
DRAW_TRIALS, DRAW_STEPS = 500, 4


def row_checks(config: Config, chosen: Sequence[str], canaries: int, confidence: float) -> Iterator[Check]:
    """The chosen checks, in this order, one at a time."""
    with tempfile.TemporaryDirectory(prefix="fedfinlora-audit-") as place:
        bench = Workbench.of(config, Path(place))
        make = {
            SENSITIVITY: lambda: sensitivity_check(replays(bench)),
            NOISE: lambda: measured_again(lambda: noise_check(noise_of_a_step(bench), draws_of_steps(bench))),
            CANARIES: lambda: canaries_of_a_run(bench, canaries, confidence),
            LEDGER: lambda: ledger_check(ledger_probes(bench)),
        }
        for name in chosen:
            yield make[name]()


# --- sensitivity ----------------------------------------------------------------------------------


def replays(bench: Workbench) -> list[Replay]:
    """The same step with and without each unit to try, in training mode; draws, noise and masks repeat."""
    sensitivity = PUBLISHED_SENSITIVITY if bench.config.privacy.mode == "dp_lora" else 1.0
    own = {"reproducible_noise": True, "ledger_folder": bench.folder / "replay-ledger"}
    found = []
    for place, (words, unit, others) in enumerate(units_to_try(bench)):
        count = len(others) + len(unit)
        banks = [
            bench.bank(rows, f"replay-{place}-{name}", declared_rows=declared(count), **own)
            for name, rows in (("with", [*others, *unit]), ("without", others))
        ]
        for clip in CLIPS:
            clip_norm = clip * bench.config.privacy.clip_norm
            asked = with_noise(one_step(bench.config, count, clip_norm))
            deltas = [bench.ask(asked, facts, bench.somewhere, run=f"clip-{clip}").delta for facts in banks]
            moved = float(np.linalg.norm(deltas[0].astype(np.float64) - deltas[1])) / sensitivity
            rounding = float_rounding(bench.somewhere, deltas[0]) / sensitivity
            found.append(Replay(f"{words}, clip norm {clip_norm:g}", moved, rounding))
    return found


def units_to_try(bench: Workbench) -> list[tuple[str, list[Row], list[Row]]]:
    """(in words, the unit's rows, others' rows). The unit comes last: its number, which decides its masks, is its
    place.
    """
    by_customer = bench.config.privacy.unit == "customer"
    units: dict[str, list[Row]] = {}
    for number, row in enumerate(bench.own):
        units.setdefault(row.issuer.casefold() if by_customer else str(number), []).append(row)
    ordered = sorted(units.values(), key=lambda rows: sum(_tokens(bench, row) for row in rows))
    what = "customer" if by_customer else "row"
    strange = canary_rows(CUSTOMER_ROWS if by_customer else 1, bench.draw, bench.task, customer="audit")
    tried = {
        f"the shortest {what}": ordered[0],
        f"the longest {what}": ordered[-1],
        f"a {what} of middle length": ordered[len(ordered) // 2],
        f"a {what} of random letters": strange,
    }
    found = []
    for words, unit in tried.items():
        rest = [rows for rows in units.values() if rows is not unit]
        chosen = [rest[place] for place in bench.draw.permutation(len(rest))]
        others = [row for rows in chosen for row in rows][:OTHER_ROWS]
        found.append((words, unit, others or canary_rows(1, bench.draw, bench.task, customer="other")))
    return found


def _tokens(bench: Workbench, row: Row) -> int:
    return len(bench.session.tokenizer(row.prompt)["input_ids"])


# --- noise ----------------------------------------------------------------------------------------


def noise_of_a_step(bench: Workbench) -> tuple[NoiseTest, ...]:
    """Two runs of the same step of two rows, with fresh noise each, against the noise that the bank books."""
    asked = one_step(bench.config, 2, WIDE_CLIP * bench.config.privacy.clip_norm)
    rows = canary_rows(2, bench.draw, bench.task)
    facts = bench.bank(rows, "noise", declared_rows=declared(2), ledger_folder=bench.folder / "noise-ledger")
    one, other = (bench.ask(asked, facts, bench.start, number).delta.astype(np.float64) for number in (1, 1))
    planned = bench.plan(asked, facts)
    noise_std = planned.of_round.noise_multiplier * planned.mechanism.sensitivity
    difference = (one - other).astype(np.float32)
    return noise_tests(difference, noise_std, bench.session.layout.views(difference))


def draws_of_steps(bench: Workbench) -> Draws | None:
    """How many of many tiny rows the bank's steps draw; None where every row is in every step."""
    facts = bench.bank(bench.own, "own", ledger_folder=bench.folder / "draws-ledger")
    mechanism = bench.plan(with_noise(asked_of_the_bank(bench.config)), facts).mechanism
    if not isinstance(mechanism, Mechanism) or mechanism.sampling_rate == 1:
        return None
    row = encode_rows(bench.session.tokenizer, bench.own[:1], context_tokens(bench.config.model)).examples[0]
    tiny = [Example(row.prompt_ids[:1], row.answer_ids[:1])] * DRAW_TRIALS
    many = replace(mechanism, units=tuple((place,) for place in range(DRAW_TRIALS)))
    limits, train = PassLimits.of(bench.session.model, bench.config.train), bench.config.train
    drawn = 0
    for step in range(DRAW_STEPS):
        done = private_step(
            bench.session.model, tiny, many, step, train.batch_tokens, limits.footprint, limits.memory_bytes
        )
        drawn += len(done.examples)
    bench.session.model.zero_grad(set_to_none=True)
    return Draws(drawn, DRAW_STEPS * DRAW_TRIALS, mechanism.sampling_rate)


# --- canaries -------------------------------------------------------------------------------------


def canaries_of_a_run(bench: Workbench, canaries: int, confidence: float) -> Check:
    """The reader's view of canary rows, and under privacy=example the server's of gradient canaries."""
    rows = canary_rows(min(canaries, ROW_CANARIES), bench.draw, bench.task)
    included = bench.draw.random(len(rows)) < 0.5
    facts = bench.bank([*bench.own, *(row for row, is_in in zip(rows, included, strict=True) if is_in)], "canaries")
    seen, figures = reader_view(bench, facts, rows, included)
    views = {READER: seen}
    if bench.config.privacy.mode == "none" or not math.isfinite(figures.epsilon_spent):
        return canary_check(views, Claim((), math.inf, default_delta(len(bench.own))), confidence)
    planned = bench.plan(asked_of_the_bank(bench.config), facts)
    claim = Claim((planned.of_run,), figures.epsilon_spent, figures.delta)
    if isinstance(planned.mechanism, Mechanism):
        views = {SERVER: server_view(bench, planned.mechanism, planned.of_run.count, canaries), **views}
    return canary_check(views, claim, confidence)
