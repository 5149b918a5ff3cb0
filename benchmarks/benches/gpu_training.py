"""Training in `bench gpu`: steps of drawn rows next to Hugging Face Trainer with PEFT, peak memory, a private step.

Limit: a frozen base costs 2 N floating-point operations a token forward and 2 N for the gradient of the inputs, N being
the numbers of the decoder's linear layers: no trainer computes more than rate / (4 N) tokens a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from benchmarks.benches.gpu_correctness import moved_adapter
from benchmarks.benches.gpu_setting import (
    SETS,
    TIMED_STEPS,
    WARM_UP_STEPS,
    config_of,
    median_seconds,
    rows_of,
)
from benchmarks.benches.gpu_trainer import trainer_step_seconds
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.packing import Example, in_order, make_tree
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.train.gradient_step import PassLimits, answer_loss, passes_of_step
from fedfinlora.train.loop import StepReport, Stretch, train
from fedfinlora.train.memory import (
    checkpoint_first,
    decoder_layers,
    own_checkpointing,
    peak_bytes,
    reset_peak,
)
from fedfinlora.train.row_order import groups_of, rows_of_step

PEAK_RATIO = (0.9, 1.15)
"""Predicted over measured peak memory of a pass."""
REFERENCE_TOKENS = 8192
"""Row tokens that Trainer's batch has at most; FinLoRA trains long rows one by one as well."""
CPU_SHARE = 0.05
"""Of the rows' lengths, where the command is tried without a GPU."""


def training(path: str, precision: str, device_name: str, rate: float) -> dict[str, Any]:
    """The section of one precision: each set of SETS, then peak memory, then a private step."""
    config = config_of(path, precision, device_name)
    session = get_session(config)
    moved_adapter(session, config)
    found: dict[str, Any] = {"load_s": round(session.load_s, 2), "sets": {}, "wrong": []}
    for name in ("short", "filings", "mixed"):
        found["sets"][name] = one = _set(session, config, name, rate)
        found["wrong"] += [f"{name}: {item}" for item in one.pop("wrong")]
    found["private"] = _private(session, config)
    found["shown"] = [_line(name, one) for name, one in found["sets"].items()]
    return found


def _line(name: str, one: dict[str, Any]) -> str:
    share = f", {one['share_of_limit']:.0%} of the limit" if "share_of_limit" in one else ""
    return (
        f"  {name}: {1000 * one['step_s']:.0f} ms a step, {one['row_tokens_per_s']:,.0f} row tokens a second, "
        f"{one['times_trainer']:.1f}x Trainer{share}"
    )


def _rows(session: Session, config: Config, name: str, steps: int) -> tuple[Example, ...]:
    share = 1.0 if session.device.type == "cuda" else CPU_SHARE
    return rows_of(name, cast(Any, session.model).config.vocab_size, config.seed, share, steps)


