"""Rows laid end to end in one sequence behind a single copy of their common prompt prefix.

Each token sees its own row's earlier tokens and the prefix in front of its row, nothing else, and keeps the position it would
have in a row of its own. Loss and gradients therefore equal those of separate rows, without padding and with each prefix run
once. (The idea of the block mask is that of document masking in long-context training; the sharing is that of prefix caching.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfinlora.attention import AttentionPlan, make_plan

if TYPE_CHECKING:
    import torch

SHORTEST_SHARED_PREFIX = 4
"""Prefixes of fewer tokens are not worth a block of their own."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized row. Loss is on the answer only."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """The target's tokens and the end-of-sequence token."""
    index: int = 0
    """The caller's own number for the row: packing reorders rows."""


@dataclass(frozen=True)
class Block:
    """Rows that share the first `prefix_tokens` tokens of their prompts."""

    examples: tuple[Example, ...]
    prefix_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the block in a packed sequence. A row's last answer token is predicted, never read."""
        rows = sum(len(example.prompt_ids) + len(example.answer_ids) - 1 - self.prefix_tokens for example in self.examples)
        return self.prefix_tokens + rows


@dataclass(frozen=True)
class Pack:
    """One forward pass: T tokens of which A positions carry loss."""

    token_ids: torch.Tensor
    """(1, T) int64."""
    position_ids: torch.Tensor
    """(1, T) int64: each token's place in its own row."""
    mask: torch.Tensor
    """(1, 1, T, T) bool: query i may look at key j. (1, 1, 1, 1) and not looked at where there is a plan."""
    plan: AttentionPlan | None
    """How to compute attention without the empty blocks of the mask; None where the mask is cheaper."""
    answer_index: torch.Tensor
    """(A,) int64: positions in T whose next token is an answer token."""
    answer_ids: torch.Tensor
    """(A,) int64: those next tokens."""
    owner: torch.Tensor
    """(T,) int64: which prefix or row each token belongs to."""
    parent: torch.Tensor
    """(T,) int64: the owner of the prefix in front of each token."""
    row_index: tuple[int, ...]
    """`Example.index` of each row, in packed order."""


def common_prefix_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle
    return low


def make_blocks(examples: Sequence[Example], share_prefix: bool = True) -> list[Block]:
    """Group rows by common prompt prefix, greedily over the sorted prompts, as long as a group saves more tokens than before."""
    ordered = sorted(examples, key=lambda example: (example.prompt_ids, example.answer_ids))
    blocks: list[Block] = []
    group: list[Example] = []
    prefix = 0
    for example in ordered:
        # The last prompt token stays with its row: it predicts the first answer token.
        shared = (
            min(common_prefix_tokens(group[0].prompt_ids, example.prompt_ids), prefix, len(example.prompt_ids) - 1)
            if group
            else 0
        )
        saved_before, saved_after = (len(group) - 1) * prefix, len(group) * shared
        if group and share_prefix and shared >= SHORTEST_SHARED_PREFIX and saved_after >= saved_before:
            group.append(example)
            prefix = shared
        else:
            if group:
                blocks.append(Block(tuple(group), prefix if len(group) > 1 else 0))
            group, prefix = [example], len(example.prompt_ids) - 1
    if group:
        blocks.append(Block(tuple(group), prefix if len(group) > 1 else 0))
    return blocks


def split_blocks(blocks: Sequence[Block], batch_tokens: int) -> Iterator[list[Block]]:
    """Fill packs of at most `batch_tokens` tokens, cutting blocks between rows. A longer single row gets a pack of its own."""
    current: list[Block] = []
    used = 0
    for block in blocks:
        rows: list[Example] = []
        for example in block.examples:
            cost = len(example.prompt_ids) + len(example.answer_ids) - 1 - block.prefix_tokens
            opening = 0 if rows else block.prefix_tokens
            if used + opening + cost > batch_tokens and (current or rows):
                if rows:
                    current.append(Block(tuple(rows), block.prefix_tokens))
                yield current
                current, rows, used, opening = [], [], 0, block.prefix_tokens
            rows.append(example)
            used += opening + cost
        if rows:
            current.append(Block(tuple(rows), block.prefix_tokens))
    if current:
        yield current


def block_mask(owner: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """(T, T) bool from each token's block `owner` and the owner of the prefix it may also see, `parent`, both (T,) int64."""
    import torch

    mine = owner.unsqueeze(1) == owner.unsqueeze(0)
    prefix = parent.unsqueeze(1) == owner.unsqueeze(0)
    return torch.tril(mine | prefix)


def make_pack(blocks: Sequence[Block], device: torch.device | str = "cpu", planned: bool = True) -> Pack:
    """Lay blocks end to end. `planned=False` always makes the mask."""
    import torch

    token_ids: list[int] = []
    position_ids: list[int] = []
    owner: list[int] = []
    parent: list[int] = []
    answer_index: list[int] = []
    answer_ids: list[int] = []
    owners = 0
    for block in blocks:
        shared = block.prefix_tokens
        prefix_owner = owners
        owners += 1
        token_ids += block.examples[0].prompt_ids[:shared]
        position_ids += range(shared)
        owner += [prefix_owner] * shared
        parent += [prefix_owner] * shared
        for example in block.examples:
            tokens = example.prompt_ids[shared:] + example.answer_ids[:-1]
            first_answer = len(token_ids) + len(example.prompt_ids) - shared - 1
            token_ids += tokens
            position_ids += range(shared, shared + len(tokens))
            owner += [owners] * len(tokens)
            parent += [prefix_owner] * len(tokens)
            answer_index += range(first_answer, first_answer + len(example.answer_ids))
            answer_ids += example.answer_ids
            owners += 1
    lengths = [
        (block.prefix_tokens, [len(row.prompt_ids) + len(row.answer_ids) - 1 - block.prefix_tokens for row in block.examples])
        for block in blocks
    ]
    plan = make_plan(lengths, device) if planned else None
    owner_t, parent_t = torch.tensor(owner, device=device), torch.tensor(parent, device=device)
    return Pack(
        token_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.tensor([position_ids], device=device),
        mask=block_mask(owner_t, parent_t)[None, None]
        if plan is None
        else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        plan=plan,
        answer_index=torch.tensor(answer_index, device=device),
        answer_ids=torch.tensor(answer_ids, device=device),
        owner=owner_t,
        parent=parent_t,
        row_index=tuple(example.index for block in blocks for example in block.examples),
    )
