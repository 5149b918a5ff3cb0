"""Rows laid end to end in one sequence as a tree: a beginning that several rows share is there once.

Each token sees its own row's earlier tokens, wherever they lie, and nothing else, and keeps the position it would have
in a row of its own. Loss and gradients therefore equal those of separate rows, without padding and with each common
beginning run once. (The tree is the radix tree of SGLang's RadixAttention, Zheng et al. 2024, used here for training as
well.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fedfinlora.model.attention import Plan, QuerySpan, Range, TreePlan, make_runs, merge_ranges, no_mask

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

LEAST_SAVED_TOKENS = 4
"""A common beginning becomes a stretch of its own if that saves at least so many tokens."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized row. Loss is on the answer only."""

    prompt_ids: Tokens
    answer_ids: Tokens
    """The target's tokens and the end-of-sequence token."""
    index: int = 0
    """The caller's own number for the row: packing reorders rows."""

    @property
    def read_ids(self) -> Tokens:
        """The tokens that a model reads: the last answer token is only predicted."""
        return self.prompt_ids + self.answer_ids[:-1]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that the same rows share."""

    tokens: Tokens
    start: int
    """Place of the first token in the packed sequence."""
    depth: int
    """Position of the first token in its rows: how many tokens are in front of it."""
    parent: int
    """Number of the segment in front of it; -1 for a root."""

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Tree:
    """Sequences as a tree of segments, in depth-first order."""

    segments: tuple[Segment, ...]
    leaves: tuple[int, ...]
    """The segment in which each sequence ends."""
    cached_tokens: int
    """Length S of the sequence that was read before and precedes the roots: a root of depth d continues its
    first d tokens.
    """

    @property
    def tokens(self) -> int:
        """Length T of the packed sequence."""
        return self.segments[-1].end if self.segments else 0

    def path(self, segment: int) -> list[Segment]:
        """The segments from the root to `segment`."""
        found = []
        while segment >= 0:
            found.append(self.segments[segment])
            segment = found[-1].parent
        return found[::-1]

    def keys(self, sequence: int, start: int, end: int) -> list[Range]:
        """Where tokens [start, end) of a sequence lie in key coordinates: the cached_prefix's places first, then S +
        place.
        """
        path = self.path(self.leaves[sequence])
        places = [(0, path[0].depth, 0)]  # (first token, end, key of the first)
        places += [
            (segment.depth, segment.depth + len(segment.tokens), self.cached_tokens + segment.start) for segment in path
        ]
        cut = [(max(first, start) + at - first, min(last, end) + at - first) for first, last, at in places]
        return [found for found in cut if found[0] < found[1]]


@dataclass(frozen=True)
class Pack:
    """One forward pass over R rows: T tokens, of which A positions (counted for each row that uses them) carry loss."""

    token_ids: torch.Tensor
    """(1, T) int64."""
    position_ids: torch.Tensor
    """(1, T) int64: each token's place in its own row."""
    plan: Plan
    answer_index: torch.Tensor
    """(A,) int64: places in T whose next token is an answer token, row by row; rows with the same beginning may share
    places.
    """
    answer_ids: torch.Tensor
    """(A,) int64: those next tokens."""
    row_index: tuple[int, ...]
    """`Example.index` of each row, in packed order."""
    answer_lengths: tuple[int, ...]
    """How many of the A positions belong to each row, in packed order."""

    @property
    def tokens(self) -> int:
        return int(self.token_ids.shape[1])


def common_prefix_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def make_tree(sequences: Sequence[Tokens], share: bool = True, cached_prefix: Tokens = ()) -> Tree:
    """The tree of sorted, non-empty sequences. `share=False` gives each a segment of its own.

    What a sequence has in common with the `cached_prefix` is not in the tree, but for its last token, whose output is
    wanted.
    """
    shared = [0] * len(sequences)  # with the sequence before
    if share:
        for number in range(1, len(sequences)):
            shared[number] = common_prefix_tokens(sequences[number - 1], sequences[number])
    on_cached = [
        min(common_prefix_tokens(cached_prefix, tokens), len(tokens) - 1) if cached_prefix else 0
        for tokens in sequences
    ]
    segments: list[Segment] = []
    leaves = [-1] * len(sequences)
    place = 0
    # Each entry: sequences first to last (exclusive), whose tokens from `depth` on are still to be laid out behind
    # `parent`.
    waiting: list[tuple[int, int, int, int]] = []
    first = 0
    for number in range(1, len(sequences) + 1):
        if number == len(sequences) or on_cached[number] != on_cached[first]:
            waiting.append((first, number, on_cached[first], -1))
            first = number
    waiting.reverse()
    while waiting:
        first, last, depth, parent = waiting.pop()
        tokens = sequences[first]
        alone = last - first == 1
        common = len(tokens) if alone else min(shared[first + 1 : last])
        if (common - depth) * (last - first - 1) >= LEAST_SAVED_TOKENS or (alone and common > depth):
            segments.append(Segment(tokens[depth:common], place, depth, parent))
            parent, depth, place = len(segments) - 1, common, place + common - depth
        if alone:
            leaves[first] = parent
            continue
        ends = [number for number in range(first + 1, last) if shared[number] == common]
        branches = list(zip([first, *ends], [*ends, last], strict=True))
        for start, _ in branches:
            if len(sequences[start]) == depth and parent >= 0:  # it ends in the common part, and so do its equals
                leaves[start] = parent
        waiting += [(start, end, depth, parent) for start, end in reversed(branches) if leaves[start] < 0]
    return Tree(tuple(segments), tuple(leaves), len(cached_prefix))