def _set(session: Session, config: Config, name: str, rate: float) -> dict[str, Any]:
    """Our steps and Trainer's on rows of a set."""
    steps = WARM_UP_STEPS + TIMED_STEPS
    rows_per_step = sum(part.rows * part.groups for part in SETS[name])
    rows = _rows(session, config, name, steps)
    ours, losses = _our_steps(session, config, rows, steps, rows_per_step)
    batch = _batch(config, rows, steps - 1, rows_per_step)
    step_s = statistics.median(ours[WARM_UP_STEPS:])
    tree = make_tree([row.read_ids for row in in_order(batch)])
    row_tokens = sum(len(row.read_ids) for row in batch)
    found: dict[str, Any] = {
        "step_s": step_s,
        "steps_s": ours,
        "rows": len(batch),
        "row_tokens": row_tokens,
        "computed_tokens": tree.tokens,
        "row_tokens_per_s": row_tokens / step_s,
        "computed_tokens_per_s": tree.tokens / step_s,
        "wrong": [] if all(map(_finite, losses)) else ["a loss is not finite"],
    }
    if rate and session.device.type == "cuda":
        found["limit_tokens_per_s"] = rate / (4 * decoder_numbers(session))
        found["share_of_limit"] = found["computed_tokens_per_s"] / found["limit_tokens_per_s"]
    found |= _memory(session, config, batch, found["wrong"])
    found |= _kernels(session, config, rows, rows_per_step)
    longest = max(len(row.read_ids) for row in batch)
    per_batch = max(1, min(len(batch), REFERENCE_TOKENS // longest))
    theirs = trainer_step_seconds(session, config, batch[:per_batch], steps)
    their_tokens = sum(len(row.read_ids) for row in batch[:per_batch])
    their_s = statistics.median(theirs[WARM_UP_STEPS:])
    found["trainer"] = {"steps_s": theirs, "rows": per_batch, "row_tokens_per_s": their_tokens / their_s}
    found["times_trainer"] = found["row_tokens_per_s"] / found["trainer"]["row_tokens_per_s"]
    return found


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _batch(config: Config, rows: Sequence[Example], step: int, rows_per_step: int) -> list[Example]:
    numbers = rows_of_step(step, len(rows), float(rows_per_step), config.seed, "bench", groups_of(rows))
    return [rows[number] for number in numbers]


def _our_steps(
    session: Session, config: Config, rows: Sequence[Example], steps: int, rows_per_step: int, first: int = 0
) -> tuple[list[float], list[float]]:
    """(seconds, loss) of each step of the training loop."""
    times: list[float] = []

    def on_step(report: StepReport) -> None:
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)
        times.append(time.perf_counter())

    started = time.perf_counter()
    stretch = Stretch(first, steps, first + steps, float(rows_per_step))
    result = train(session.model, rows, stretch, config.train, seed=config.seed, bank="bench", on_step=on_step)
    ends = [started, *times]
    return [after - before for before, after in zip(ends, times, strict=False)], list(result.step_losses)


def decoder_numbers(session: Session) -> int:
    """N: weights of the decoder's linear layers, the adapter's not among them."""
    config: Any = cast(Any, session.model).config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return int(config.num_hidden_layers * config.hidden_size * (heads * width + 3 * config.intermediate_size))


def _memory(session: Session, config: Config, batch: Sequence[Example], wrong: list[str]) -> dict[str, float]:
    """Peak of one pass over the batch's largest pack, next to its prediction; a GPU counts its tensors exactly."""
    if session.device.type != "cuda":
        return {}
    limits = PassLimits.of(session.model, config.train)
    layers = decoder_layers(session.model)
    parts = list(passes_of_step(batch, config.train, limits, session.device))
    part = max(parts, key=lambda one: one.pack.tokens)
    predicted = limits.footprint.pass_bytes(part.pack, part.checkpointed_layers)

    def once() -> None:
        answer_loss(session.model, part.pack).backward()  # type: ignore[no-untyped-call]

    with own_checkpointing(layers):
        session.model.train()
        checkpoint_first(layers, part.checkpointed_layers)
        once()  # gradients and workspaces that stay are there from now on
        reset_peak(session.device)
        before = torch.cuda.memory_allocated(session.device)
        once()
        measured = peak_bytes(session.device) - before
        session.model.zero_grad(set_to_none=True)
        session.model.eval()
    ratio = predicted / measured
    if not PEAK_RATIO[0] <= ratio <= PEAK_RATIO[1]:
        wrong.append(f"predicted / measured peak memory {ratio:.2f}, outside of {PEAK_RATIO[0]} to {PEAK_RATIO[1]}")
    return {
        "predicted_gib": predicted / 2**30,
        "measured_gib": measured / 2**30,
        "predicted_over_measured": ratio,
        "checkpointed_layers": part.checkpointed_layers,
        "passes": len(parts),
        "in_use_gib": before / 2**30,
    }


def _kernels(session: Session, config: Config, rows: Sequence[Example], rows_per_step: int) -> dict[str, Any]:
    """Kernels of a step, and how many shapes of attention it has that the step before had not."""
    from torch.profiler import ProfilerActivity, profile

    cuda = session.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    seen: list[set[str]] = []
    kernels = 0
    for step in (1, 2):
        with profile(activities=activities, record_shapes=True, acc_events=True) as found:
            _our_steps(session, config, rows, 1, rows_per_step, first=step)
        events = found.events() or []
        shapes = [event for event in events if "scaled_dot_product" in event.name or "flex_attention" in event.name]
        seen.append({f"{event.name}{event.input_shapes}" for event in shapes})
        kernels = sum(str(event.device_type).endswith("CUDA") for event in events)
    return {"new_attention_shapes": len(seen[1] - seen[0]), **({"kernels": kernels} if cuda else {})}


def _private(session: Session, config: Config) -> dict[str, float]:
    """Seconds of a step on 16 short rows with privacy=example, and of the same step without."""
    model = session.model
    rows = _batch(config, _rows(session, config, "short", 1), 0, 16)
    limits = PassLimits.of(model, config.train)
    units = tuple((place,) for place in range(len(rows)))
    mechanism = Mechanism(1.0, 1.0, 1.0, units, len(rows), config.seed, "bench")

    def private() -> None:
        private_step(model, rows, mechanism, 0, config.train.batch_tokens, limits.footprint, limits.memory_bytes)
        model.zero_grad(set_to_none=True)

    def plain() -> None:
        for part in passes_of_step(rows, config.train, limits, session.device):
            answer_loss(model, part.pack).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    model.train()
    try:
        found = {
            "step_s": median_seconds(session.device, private),
            "plain_step_s": median_seconds(session.device, plain),
        }
    finally:
        model.eval()
    return {**found, "times_plain": found["step_s"] / found["plain_step_s"]}
