"""Greedy decoding of many prompts that wastes nothing and gives the tokens of plain greedy decoding row by row.

FinLoRA's rule 2: temperature 1e-5, stop at end-of-sequence or at the budget. Three things make it fast:

- *Reading.* Prompts are sorted and read as a tree (`fedfinlora.model.packing`), pass by pass. What a pass has in common
  with
  the last prompt of the
  pass before is not read again: its keys and values are kept, and in sorted order there is nothing else to share.
- *Writing.* Many rows are decoded together, each with its own keys and values in buffers of similar width; a long
  beginning that several
  rows share (a filing, a list of tags) is kept once and attended to in one product (Hydragen, Juravsky et al. 2024, eq.
  5: the two
  softmaxes are merged by their normalisers).
- *Leaving.* A row leaves at its end, at its budget, or when the caller says that nothing can change any more.

Keys and values stay within `cache_gib`: fewer rows are decoded together where it would not do.

Shapes: R rows, H query heads, G key heads, D numbers a head, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.decoding.cached_attention import Reading, Writing
from eval.decoding.kv_cache import (
    Buffer,
    Layers,
    Pool,
    Prefix,
    buffer_width,
    cache_bytes_per_token,
    compacted,
    gather,
    joined,
    long_prefixes,
    shared_by,
)
from fedfinlora.model.attention import no_mask
from fedfinlora.model.devices import cuda_of, devices_of
from fedfinlora.model.packing import (
    LEAST_SAVED_TOKENS,
    Tokens,
    Tree,
    common_prefix_tokens,
    index_for,
    make_tree,
    plan_of,
)
from fedfinlora.train.memory import decoder_layers, free_bytes, limit_of

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_ROWS, MOST_ROWS_ON_GPU = 256, 1024
"""Rows decoded together at most: more would gain little, and answers would come late."""
CACHE_GIB, CACHE_SHARE_ON_GPU = 2.0, 0.6
"""Memory for keys and values where none is named, and its share of what is free on a GPU."""
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
) -> Generated:
    """Greedy answers of at most `budget_tokens` tokens. Prompts must not be empty.

    After its first prompt a pass reads at most `batch_tokens` further tokens. `on_answer` is called for each prompt, by
    its number, as soon as its answer is known, in no particular order. Equal prompts are answered once. `cache_gib` as
    `cache_limit_bytes`.
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

    engine = _Engine(
        model, ordered, budget_tokens, frozenset(end_ids), cache_limit_bytes(model, cache_gib), done, stop_early
    )
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
    )


def cache_limit_bytes(model: nn.Module, cache_gib: float) -> float:
    """Bytes for keys and values: `cache_gib`, or as the model's devices allow where it is 0. Of a model on several
    GPUs, what all may hold when the one with the least room is full.
    """
    devices = devices_of(model)
    if cache_gib:
        return cache_gib * 2**30
    if not cuda_of(devices):
        return CACHE_GIB * 2**30
    where = [next(layer.parameters()).device for layer in decoder_layers(model)]
    return limit_of({device: CACHE_SHARE_ON_GPU * free_bytes(device) for device in devices}, where)


