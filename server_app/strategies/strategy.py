"""What a server rule is: the state of a run and the replies of a round in, the next state out.

Flower's `serverapp.strategy.Strategy` without its messages: a rule sees arrays only, so that a test or `verify` calls
it as the server does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import BLOCK, Vector, blocks
from fedfinlora.model.block_means import NO_MEANS
from fedfinlora.privacy.shares import capped
from fedfinlora.seeds import generator
from fedfinlora.train.loop import schedule_factor
from fedfinlora.wire.messages import Reply
from server_app.replies import Mean, Replies

if TYPE_CHECKING:
    from fedfinlora.run.opening import OpenRun
    from server_app.central_privacy import BookedRound

Vector64 = NDArray[np.float64]
Arrays = Mapping[str, Vector64]
Needs = Literal["replies", "sum"]


@dataclass(frozen=True)
class ServerState:
    """What passes from round to round, and all that resume needs."""

    round: int
    """Rounds done."""
    adapter: Vector
    """The global adapter, (size,) float32."""
    arrays: Arrays = field(default_factory=dict)
    """The rule's own, by name."""
    step_norm: float = 0.0
    """Euclidean norm of the last round's step."""

    def moved(self, step: Callable[[slice], Vector64], arrays: Arrays | None = None, most: int = BLOCK) -> ServerState:
        """The next state. `step` gives the numbers block.start to block.stop of what is added, in float64. It is asked
        for one block of at most `most` numbers after the other: take fewer where a rule holds the numbers of every bank
        at the same time.
        """
        adapter, squares = np.empty(self.adapter.size, np.float32), 0.0
        for block in blocks(adapter.size, most):
            added = step(block)
            adapter[block] = self.adapter[block].astype(np.float64) + added
            squares += float(added @ added)
        return ServerState(self.round + 1, adapter, arrays or {}, math.sqrt(squares))


@dataclass(frozen=True)
class Strategy(ABC):
    """A server rule of a run of `rounds` rounds. Frozen: what it remembers is in the state's arrays. Methods in the
    order in which they run.
    """

    config: StrategyConfig
    rounds: int
    needs: ClassVar[Needs] = "replies"
    """Whether `aggregate` reads each reply, or only the weighted sum, all that a private or secure aggregation gives.
    """

    def first_arrays(self, layout_id: str) -> Arrays:
        """What the rule remembers before the first round."""
        return {}

    def second_moments(self, state: ServerState) -> Vector:
        """What the banks' AdamW starts from in the round after `state`: (tensors,) float32, or (0,), which says
        nothing.
        """
        return NO_MEANS

    def book(self, run: OpenRun, banks: Sequence[str], state: ServerState) -> BookedRound | None:
        """Write the round after `state` into the server's ledger, before a bank is asked. None: the rule spends
        nothing.
        """
        return None

    def sampled(self, banks: Sequence[str], seed: int, round_number: int) -> list[str]:
        """The banks of one round: a seeded sample of fraction_train, at least the quorum, sorted by name."""
        count = max(self.quorum, math.ceil(self.config.fraction_train * len(banks)))
        chosen = generator(seed, "sampling", round_number).permutation(len(banks))[: min(count, len(banks))]
        return sorted(banks[index] for index in chosen)

    @property
    def quorum(self) -> int:
        """Fewest usable replies that close a round."""
        return self.config.quorum

    def weights(self, replies: Sequence[Reply]) -> list[float] | None:
        """What each reply weighs in the mean, none more than strategy.max_share of it (`fedfinlora.privacy.shares`).
        None: nothing is weighed.
        """
        if self.config.weighting == "declared":
            sizes = self.config.declared_sizes()
            weights = [sizes[reply.bank] for reply in replies]
        elif self.config.weighting == "equal":
            weights = [1.0] * len(replies)
        else:
            weights = [float(getattr(reply.figures, self.config.weighting)) for reply in replies]
        return capped(weights, self.config.max_share)

    def learning_rate(self, state: ServerState) -> float:
        """strategy.server_learning_rate in the round that follows `state`."""
        config = self.config
        factor = schedule_factor(state.round, self.rounds, config.warmup_rounds, config.schedule)
        return config.server_learning_rate * factor

    @abstractmethod
    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        """The state after the round. Must not change its arguments."""


class MeanStrategy(Strategy):
    """A rule that steps along the mean update, number by number: `step` is all its arithmetic, and is called for a
    block of numbers at a time.
    """

    needs = "sum"

    def scale(self, state: ServerState, replies: Mean) -> float:
        """What the mean is multiplied by before the rule sees it. 1.0 leaves it as it is."""
        return 1.0

    def decay(self, adapter: Vector64, learning_rate: float) -> Vector64 | None:
        """What is taken off a block of the adapter, (n,), apart from the step. None takes nothing."""
        return None

    @abstractmethod
    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        """(what is added to the adapter, what is remembered). `mean`: (n,) float64; `own`: the remembered vectors, (n,)
        each, or whole where they are no vector of the adapter's size. Must not change its arguments.
        """

    def aggregate(self, state: ServerState, replies: Mean) -> ServerState:
        size, rate = state.adapter.size, self.learning_rate(state)
        scale = self.scale(state, replies)
        arrays: dict[str, Vector64] = {}

        def step(block: slice) -> Vector64:
            own = {name: vector[block] if vector.size == size else vector for name, vector in state.arrays.items()}
            mean = replies.mean(block)
            added, following = self.step(mean if scale == 1.0 else scale * mean, own, rate)
            for name, value in following.items():
                if value.size != added.size:
                    arrays[name] = value
                    continue
                if name not in arrays:
                    arrays[name] = np.empty(size, np.float64)
                arrays[name][block] = value
            taken = self.decay(state.adapter[block].astype(np.float64), rate)
            return added if taken is None else added - taken

        return state.moved(step, arrays)


def take_step(strategy: Strategy, state: ServerState, replies: Replies) -> ServerState:
    """The state after a round by any rule. UserError where its adapter is not finite, or a decomposition of the updates
    fails; ValueError where the rule gives something else than a next state.
    """
    try:
        following = strategy.aggregate(state, replies)
    except np.linalg.LinAlgError as error:  # of factors that are not finite, or so large that their products are not
        raise UserError(
            f"Round {state.round + 1}: strategy={strategy.config.name} cannot decompose the updates ({error}): they "
            "are not finite. Lower train.learning_rate or strategy.max_update_norm."
        ) from error
    adapter = following.adapter
    if (adapter.shape, str(adapter.dtype), following.round) != (state.adapter.shape, "float32", state.round + 1):
        raise ValueError(
            f"{type(strategy).__name__} gives round {following.round} and an adapter {adapter.shape} of "
            f"{adapter.dtype}, "
            f"not round {state.round + 1} and {state.adapter.shape} of float32"
        )
    if not np.isfinite(adapter).all():
        raise UserError(
            f"Round {following.round} gives an adapter that is not finite. Lower strategy.server_learning_rate."
        )
    return following
