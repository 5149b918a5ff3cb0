"""Greedy decoding of many prompts that wastes nothing and gives the tokens of plain greedy decoding row by row.

FinLoRA's rule 2: temperature 1e-5, stop at end-of-sequence or at the budget. Three things make it fast:

- *Reading.* Prompts are sorted and read as a tree (`fedfinlora.packing`), pass by pass. What a pass has in common with the last prompt of the
  pass before is not read again: its keys and values are kept, and in sorted order there is nothing else to share.
- *Writing.* Many rows are decoded together, each with its own keys and values in buffers of similar width; a long beginning that several
  rows share (a filing, a list of tags) is kept once and attended to in one product (Hydragen, Juravsky et al. 2024, eq. 5: the two
  softmaxes are merged by their normalisers).
- *Leaving.* A row leaves at its end, at its budget, or when the caller says that nothing can change any more.

Keys and values stay within `cache_gib`: fewer rows are decoded together where it would not do.

Shapes: R rows, H query heads, G key heads, D numbers a head, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedfinlora.attention import Run, attend_by_runs, no_mask
from fedfinlora.packing import LEAST_SAVED_TOKENS, Tokens, Tree, common_prefix_tokens, make_tree, plan_of

if TYPE_CHECKING:
    import torch
    from torch import nn

LONG_PREFIX_TOKENS = 256
"""A shared beginning of at least so many tokens is kept once while decoding; shorter ones are copied to each row."""
MOST_ROWS = 256
"""Rows decoded together at most: more would gain little, and answers would come late."""
COMPACT_BELOW = 0.75
"""Buffers are cut down when at most this share of their rows is still being decoded."""
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Widths of buffers; longer rows get multiples of 4096."""

Settled = Callable[[int, list[int], int], bool]
"""(number of the prompt, new tokens so far, tokens left in the budget) -> whether nothing that counts can change any more."""


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
    cache_gib: float = 2.0,
    settled: Settled | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> Generated:
    """Greedy answers of at most `budget_tokens` tokens. Prompts must not be empty.

    After its first prompt a pass reads at most `batch_tokens` further tokens. `on_answer` hears of each prompt, by its number, as soon as
    its answer stands, in no particular order. Equal prompts are answered once.
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

    def is_settled(row: int, tokens: list[int], left: int) -> bool:
        return settled is not None and settled(numbers[ordered[row]][0], tokens, left)

    engine = _Engine(model, ordered, budget_tokens, frozenset(end_ids), cache_gib * 2**30, done, is_settled)
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


# --- what is kept -------------------------------------------------------------------------------------------------------------


@dataclass
class _Layers:
    """Keys and values of some tokens: one (…, tokens, D) tensor of each kind a layer."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


@dataclass
class _Prefix:
    """A long beginning that several rows share: (G, tokens, D) a layer."""

    tokens: Tokens
    layers: _Layers


@dataclass
class _Buffer:
    """Rows of similar length: (R, G, width + budget, D) a layer; prompts end at `width`, new tokens follow."""

    width: int
    rows: list[int]
    layers: _Layers
    hidden: torch.Tensor
    """(R, width) float32: -inf in front of shorter rows, 0 elsewhere."""


@dataclass
class _Pool:
    """Rows that have been read and wait to be decoded together."""

    buffers: dict[int, list[_Buffer]] = field(default_factory=dict)
    first_tokens: dict[int, int] = field(default_factory=dict)
    prefixes: list[tuple[_Prefix, list[int]]] = field(default_factory=list)
    """Each with the rows behind it."""

    @property
    def size_bytes(self) -> int:
        own = sum(buffer.layers.size_bytes for same in self.buffers.values() for buffer in same)
        return own + sum(prefix.layers.size_bytes for prefix, _ in self.prefixes)


def long_prefixes(ordered: Sequence[Tokens]) -> list[int]:
    """For each of the sorted prompts, how many of its first tokens are kept once while decoding; the same number for neighbours that share.

    Neighbours are grouped while they have LONG_PREFIX_TOKENS in common; a part of a group that has more in common goes by itself if
    that keeps fewer tokens in all.
    """
    shared = [0, *(common_prefix_tokens(one, other) for one, other in pairwise(ordered))]
    lengths = [0] * len(ordered)
    waiting = [(0, len(ordered), 0)]
    while waiting:
        first, last, kept = waiting.pop()
        if last - first < 2:
            continue
        common = min(min(shared[first + 1 : last]), min(len(tokens) - 1 for tokens in ordered[first:last]))
        if common - kept >= LONG_PREFIX_TOKENS and (common - kept) * (last - first) >= (common if kept else 0):
            lengths[first:last] = [common] * (last - first)
            kept = common
        lowest = min(shared[first + 1 : last])
        ends = [number for number in range(first + 1, last) if shared[number] == lowest]
        waiting += zip([first, *ends], [*ends, last], [kept] * (len(ends) + 1), strict=True)
    return lengths


