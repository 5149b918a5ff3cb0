"""`bench private-step`: one step with and without privacy=example on the same rows, alternating, and Opacus's plain
hooks next to them.

Every step is a forward and a backward pass over the same rows from the same adapter, without the optimiser. The private
one clips on the integer grid and adds discrete Gaussian noise. The plain step is timed twice: with shared prefixes, as
training runs without privacy (`ratio`), and without them (`ratio_to_unshared`). Opacus takes the rows as one
right-padded batch, keeps a gradient of every row, and clips and adds noise by its DPOptimizer.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.benches.paired import judged
from data.encode import encode_rows
from data.sources import load_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import trainable, write_adapter
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.model.packing import Example
from fedfinlora.privacy.mechanism import NEIGHBOUR_SHARE, Mechanism, private_step
from fedfinlora.seeds import generator
from fedfinlora.train.gradient_step import PassLimits, answer_loss, packs_of_step
from fedfinlora.train.memory import peak_bytes, reset_peak

if TYPE_CHECKING:
    import torch

TURNS = 8
CLIP_NORM = 0.1
"""Low enough that every row is clipped, so that a difference in clipping would show."""
NAMES = ("private", "plain", "plain, shared prefixes", "Opacus hooks")


def bench_private(overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds a step of each, the ratio of private to plain, the difference of the clipped gradient from Opacus's, and
    peaks of memory.
    """
    given = compose(overrides)
    config = replace(given, peft=replace(given.peft, dropout=0.0), dataset=replace(given.dataset, tasks=("fpb",)))
    session = get_session(config)
    batch = _batch(session, config)
    count = len(batch)
    start = initial_adapter(session, config)
    # B is zero at the start, and so is the gradient of A: a little way from it both count.
    start += generator(config.seed, "bench adapter").normal(0.0, 0.01, start.size).astype(start.dtype)
    write_adapter(session.model, start)
    limits = PassLimits.of(session.model, config.train)

    def private(noise: float = 1.0) -> None:
        units = tuple((place,) for place in range(count))
        mechanism = Mechanism(CLIP_NORM, 1.0, noise, units, count, config.seed, "bench")
        private_step(
            session.model, batch, mechanism, 0, config.train.batch_tokens, limits.footprint, limits.memory_bytes
        )

    def plain(share: bool) -> None:
        answers = sum(len(example.answer_ids) for example in batch)
        for pack in packs_of_step(batch, replace(config.train, share_prefix=share), session.device):
            (answer_loss(session.model, pack) / answers).backward()  # type: ignore[no-untyped-call]

    steps: dict[str, Callable[[], None]] = dict(
        zip(
            NAMES,
            (private, lambda: plain(False), lambda: plain(True), lambda: _opacus(session, batch, 1.0)),
            strict=True,
        )
    )
    session.model.train()
    try:
        differs = _difference(session, batch, private)
        seconds, peaks = _measured(session, steps)
    finally:
        session.model.eval()
    shared, unshared = (judged(seconds[name], seconds["private"]) for name in ("plain, shared prefixes", "plain"))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **shared,
        "ratio_to_unshared": unshared["ratio"],
        "ratio_to_unshared_range": unshared["ratio_range"],
        "ratio_of_opacus": middle["Opacus hooks"] / middle["plain"],
        "ours": {"step_s": middle["private"]},
        "reference": {
            "name": "the same step without privacy, prefixes shared",
            "step_s": middle["plain, shared prefixes"],
        },
        "seconds": seconds,
        "differs": {"relative_difference_from_opacus": differs},
        "peak_growth_gib": {name: peak / 2**30 for name, peak in peaks.items()},
        "rows": count,
        "tokens": sum(len(example.read_ids) for example in batch),
        "turns": TURNS,
        "model": config.model.name,
        "quantization": config.model.quantization,
        "dataset": config.dataset.source,
    }