class _Engine:
    """One call of `generate`. Rows are places in the sorted prompts."""

    def __init__(
        self,
        model: nn.Module,
        ordered: Sequence[Tokens],
        budget_tokens: int,
        end_ids: frozenset[int],
        cache_bytes: float,
        done: Callable[[int, Answer], None],
        stops_early: StopsEarly,
    ) -> None:
        self.model, self.ordered, self.budget = model, ordered, budget_tokens
        self.end_ids, self.cache_bytes, self.done, self.stops_early = end_ids, cache_bytes, done, stops_early
        self.most_rows = MOST_ROWS_ON_GPU if next(model.parameters()).is_cuda else MOST_ROWS
        self.kept = long_prefixes(ordered)
        self.token_bytes = cache_bytes_per_token(model)
        config: Any = model.config
        self.layers = int(config.num_hidden_layers)
        self.cached_prefix: tuple[Tokens, Layers] = ((), Layers())
        self.prefix = Prefix((), Layers())
        self.pool = Pool()
        self.read_tokens = self.written_tokens = self.peak_bytes = 0

    def run(self, batch_tokens: int) -> None:
        import torch

        self.model.eval()
        with torch.inference_mode():
            row = 0
            while row < len(self.ordered):
                end = self._end_of_pass(row, batch_tokens)
                waiting = len(self.pool.first_tokens)
                if waiting and (self._needed(row, end) > self.cache_bytes or waiting + end - row > self.most_rows):
                    self._decode()
                while end - row > 1 and self._needed(row, end) > self.cache_bytes:
                    end = row + (end - row + 1) // 2
                self._read(row, end)
                row = end
            self._decode()

    def _end_of_pass(self, first: int, batch_tokens: int) -> int:
        used = 0
        for row in range(first + 1, min(len(self.ordered), first + self.most_rows)):
            used += len(self.ordered[row]) - common_prefix_tokens(self.ordered[row - 1], self.ordered[row])
            if used > batch_tokens:
                return row
        return min(len(self.ordered), first + self.most_rows)

    def _needed(self, first: int, last: int) -> float:
        """Most bytes of keys and values while rows first to last are read and then stay in the pool.

        What the pass reads and what is copied from it are there at the same time, and one layer twice while it is
        copied.
        """
        tokens = len(self.cached_prefix[0])
        for row in range(first, last):
            before = self.ordered[row - 1] if row > first else self.cached_prefix[0]
            shared = common_prefix_tokens(before, self.ordered[row])
            tokens += len(self.ordered[row]) - shared + LEAST_SAVED_TOKENS
            tokens += buffer_width(len(self.ordered[row]) - self.kept[row]) + self.budget
            if row == first or self.kept[row] > shared or self.kept[row] != self.kept[row - 1]:
                tokens += self.kept[row]
        return (self.pool.size_bytes + tokens * self.token_bytes) * (1 + 1 / self.layers)

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
        """Copy each row's own keys and values into buffers by width."""
        import torch

        device = layers.keys[0].device
        by_width: dict[int, list[int]] = {}
        for place in range(len(tree.leaves)):
            row = first + place
            by_width.setdefault(buffer_width(len(self.ordered[row]) - self.kept[row]), []).append(place)
        for width, places in by_width.items():
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
            flat_index = index.flatten().to(device)

            def buffered(
                tensor: torch.Tensor, flat_index: torch.Tensor = flat_index, rows: int = len(places), width: int = width
            ) -> torch.Tensor:
                _, groups, _, numbers = tensor.shape
                buffer = tensor.new_zeros(rows, groups, width + self.budget, numbers)
                buffer[:, :, :width] = (
                    tensor[0]
                    .index_select(1, flat_index.to(tensor.device))
                    .view(groups, rows, width, numbers)
                    .transpose(0, 1)
                )
                return buffer

            kept = Layers([buffered(key) for key in layers.keys], [buffered(value) for value in layers.values])
            self.pool.buffers.setdefault(width, []).append(
                Buffer(width, [first + place for place in places], kept, hidden.to(device))
            )

    def _decode(self) -> None:
        """Decode every row of the pool to its end."""

        self._note_peak(self.pool.size_bytes / self.layers)  # while buffers are joined
        pool, self.pool, self.prefix = self.pool, Pool(), Prefix((), Layers())
        if not pool.first_tokens:
            return
        device = next(self.model.parameters()).device
        buffers = [joined(pool.buffers.pop(width)) for width in sorted(pool.buffers)]
        rows = [row for buffer in buffers for row in buffer.rows]
        outputs: dict[int, list[int]] = {row: [] for row in rows}
        tokens = [pool.first_tokens[row] for row in rows]
        alive = [True] * len(rows)
        for step in range(self.budget):
            for slot, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                if alive[slot]:
                    alive[slot] = self._goes_on(row, token, outputs[row], self.budget - step - 1)
            living = [slot for slot, lives in enumerate(alive) if lives]
            if not living:
                break
            if len(living) <= COMPACT_BELOW * len(rows):
                buffers = compacted(buffers, alive)
                rows, tokens = [rows[slot] for slot in living], [tokens[slot] for slot in living]
                alive = [True] * len(rows)
            plan = Writing(buffers, shared_by(pool.prefixes, rows, device), step)
            positions = [len(self.ordered[row]) + step for row in rows]
            tokens = self._forward(tokens, positions, plan).argmax(dim=-1).tolist()
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

    def _forward(self, tokens: Sequence[int], positions: Sequence[int], plan: Any, keep: Any = 0) -> torch.Tensor:
        """Logits (kept, vocabulary) of tokens laid end to end; `keep` as transformers' logits_to_keep."""
        import torch

        device = next(self.model.parameters()).device
        logits: torch.Tensor = self.model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=torch.tensor([list(positions)], device=device),
            attention_mask=no_mask(device),
            plan=plan,
            logits_to_keep=keep if isinstance(keep, int) else index_for(self.model, keep),
            use_cache=False,
        ).logits[0]
        return logits

    def _note_peak(self, more_bytes: float) -> None:
        held = self.pool.size_bytes + self.cached_prefix[1].size_bytes + more_bytes
        self.peak_bytes = max(self.peak_bytes, round(held))
