"""The canaries of `audit` under privacy=example and dp_lora: gradients of the audit's own for the server's view, rows
for the reader's.

The server sees each noisy gradient. Its canaries are gradients ten times as long as the clip norm, each along a
direction of its own, put in where a row's gradient is clipped, rounded and added; no attack through replies is
stronger. The reader of the final adapter sees how each canary row's loss fell. One bank alone is the attackers' best
case: other banks' deltas only blur what the average shows.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client_app.facts import BankFacts
from data.encode import encode_rows
from data.rows import Row
from fedfinlora.commands.audit_workbench import Workbench, asked_of_the_bank
from fedfinlora.model.adapter import read_adapter, trainable, write_adapter
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.packing import Example
from fedfinlora.privacy.canary_audit import View
from fedfinlora.privacy.mechanism import Mechanism, private_step
from fedfinlora.train.gradient_step import PassLimits
from fedfinlora.train.loop import mean_loss
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

if TYPE_CHECKING:
    import torch

LENGTH = 10.0
"""Of a gradient canary, in clip norms: a clip that is missing shows."""
MOST_WIDTH = 64
"""Numbers of the adapter that one gradient canary touches, at most."""


@dataclass(frozen=True)
class GradientCanaries(Sequence[Mapping[str, "torch.Tensor"]]):
    """Their gradients, by name, made when they are asked for."""

    shapes: Mapping[str, tuple[int, ...]]
    signs: NDArray[np.float32]
    """(canaries, width): canary i has signs[i] at numbers i width .. (i + 1) width of the adapter, and zeros
    elsewhere.
    """
    length: float
    members: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        import torch

        canary, width = self.members[place], self.signs.shape[1]
        flat = torch.zeros(sum(map(math.prod, self.shapes.values())))
        flat[canary * width : (canary + 1) * width] = torch.from_numpy(self.signs[canary]) * (
            self.length / math.sqrt(width)
        )
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), flat.split(sizes), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in parts}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        return (self[place] for place in range(len(self)))


def server_view(bench: Workbench, mechanism: Mechanism, steps: int, canaries: int) -> View:
    """What the server sees of gradient canaries in so many steps."""
    import torch

    started = time.monotonic()
    parameters = trainable(bench.session.model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    size = sum(map(math.prod, shapes.values()))
    count = min(canaries, size)
    width = min(size // count, MOST_WIDTH)
    signs = bench.draw.choice(np.array([-1.0, 1.0], np.float32), (count, width))
    included = bench.draw.random(count) < 0.5
    scores = np.zeros(count)
    limits = PassLimits.of(bench.session.model, bench.config.train)
    alone = replace(mechanism, units=())
    for step in range(steps):
        taken = np.flatnonzero(included & (bench.draw.random(count) < mechanism.sampling_rate))
        extra = GradientCanaries(shapes, signs, LENGTH * mechanism.clip_norm, tuple(taken.tolist()))
        private_step(bench.session.model, (), alone, step, 0, limits.footprint, limits.memory_bytes, extra)
        gradients = [_grad(parameter).reshape(-1).double().cpu() for parameter in parameters.values()]
        noisy = torch.cat(gradients).numpy()[: count * width].reshape(count, width)
        scores += (noisy * signs).sum(axis=1)
    bench.session.model.zero_grad(set_to_none=True)
    return View(scores, included, time.monotonic() - started, orthogonal=True)


def _grad(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "a private step leaves a gradient in every parameter"
    return parameter.grad


def reader_view(
    bench: Workbench, facts: BankFacts, rows: Sequence[Row], included: NDArray[np.bool_]
) -> tuple[View, Figures]:
    """(what the reader of the final adapter sees of canary rows, what the bank says in the end), over all rounds.

    `facts`: a bank that has those of the canary `rows` that are `included`, (canaries,), and its own.
    """
    started = time.monotonic()
    config = bench.config
    examples = encode_rows(bench.session.tokenizer, rows, context_tokens(config.model)).examples
    asked, state = asked_of_the_bank(config), ServerState(0, bench.start)
    rule = rule_of(replace(config.strategy, weighting="equal", sizes=()), config.num_server_rounds)
    before = _losses(bench, state.adapter, examples)
    figures: Figures | None = None
    for number in range(1, config.num_server_rounds + 1):
        answer = bench.ask(asked, facts, state.adapter, number)
        figures = answer.figures
        reply = Reply(facts.name, answer.delta, figures, float(np.linalg.norm(answer.delta)))
        state = take_step(rule, state, replies_of([reply], rule.weights([reply])))
        print(f"round {number} of {config.num_server_rounds}", file=sys.stderr, flush=True)
    assert figures is not None, "a run has a round at least"
    fall = before - _losses(bench, state.adapter, examples)
    return View(fall, included, time.monotonic() - started, orthogonal=False), figures


def _losses(bench: Workbench, adapter: NDArray[np.float32], examples: Sequence[Example]) -> NDArray[np.float64]:
    """(canaries,) mean negative log-likelihood of an answer token of each, in nats."""
    model = bench.session.model
    before = read_adapter(model)
    write_adapter(model, adapter)
    found = np.array([mean_loss(model, [example], bench.config.train) for example in examples])
    write_adapter(model, before)
    return found