def _batch(session: Session, config: Config) -> list[Example]:
    """FPB rows of one step."""
    loaded = load_rows(config.dataset, "train", ("fpb",), config.seed).rows
    examples = encode_rows(session.tokenizer, loaded, context_tokens(config.model)).examples
    count = config.train.batch_rows or 16
    if len(examples) < count:
        raise UserError(
            f"{len(examples)} FPB rows, fewer than one step of {count}. Set dataset.root or train.batch_rows."
        )
    drawn = generator(config.seed, "bench private-step").permutation(len(examples))[:count]
    return [examples[index] for index in drawn.tolist()]


def _measured(
    session: Session, steps: Mapping[str, Callable[[], None]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(seconds of each step in TURNS turns, whose order alternates; peaks of memory)."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks: dict[str, float] = {}
    for turn in range(TURNS + 1):
        for name, step in list(steps.items())[:: -1 if turn % 2 else 1]:
            taken, peak = _timed(session, step)
            if turn:  # the first turn warms up caches and thread pools
                seconds[name].append(taken)
                peaks[name] = max(peaks.get(name, 0.0), peak)
        if turn:
            last = ", ".join(f"{name} {seconds[name][-1]:.2f} s" for name in steps)
            print(f"turn {turn} of {TURNS}: {last}", file=sys.stderr)
    return seconds, peaks


def _opacus(session: Session, batch: Sequence[Example], noise: float) -> None:
    """Opacus's documented way: GradSampleModule's hooks, DPOptimizer's clipping and noise; the gradients are left in
    `grad`.
    """
    import torch
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    longest = max(len(example.read_ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long, device=session.device)
    labels = torch.full((len(batch), longest), -100, device=session.device)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        read, first = example.read_ids, len(example.prompt_ids) - 1
        ids[row, : len(read)] = torch.tensor(read)
        mask[row, : len(read)] = 1
        labels[row, first : first + len(example.answer_ids)] = torch.tensor(example.answer_ids)
    wrapped = GradSampleModule(session.model, loss_reduction="sum", strict=False)  # type: ignore[no-untyped-call]
    parameters = list(trainable(session.model).values())
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=noise,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(batch),
    )  # type: ignore[no-untyped-call]
    try:
        logits = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(
            len(batch), -1
        )
        (losses.sum(dim=1) / (labels >= 0).sum(dim=1)).sum().backward()
        optimizer.pre_step()
    finally:
        wrapped.to_standard_module()
        for parameter in parameters:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(parameter, name):
                    setattr(parameter, name, None)


def _difference(session: Session, batch: Sequence[Example], private: Callable[[float], None]) -> float:
    """Relative difference of the two clipped gradients without noise; ours is clipped to a little less, and rounded to
    the grid.
    """
    import torch

    def gradient() -> torch.Tensor:
        found = [
            parameter.grad.detach().double().flatten()
            for parameter in trainable(session.model).values()
            if parameter.grad is not None
        ]
        session.model.zero_grad(set_to_none=True)
        return torch.cat(found)

    private(0.0)
    ours = gradient()
    _opacus(session, batch, 0.0)
    theirs = gradient() * (1 - NEIGHBOUR_SHARE)
    return float((ours - theirs).norm() / theirs.norm())


def _timed(session: Session, step: Callable[[], None]) -> tuple[float, float]:
    """(seconds, bytes that memory in use grew by at its highest)."""
    import torch

    cuda = session.device.type == "cuda"
    if not cuda:
        with suppress(
            OSError, AttributeError
        ):  # glibc: what was freed goes back to the system, so that growth shows again
            ctypes.CDLL(None).malloc_trim(0)
    reset_peak(session.device)
    before = peak_bytes(session.device)
    started = time.monotonic()
    step()
    if cuda:
        torch.cuda.synchronize(session.device)
    taken = time.monotonic() - started
    grown = peak_bytes(session.device) - before
    session.model.zero_grad(set_to_none=True)
    return taken, grown
