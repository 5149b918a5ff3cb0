"""Greedy decoding of many prompts, with the tokens of plain greedy decoding row by row.

FinLoRA's rule 2: temperature 1e-5, stop at end-of-sequence or at the budget. Three things make it fast:

- *Reading.* Prompts are sorted and read as a tree (`fedfinlora.model.packing`), pass by pass. The keys and values of
  what a pass has in common with the last prompt of the pass before are kept; in sorted order there is nothing else to
  share.
- *Writing.* Many rows are decoded together, each with its own keys and values in buffers of similar width; a long
  beginning that several rows share (a filing, a list of tags) is kept once and attended to in one product (Hydragen,
  Juravsky et al. 2024, eq. 5: the two softmaxes are merged by their normalisers).
- *Leaving.* A row leaves at its end, at its budget, or when the caller says that nothing can change any more.

Keys and values stay within `cache_gib`, if need be by decoding fewer rows together. The rows are chosen before anything
is read (`eval.decoding.pools`), so the buffers' memory is taken once.

Shapes: R rows, H query heads, G key heads, D numbers a head, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.decoding.cache_memory import static_cache
from eval.decoding.cached_attention import Reading
from eval.decoding.kv_cache import (
    Layers,
    Pool,
    Prefix,
    StaticCache,
    cache_bytes_per_token,
    compacted,
    gather,
    shared_by,
)
from eval.decoding.pools import Prompts
from eval.decoding.steps import Step, Steps, logits_of
from fedfinlora.model.devices import cuda_of, devices_of
from fedfinlora.model.packing import (
    Tokens,
    Tree,
    common_prefix_tokens,
    index_for,
    make_tree,
    plan_of,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_ROWS, MOST_ROWS_ON_GPU = 256, 1024
"""Rows decoded together at most: more would gain little, and answers would come late."""
COMPACT_BELOW = 0.75
"""Buffers are cut down when at most this share of their rows is still being decoded."""

StopsEarly = Callable[[int, list[int], int], bool]
"""(number of the prompt, new tokens so far, tokens left in the budget) -> whether nothing that counts can change any
more.
"""


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt."""

    tokens: tuple[int, ...]
    """New tokens without the end-of-sequence token."""
    stopped: str
    """end (end-of-sequence), budget, or settled."""


@dataclass(frozen=True)
class Generated:
    """The answers in the order of the prompts, and what they cost."""

    answers: tuple[Answer, ...]
    prompt_tokens: int
    """Tokens of all prompts, each counted in full."""
    read_tokens: int
    """Tokens that were really read."""
    written_tokens: int
    """Tokens that were decoded one by one, the first of each row not among them."""
    peak_cache_bytes: int
    """Most memory held by keys and values at a time."""
    graph_steps: int = 0
    """Decoding steps that were CUDA graphs; 0 on CPUs."""