# --- reading and decoding -----------------------------------------------------------------------------------------------------


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
        settled: Settled,
    ) -> None:
        self.model, self.ordered, self.budget = model, ordered, budget_tokens
        self.end_ids, self.cache_bytes, self.done, self.settled = end_ids, cache_bytes, done, settled
        self.kept = long_prefixes(ordered)
        self.token_bytes = cache_bytes_per_token(model)
        config: Any = model.config
        self.layers = int(config.num_hidden_layers)
        self.spine: tuple[Tokens, _Layers] = ((), _Layers())
        self.prefix = _Prefix((), _Layers())
        self.pool = _Pool()
        self.read_tokens = self.written_tokens = self.peak_bytes = 0

    def run(self, batch_tokens: int) -> None:
        import torch

        self.model.eval()
        with torch.inference_mode():
            row = 0
            while row < len(self.ordered):
                end = self._end_of_pass(row, batch_tokens)
                waiting = len(self.pool.first_tokens)
                if waiting and (self._needed(row, end) > self.cache_bytes or waiting + end - row > MOST_ROWS):
                    self._decode()
                while end - row > 1 and self._needed(row, end) > self.cache_bytes:
                    end = row + (end - row + 1) // 2
                self._read(row, end)
                row = end
            self._decode()

    def _end_of_pass(self, first: int, batch_tokens: int) -> int:
        used = 0
        for row in range(first + 1, min(len(self.ordered), first + MOST_ROWS)):
            used += len(self.ordered[row]) - common_prefix_tokens(self.ordered[row - 1], self.ordered[row])
            if used > batch_tokens:
                return row
        return min(len(self.ordered), first + MOST_ROWS)

    def _needed(self, first: int, last: int) -> float:
        """Most bytes of keys and values while rows first to last are read and then stay in the pool.

        What the pass reads and what is copied from it are there at the same time, and one layer twice while it is copied.
        """
        tokens = len(self.spine[0])
        for row in range(first, last):
            before = self.ordered[row - 1] if row > first else self.spine[0]
            shared = common_prefix_tokens(before, self.ordered[row])
            tokens += len(self.ordered[row]) - shared + LEAST_SAVED_TOKENS
            tokens += _width(len(self.ordered[row]) - self.kept[row]) + self.budget
            if row == first or self.kept[row] > shared or self.kept[row] != self.kept[row - 1]:
                tokens += self.kept[row]
        return (self.pool.size_bytes + tokens * self.token_bytes) * (1 + 1 / self.layers)

    def _read(self, first: int, last: int) -> None:
        """Read the prompts of one pass into the pool and keep what the next pass begins with."""
        import torch

        device = next(self.model.parameters()).device
        rows = self.ordered[first:last]
        tree = make_tree(rows, spine=self.spine[0])
        plan = _Reading(plan_of(tree, device).runs, self.spine[1])
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
        spine = _gather(plan.layers, tree.keys(len(rows) - 1, 0, next_shared), free=True) if next_shared else _Layers()
        self.spine = (rows[-1][:next_shared], spine)

    def _keep_prefixes(self, tree: Tree, layers: _Layers, first: int) -> None:
        for place in range(len(tree.leaves)):
            row = first + place
            tokens = self.ordered[row][: self.kept[row]]
            if not tokens:
                continue
            if self.prefix.tokens != tokens:
                gathered = _gather(layers, tree.keys(place, 0, len(tokens)))
                flat = _Layers([key[0] for key in gathered.keys], [value[0] for value in gathered.values])
                self.prefix = _Prefix(tokens, flat)
            if not self.pool.prefixes or self.pool.prefixes[-1][0] is not self.prefix:
                self.pool.prefixes.append((self.prefix, []))
            self.pool.prefixes[-1][1].append(row)

    def _keep_rows(self, tree: Tree, layers: _Layers, first: int) -> None:
        """Copy each row's own keys and values into buffers by width."""
        import torch

        device = layers.keys[0].device
        by_width: dict[int, list[int]] = {}
        for place in range(len(tree.leaves)):
            row = first + place
            by_width.setdefault(_width(len(self.ordered[row]) - self.kept[row]), []).append(place)
        for width, places in by_width.items():
            index = torch.zeros(len(places), width, dtype=torch.int64)
            hidden = torch.zeros(len(places), width)
            for number, place in enumerate(places):
                row = first + place
                keys = [
                    key for start, end in tree.keys(place, self.kept[row], len(self.ordered[row])) for key in range(start, end)
                ]
                index[number, width - len(keys) :] = torch.tensor(keys)
                hidden[number, : width - len(keys)] = float("-inf")
            flat_index = index.flatten().to(device)

            def buffered(
                tensor: torch.Tensor, flat_index: torch.Tensor = flat_index, rows: int = len(places), width: int = width
            ) -> torch.Tensor:
                _, groups, _, numbers = tensor.shape
                buffer = tensor.new_zeros(rows, groups, width + self.budget, numbers)
                buffer[:, :, :width] = tensor[0].index_select(1, flat_index).view(groups, rows, width, numbers).transpose(0, 1)
                return buffer

            kept = _Layers([buffered(key) for key in layers.keys], [buffered(value) for value in layers.values])
            self.pool.buffers.setdefault(width, []).append(
                _Buffer(width, [first + place for place in places], kept, hidden.to(device))
            )

    def _decode(self) -> None:
        """Decode every row of the pool to its end."""

        self._note_peak(self.pool.size_bytes / self.layers)  # while buffers are joined
        pool, self.pool, self.prefix = self.pool, _Pool(), _Prefix((), _Layers())
        if not pool.first_tokens:
            return
        device = next(self.model.parameters()).device
        buffers = [_joined(pool.buffers.pop(width)) for width in sorted(pool.buffers)]
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
                buffers = _compacted(buffers, alive)
                rows, tokens = [rows[slot] for slot in living], [tokens[slot] for slot in living]
                alive = [True] * len(rows)
            plan = _Writing(buffers, _shared_by(pool.prefixes, rows, device), step)
            positions = [len(self.ordered[row]) + step for row in rows]
            tokens = self._forward(tokens, positions, plan).argmax(dim=-1).tolist()
            self.written_tokens += len(rows)

    def _goes_on(self, row: int, token: int, output: list[int], left: int) -> bool:
        """Take a row's next token; False if the row has ended with it."""
        stopped = "end" if token in self.end_ids else ""
        if not stopped:
            output.append(token)
            stopped = "budget" if left == 0 else "settled" if self.settled(row, output, left) else ""
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
            logits_to_keep=keep,
            use_cache=False,
        ).logits[0]
        return logits

    def _note_peak(self, more_bytes: float) -> None:
        held = self.pool.size_bytes + self.spine[1].size_bytes + more_bytes
        self.peak_bytes = max(self.peak_bytes, round(held))


