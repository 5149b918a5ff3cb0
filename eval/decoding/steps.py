"""One decoding step of many rows: their next tokens.

On a CPU a step looks at the tokens that are there (`GrowingStep`). On a GPU launching its kernels one by one takes
longer than they run when rows are few; there tensors keep their place and shape (`FixedStep`), so that the kernels are
recorded once as a CUDA graph. The tokens are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from eval.decoding.cached_attention import Writing
from eval.decoding.kv_cache import Buffer, Prefix
from fedfinlora.model.attention import no_mask

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("fedfinlora.eval")
LEAST_FIXED_STEPS = 8
"""Steps of the same rows from which a graph is worth its recording, which takes about as long as two steps."""

Shared = Sequence[tuple[Prefix, "torch.Tensor"]]
"""Long beginnings with the slots of their rows."""


class Step(Protocol):
    """Steps of the same rows, one after the other."""

    def next_tokens(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that follow each row's last one, `tokens`."""


class Steps:
    """Makes the steps of one `generate`, growing or fixed."""

    def __init__(self, model: nn.Module, budget: int, fixed: bool) -> None:
        self.model, self.budget, self.fixed = model, budget, fixed
        self.graphs = Graphs(next(model.parameters()).device) if fixed else None

    def of(self, buffers: Sequence[Buffer], shared: Shared, positions: Sequence[int], step: int) -> Step:
        """From step number `step` of the pool on, at `positions` in their rows."""
        if self.graphs is not None and self.budget - step - 1 >= LEAST_FIXED_STEPS:
            return FixedStep(self.model, buffers, shared, positions, step, self.budget, self.graphs)
        return GrowingStep(self.model, buffers, shared, positions, step)


class GrowingStep:
    """Each step looks at one token more."""

    def __init__(
        self, model: nn.Module, buffers: Sequence[Buffer], shared: Shared, positions: Sequence[int], step: int
    ) -> None:
        self.model, self.buffers, self.shared = model, buffers, shared
        self.positions, self.step = list(positions), step

    def next_tokens(self, tokens: Sequence[int]) -> list[int]:
        import torch

        device = next(self.model.parameters()).device
        ids, places = (torch.tensor([numbers], device=device) for numbers in (list(tokens), self.positions))
        plan = Writing(self.buffers, self.shared, self.step)
        self.positions, self.step = [position + 1 for position in self.positions], self.step + 1
        found: list[int] = logits_of(self.model, ids, places, plan).argmax(dim=-1).tolist()
        return found


class FixedStep:
    """Each step looks at the whole buffers, what is not written yet being hidden, and finds all it needs on the GPU."""

    def __init__(
        self,
        model: nn.Module,
        buffers: Sequence[Buffer],
        shared: Shared,
        positions: Sequence[int],
        step: int,
        budget: int,
        graphs: Graphs,
    ) -> None:
        import torch

        self.model = model
        device = next(model.parameters()).device
        self.tokens = torch.zeros(1, len(positions), dtype=torch.int64, device=device)
        self.positions = torch.tensor([list(positions)], device=device)
        self.at: list[tuple[torch.Tensor, torch.Tensor]] = []
        for buffer in buffers:
            later = buffer.hidden.new_full((len(buffer.rows), budget), float("-inf"))
            later[:, :step] = 0
            self.at.append(
                (torch.tensor([buffer.width + step], device=device), torch.cat([buffer.hidden, later], dim=1))
            )
        self.plan = Writing(buffers, shared, step, self.at)
        self.no_mask = no_mask(device)
        self.started = False
        self.run = graphs.recorded(self._run)

    def next_tokens(self, tokens: Sequence[int]) -> list[int]:
        import torch

        if not self.started:  # later on they are there already
            self.tokens.copy_(torch.tensor([list(tokens)]))
            self.started = True
        self.run()
        found: list[int] = self.tokens[0].tolist()
        return found

    def _run(self) -> None:
        for place, hidden in self.at:
            hidden.index_fill_(1, place, 0.0)
        logits = logits_of(self.model, self.tokens, self.positions, self.plan, mask=self.no_mask)
        self.tokens.copy_(logits.argmax(dim=-1).unsqueeze(0))
        self.positions += 1
        for place, _ in self.at:
            place += 1


class Graphs:
    """Records work as CUDA graphs, which share their memory: one is done with when the next is made. Where there is no
    CUDA, or recording fails (a warning says so once), work is done as it is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.works = device.type == "cuda"
        self.replays = 0
        """How often a graph was started."""
        self._pool: Any = None

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """The same work: the first time as it is, which warms its kernels up, from the second time on as a graph."""

        graph: torch.cuda.CUDAGraph | None = None
        calls = 0

        def run() -> None:
            nonlocal graph, calls
            calls += 1
            if graph is None and calls == 2 and self.works:
                graph = self._record(work)
            if graph is None:
                work()
            else:
                graph.replay()
                self.replays += 1

        return run

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Nothing is computed while it is recorded."""
        import torch

        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                work()
        except RuntimeError as error:
            self.works = False
            log.warning("decoding without CUDA graphs: %s", str(error).splitlines()[0])
            return None
        return graph


def logits_of(
    model: nn.Module,
    ids: torch.Tensor,
    positions: torch.Tensor,
    plan: Any,
    keep: Any = 0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (kept, vocabulary) of tokens `ids` (1, T) laid end to end; `keep` as transformers' logits_to_keep."""
    call = cast(Callable[..., Any], model)
    logits: torch.Tensor = call(
        input_ids=ids,
        position_ids=positions,
        attention_mask=no_mask(ids.device) if mask is None else mask,
        plan=plan,
        logits_to_keep=keep,
        use_cache=False,
    ).logits[0]
    return logits