def generate(
    model: nn.Module,
    prompts: Sequence[Tokens],
    budget_tokens: int,
    end_ids: Sequence[int],
    *,
    batch_tokens: int = 4096,
    cache_gib: float = 0.0,
    stops_early: StopsEarly | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
    cache: StaticCache | None = None,
    fixed: bool | None = None,
) -> Generated:
    """Greedy answers of at most `budget_tokens` tokens. Prompts must not be empty.

    After its first prompt a pass reads at most `batch_tokens` further tokens. `on_answer` is called for each prompt, by
    its number, as soon as its answer is known, in no particular order. Equal prompts are answered once. `cache_gib` as
    `cache_limit_bytes`; a `cache` of an earlier call has its own limit and its memory. `fixed` as in
    `eval.decoding.steps`: None = on one GPU.
    """
    numbers: dict[Tokens, list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(prompt, []).append(number)
    ordered = sorted(numbers)
    answers: list[Answer | None] = [None] * len(prompts)

    def done(row: int, answer: Answer) -> None:
        for number in numbers[ordered[row]]:
            answers[number] = answer
            if on_answer is not None:
                on_answer(number, answer)

    def stop_early(row: int, tokens: list[int], left: int) -> bool:
        return stops_early is not None and stops_early(numbers[ordered[row]][0], tokens, left)

    cache = cache or static_cache(model, cache_gib)
    is_fixed = len(cuda_of(devices_of(model))) == 1 if fixed is None else fixed
    engine = _Engine(model, ordered, budget_tokens, frozenset(end_ids), cache, done, stop_early, is_fixed)
    if budget_tokens > 0:
        engine.run(batch_tokens)
    else:
        for row in range(len(ordered)):
            done(row, Answer((), "budget"))
    return Generated(
        tuple(answer for answer in answers if answer is not None),
        sum(map(len, prompts)),
        engine.read_tokens,
        engine.written_tokens,
        engine.peak_bytes,
        engine.steps.graphs.replays if engine.steps.graphs else 0,
    )


class _Engine:
    """One call of `generate`. Rows are places in the sorted prompts."""

    def __init__(
        self,
        model: nn.Module,
        ordered: Sequence[Tokens],
        budget_tokens: int,
        end_ids: frozenset[int],
        cache: StaticCache,
        done: Callable[[int, Answer], None],
        stops_early: StopsEarly,
        fixed: bool,
    ) -> None:
        self.model, self.ordered, self.budget = model, ordered, budget_tokens
        self.end_ids, self.cache, self.done, self.stops_early = end_ids, cache, done, stops_early
        self.steps = Steps(model, budget_tokens, fixed)
        self.prompts = Prompts(ordered, budget_tokens)
        self.kept = self.prompts.kept
        config: Any = model.config
        self.layers = int(config.num_hidden_layers)
        self.cached_prefix: tuple[Tokens, Layers] = ((), Layers())
        self.prefix = Prefix((), Layers())
        self.pool = Pool()
        self.rows_by_width: Mapping[int, int] = {}
        """Of the pool that is read now."""
        self.buffer_tokens = 0
        """Room for its buffers; for those of the largest pool, where that fits."""
        self.read_tokens = self.written_tokens = self.peak_bytes = 0

    def run(self, batch_tokens: int) -> None:
        import torch

        self.model.eval()
        most_rows = MOST_ROWS_ON_GPU if next(self.model.parameters()).is_cuda else MOST_ROWS
        # One layer is there twice while it is copied.
        limit_tokens = self.cache.limit_bytes / (cache_bytes_per_token(self.model) * (1 + 1 / self.layers))
        with torch.inference_mode():
            pools = self.prompts.pools(batch_tokens, most_rows, limit_tokens)
            most_tokens = max((plan.own_tokens for plan in pools), default=0)
            for plan in pools:
                room_tokens = limit_tokens - plan.other_tokens
                self.rows_by_width = plan.rows_by_width
                self.buffer_tokens = most_tokens if most_tokens <= room_tokens else plan.own_tokens
                if self.cache.capacity_tokens > max(room_tokens, plan.own_tokens):
                    self.cache.release()
                for first, last in plan.passes:
                    self._read(first, last)
                self._decode()

    def _read(self, first: int, last: int) -> None:
        """Read the prompts of one pass into the pool and keep what the next pass begins with."""
        import torch

        device = next(self.model.parameters()).device
        rows = self.ordered[first:last]
        tree = make_tree(rows, cached_prefix=self.cached_prefix[0])
        plan = Reading(plan_of(tree, device), self.cached_prefix[1])
        tokens = [token for segment in tree.segments for token in segment.tokens]
        positions = [segment.depth + place for segment in tree.segments for place in range(len(segment.tokens))]
        ends = [tree.segments[leaf].end - 1 for leaf in tree.leaves]
        logits = self._forward(tokens, positions, plan, torch.tensor(ends, device=device))
        self.read_tokens += len(tokens)
        for row, token in zip(range(first, last), logits.argmax(dim=-1).tolist(), strict=True):
            self.pool.first_tokens[row] = token
        self._keep_prefixes(tree, plan.layers, first)
        self._keep_rows(tree, plan.layers, first)
        self._note_peak(plan.layers.size_bytes * (1 + 1 / self.layers))
        next_shared = common_prefix_tokens(rows[-1], self.ordered[last]) if last < len(self.ordered) else 0
        cached_prefix = (
            gather(plan.layers, tree.keys(len(rows) - 1, 0, next_shared), free=True) if next_shared else Layers()
        )
        self.cached_prefix = (rows[-1][:next_shared], cached_prefix)

    def _keep_prefixes(self, tree: Tree, layers: Layers, first: int) -> None:
        for place in range(len(tree.leaves)):
            row = first + place
            tokens = self.ordered[row][: self.kept[row]]
            if not tokens:
                continue
            if self.prefix.tokens != tokens:
                gathered = gather(layers, tree.keys(place, 0, len(tokens)))
                flat = Layers([key[0] for key in gathered.keys], [value[0] for value in gathered.values])
                self.prefix = Prefix(tokens, flat)
            if not self.pool.prefixes or self.pool.prefixes[-1][0] is not self.prefix:
                self.pool.prefixes.append((self.prefix, []))
            self.pool.prefixes[-1][1].append(row)

    def _keep_rows(self, tree: Tree, layers: Layers, first: int) -> None:
        """Copy each row's own keys and values into the buffers, by width."""
        import torch

        if not self.pool.buffers:
            self.cache.reserve(self.buffer_tokens, layers)
            self.pool.buffers = self.cache.buffers(self.rows_by_width, self.budget, layers)
        by_width: dict[int, list[int]] = {}
        for place in range(len(tree.leaves)):
            by_width.setdefault(self.prompts.width(first + place), []).append(place)
        for width, places in by_width.items():
            buffer = self.pool.buffers[width]
            index = torch.zeros(len(places), width, dtype=torch.int64)
            hidden = torch.zeros(len(places), width)
            for number, place in enumerate(places):
                row = first + place
                keys = [
                    key
                    for start, end in tree.keys(place, self.kept[row], len(self.ordered[row]))
                    for key in range(start, end)
                ]
                index[number, width - len(keys) :] = torch.tensor(keys)
                hidden[number, : width - len(keys)] = float("-inf")
            there = slice(len(buffer.rows), len(buffer.rows) + len(places))
            flat_index = index.flatten()
            for kind, mine in ((layers.keys, buffer.layers.keys), (layers.values, buffer.layers.values)):
                for tensor, own in zip(kind, mine, strict=True):
                    picked = tensor[0].index_select(1, flat_index.to(tensor.device))
                    own[there, :, :width] = picked.view(len(picked), len(places), width, -1).transpose(0, 1)
                    if self.steps.fixed:  # they are looked at before they are written
                        own[there, :, width:] = 0
            buffer.hidden[there] = hidden.to(buffer.hidden.device)
            buffer.rows += [first + place for place in places]

    def _decode(self) -> None:
        """Decode every row of the pool to its end."""
        pool, self.pool, self.prefix = self.pool, Pool(), Prefix((), Layers())
        buffers = list(pool.buffers.values())
        rows = [row for buffer in buffers for row in buffer.rows]
        outputs: dict[int, list[int]] = {row: [] for row in rows}
        tokens = [pool.first_tokens[row] for row in rows]
        alive = [True] * len(rows)
        taken: Step | None = None
        for step in range(self.budget):
            for slot, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                if alive[slot]:
                    alive[slot] = self._goes_on(row, token, outputs[row], self.budget - step - 1)
            living = sum(alive)
            if not living:
                break
            if living <= COMPACT_BELOW * len(rows):
                token_of = dict(zip(rows, tokens, strict=True))
                buffers = compacted(buffers, alive)
                rows = [row for buffer in buffers for row in buffer.rows]
                tokens, alive, taken = [token_of[row] for row in rows], [True] * len(rows), None
            if taken is None:
                positions = [len(self.ordered[row]) + step for row in rows]
                shared = shared_by(pool.prefixes, rows, next(self.model.parameters()).device)
                taken = self.steps.of(buffers, shared, positions, step)
            tokens = taken.next_tokens(tokens)
            self.written_tokens += len(rows)

    def _goes_on(self, row: int, token: int, output: list[int], left: int) -> bool:
        """Take a row's next token; False if the row has ended with it."""
        stopped = "end" if token in self.end_ids else ""
        if not stopped:
            output.append(token)
            stopped = "budget" if left == 0 else "settled" if self.stops_early(row, output, left) else ""
        if stopped:
            self.done(row, Answer(tuple(output), stopped))
        return not stopped

    def _forward(self, tokens: Sequence[int], positions: Sequence[int], plan: Any, keep: torch.Tensor) -> torch.Tensor:
        """Logits (kept, vocabulary) of tokens laid end to end, at the places `keep`."""
        import torch

        device = next(self.model.parameters()).device
        ids, places = (torch.tensor([list(numbers)], device=device) for numbers in (tokens, positions))
        return logits_of(self.model, ids, places, plan, index_for(self.model, keep))

    def _note_peak(self, more_bytes: float) -> None:
        held = self.cache.size_bytes + self.pool.prefix_bytes + self.cached_prefix[1].size_bytes + more_bytes
        self.peak_bytes = max(self.peak_bytes, round(held))