class _Reading:
    """Attention of a pass that reads prompts; keeps the keys and values of spine and pass, and lets the spine's own go."""

    def __init__(self, runs: Sequence[Run], spine: _Layers) -> None:
        self.runs, self.spine, self.layers = runs, spine, _Layers()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        import torch

        if self.spine.keys:
            key = torch.cat([self.spine.keys[layer], key], dim=2)
            value = torch.cat([self.spine.values[layer], value], dim=2)
            self.spine.keys[layer] = self.spine.values[layer] = key[:, :, :0].clone()
        self.layers.keys.append(key)
        self.layers.values.append(value)
        return attend_by_runs(query, key, value, self.runs, scaling)


class _Writing:
    """Attention of one decoding step: query (1, H, R, D), one token a row."""

    def __init__(self, buffers: Sequence[_Buffer], shared: Sequence[tuple[_Prefix, torch.Tensor]], step: int) -> None:
        self.buffers, self.shared, self.step = buffers, shared, step

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        import torch

        _, heads, rows, width = query.shape
        groups = key.shape[1]
        scale = width**-0.5 if scaling is None else scaling
        queries = query[0].transpose(0, 1).reshape(rows, groups, heads // groups, width) * scale
        new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        outputs: list[torch.Tensor] = []
        normalisers: list[torch.Tensor] = []
        start = 0
        for buffer in self.buffers:
            end = start + len(buffer.rows)
            last = buffer.width + self.step
            own_keys, own_values = buffer.layers.keys[layer], buffer.layers.values[layer]
            own_keys[:, :, last], own_values[:, :, last] = new_keys[start:end], new_values[start:end]
            scores = (queries[start:end] @ own_keys[:, :, : last + 1].transpose(-1, -2)).float()
            scores[..., : buffer.width] += buffer.hidden[:, None, None]
            output, normaliser = _weighted(scores, own_values[:, :, : last + 1])
            outputs.append(output)
            normalisers.append(normaliser)
            start = end
        output, normaliser = torch.cat(outputs), torch.cat(normalisers)
        for prefix, members in self.shared:
            asked = queries[members].transpose(0, 1).reshape(groups, -1, width)
            scores = (asked @ prefix.layers.keys[layer].transpose(-1, -2)).float()
            seen, weight = _weighted(scores, prefix.layers.values[layer])
            seen = seen.view(groups, len(members), heads // groups, width).transpose(0, 1)
            weight = weight.view(groups, len(members), heads // groups).transpose(0, 1)
            # The softmax over both parts is the mean of the two softmaxes, weighted by exp(normaliser).
            share = torch.sigmoid(weight - normaliser[members]).unsqueeze(-1)
            output[members] = torch.lerp(output[members].float(), seen.float(), share).to(output.dtype)
        return output.reshape(1, rows, heads, width)


def _weighted(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(softmax(scores) @ values, log of the sum of exp(scores)) of scores (…, queries, keys), changed in place, and values (…, keys, D)."""
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    output = weights.to(values.dtype) @ values / total.to(values.dtype)
    return output, (highest + total.log()).squeeze(-1)


def _joined(buffers: Sequence[_Buffer]) -> _Buffer:
    """Buffers of one width as one; their parts are let go layer by layer."""
    import torch

    if len(buffers) == 1:
        return buffers[0]
    joined = _Layers()
    for layer in range(len(buffers[0].layers.keys)):
        for kind in ("keys", "values"):
            parts = [getattr(buffer.layers, kind)[layer] for buffer in buffers]
            getattr(joined, kind).append(torch.cat(parts))
            for buffer in buffers:
                getattr(buffer.layers, kind)[layer] = parts[0][:0]
    rows = [row for buffer in buffers for row in buffer.rows]
    return _Buffer(buffers[0].width, rows, joined, torch.cat([buffer.hidden for buffer in buffers]))


def _compacted(buffers: Sequence[_Buffer], alive: Sequence[bool]) -> list[_Buffer]:
    """The buffers without the rows that have ended."""
    import torch

    compacted: list[_Buffer] = []
    start = 0
    for buffer in buffers:
        keep = [place for place in range(len(buffer.rows)) if alive[start + place]]
        start += len(buffer.rows)
        if keep:
            index = torch.tensor(keep, device=buffer.hidden.device)
            for kind in (buffer.layers.keys, buffer.layers.values):
                for layer, tensor in enumerate(kind):
                    kind[layer] = tensor.index_select(0, index)
            compacted.append(_Buffer(buffer.width, [buffer.rows[place] for place in keep], buffer.layers, buffer.hidden[index]))
    return compacted


def _shared_by(
    prefixes: Sequence[tuple[_Prefix, list[int]]], rows: Sequence[int], device: torch.device
) -> list[tuple[_Prefix, torch.Tensor]]:
    """Each prefix with the slots of its rows that are still being decoded."""
    import torch

    slot_of = {row: slot for slot, row in enumerate(rows)}
    found = [(prefix, [slot_of[row] for row in members if row in slot_of]) for prefix, members in prefixes]
    return [(prefix, torch.tensor(slots, device=device)) for prefix, slots in found if slots]


def _gather(layers: _Layers, ranges: Sequence[tuple[int, int]], free: bool = False) -> _Layers:
    """Copies of the keys and values in `ranges`, (1, G, tokens, D) a layer; `free` lets each tensor go when it is copied."""
    import torch

    gathered = _Layers()
    for source, copies in ((layers.keys, gathered.keys), (layers.values, gathered.values)):
        for layer, tensor in enumerate(source):
            copies.append(torch.cat([tensor[:, :, start:end] for start, end in ranges], dim=2))
            if free:
                source[layer] = copies[-1]
    return gathered


def _width(tokens: int) -> int:
    return next((width for width in WIDTHS if width >= tokens), -(-tokens // 4096) * 4096)


def cache_bytes_per_token(model: nn.Module) -> int:
    """Bytes of one token's keys and values over all layers."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [parameter for parameter in floating if not parameter.requires_grad]
    return int(2 * config.num_hidden_layers * heads * width * (frozen or floating)[0].element_size())


# --- the reference ------------------------------------------------------------------------------------------------------------


def generate_plainly(
    model: nn.Module, prompts: Sequence[Tokens], budget_tokens: int, end_ids: Sequence[int], batch_rows: int = 1
) -> Iterator[tuple[int, ...]]:
    """transformers' own `generate`, greedy, left-padded batches of `batch_rows`: what `generate` must agree with, row by row."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_rows):
        batch = prompts[start : start + batch_rows]
        longest = max(map(len, batch))
        ids = [[end_ids[0]] * (longest - len(prompt)) + list(prompt) for prompt in batch]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
        with torch.inference_mode():
            found = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=budget_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=list(end_ids),
                pad_token_id=end_ids[0],
                use_cache=True,
            )
        for row in found[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in end_ids), len(row))
            yield tuple(row[:end])