def visible_until(tree: Tree) -> NDArray[np.int32] | None:
    """(S + T,): for each key the first token of the packed sequence that does not see it, all before it from the key
    itself on do: the end of the subtree that begins with its segment. None where the roots' cached prefixes are not
    nested.
    """
    import numpy as np

    ends = [segment.end for segment in tree.segments]
    for number in range(len(ends) - 1, -1, -1):  # depth first: children come after their parent
        parent = tree.segments[number].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[number])
    until = np.zeros(tree.cached_tokens + tree.tokens, np.int32)
    deepest = tree.cached_tokens
    for segment, end in zip(tree.segments, ends, strict=True):
        until[tree.cached_tokens + segment.start : tree.cached_tokens + segment.end] = end
        if segment.parent < 0:
            if segment.depth > deepest:
                return None
            deepest = segment.depth
            until[:deepest] = end
    return until


def plan_of(tree: Tree, device: torch.device | str) -> Plan:
    """The attention of a tree, over S + T keys: one kernel on GPUs (`fedfinlora.model.tree_kernel`), else by runs."""
    if str(device).startswith("cuda") and (until := visible_until(tree)) is not None:
        from fedfinlora.model.tree_kernel import KernelPlan, tree_mask

        return KernelPlan(tree_mask(until, tree.cached_tokens, device), partial(runs_of, tree, device))
    return runs_of(tree, device)


def runs_of(tree: Tree, device: torch.device | str) -> TreePlan:
    """The attention of a tree by runs."""
    stretches = []
    for number, segment in enumerate(tree.segments):
        path = tree.path(number)
        ranges = [(0, path[0].depth)] if path[0].depth else []
        ranges += [(tree.cached_tokens + part.start, tree.cached_tokens + part.end) for part in path[:-1]]
        stretches.append(QuerySpan(segment.start, segment.end, tuple(merge_ranges(ranges))))
    return TreePlan(make_runs(stretches, tree.cached_tokens, device))


def in_order(examples: Sequence[Example]) -> list[Example]:
    """Rows sorted by their tokens, so that rows with a common beginning are neighbours."""
    return sorted(examples, key=lambda example: (example.read_ids, example.answer_ids))


def split_rows(examples: Sequence[Example], batch_tokens: int, share: bool = True) -> Iterator[list[Example]]:
    """Sort rows and cut them into packs: after its first row a pack takes at most `batch_tokens` further tokens.

    Tokens that a row has in common with the one before it in the pack cost nothing.
    """
    current: list[Example] = []
    used = 0
    for example in in_order(examples):
        read = example.read_ids
        cost = len(read) - (common_prefix_tokens(current[-1].read_ids, read) if current and share else 0)
        if current and used + cost > batch_tokens:
            yield current
            current, used = [], 0
        elif current:
            used += cost
        current.append(example)
    if current:
        yield current


def make_pack(
    examples: Sequence[Example], device: torch.device | str = "cpu", share: bool = True, keep_order: bool = False
) -> Pack:
    """Lay rows end to end as a tree. `keep_order` leaves rows that share nothing in the order in which they are
    given.
    """
    import torch

    assert not (share and keep_order), "rows share their beginnings with neighbours in sorted order"
    ordered = list(examples) if keep_order else in_order(examples)
    tree = make_tree([example.read_ids for example in ordered], share)
    token_ids: list[int] = []
    position_ids: list[int] = []
    for segment in tree.segments:
        token_ids += segment.tokens
        position_ids += range(segment.depth, segment.depth + len(segment.tokens))
    answer_index: list[int] = []
    answer_ids: list[int] = []
    for number, example in enumerate(ordered):
        first = len(example.prompt_ids) - 1
        for start, end in tree.keys(number, first, first + len(example.answer_ids)):
            answer_index += range(start, end)
        answer_ids += example.answer_ids
    return Pack(
        token_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.tensor([position_ids], device=device),
        plan=plan_of(tree, device),
        answer_index=torch.tensor(answer_index, device=device),
        answer_ids=torch.tensor(answer_ids, device=device),
        row_index=tuple(example.index for example in ordered),
        answer_lengths=tuple(len(example.answer_ids) for example in ordered),
    )


def index_for(model: nn.Module, index: torch.Tensor) -> torch.Tensor:
    """An index into the last layer's output: on the CPU where a model's layers lie on several GPUs."""
    spread = len({parameter.device for parameter in model.parameters()}) > 1
    return index.cpu() if spread else index


def answer_logits(model: nn.Module, pack: Pack) -> torch.Tensor:
    """(A, vocabulary) float32: logits at the positions that carry loss, and at no others."""
    logits: torch.Tensor = model(
        input_ids=pack.token_ids,
        position_ids=pack.position_ids,
        attention_mask=no_mask(pack.token_ids.device),
        plan=pack.plan,
        logits_to_keep=index_for(model, pack.answer_index),
        use_cache=False,
    ).logits
    return logits[0].float()
