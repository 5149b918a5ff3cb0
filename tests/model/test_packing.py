"""Rows laid end to end as a tree give the loss and the gradients of rows on their own, and no row or token is lost on
the way.
"""

from __future__ import annotations

import doctest
import itertools
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import EOS, PAIRS, MakeSession, set_random_adapter, text_examples, tiny_config
from filings import filing_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.model import attention
from fedfinlora.model.adapter import trainable
from fedfinlora.model.attention import LONGEST_RUN, SHORTEST_RUN, attend_by_runs, merge_ranges
from fedfinlora.model.packing import (
    LEAST_SAVED_TOKENS,
    Example,
    Pack,
    Tokens,
    common_prefix_tokens,
    in_order,
    make_pack,
    make_tree,
    plan_of,
    split_rows,
)
from fedfinlora.train.gradient_step import answer_loss

if TYPE_CHECKING:
    from torch import nn

# Few different tokens and a handful of common beginnings, so that beginnings of every length are shared, at several
# levels.
TOKEN = st.integers(2, 4)
START = st.sampled_from([(), (2, 3, 4, 2, 3), (2, 3, 4, 2, 3, 4, 4), (2, 3, 4, 2, 3, *(4,) * 40), (4,) * 9])
SEQUENCE = st.builds(lambda start, rest: start + tuple(rest), START, st.lists(TOKEN, min_size=1, max_size=7))
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=12).map(sorted)
ANSWER = st.lists(TOKEN, max_size=3).map(lambda tokens: (*tokens, EOS))


@st.composite
def example_lists(draw: st.DrawFn, max_size: int = 8) -> list[Example]:
    rows = draw(st.lists(st.tuples(SEQUENCE, ANSWER), min_size=1, max_size=max_size))
    return [Example(prompt, answer, index) for index, (prompt, answer) in enumerate(rows)]


# --- what each token sees, worked out from the rows alone -----------------------------------------


def visible(sequences: list[Tokens], share: bool = True, cached_prefix: Tokens = ()) -> torch.Tensor:
    """(T, S + T) bool: which keys each token of the packed sequence must see.

    Each sequence says so for its own tokens: a token sees those in front of it and itself, wherever they lie. Two
    sequences that share a token must say the same of it.
    """
    tree = make_tree(sequences, share, cached_prefix)
    places = len(cached_prefix)
    mask = torch.zeros(tree.tokens, places + tree.tokens, dtype=torch.bool)
    said = torch.zeros(tree.tokens, dtype=torch.bool)
    for number, tokens in enumerate(sequences):
        keys = [key for start, end in tree.keys(number, 0, len(tokens)) for key in range(start, end)]
        for position, key in enumerate(keys):
            if key < places:
                continue
            row = torch.zeros(places + tree.tokens, dtype=torch.bool)
            row[keys[: position + 1]] = True
            assert not said[key - places] or torch.equal(mask[key - places], row)
            mask[key - places], said[key - places] = row, True
    assert said.all(), "a token that belongs to no sequence"
    return mask


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention under the whole mask, written out. Returns (1, T, H, D)."""
    copies = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(copies, dim=1).transpose(2, 3) * scaling
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (weights @ value.repeat_interleave(copies, dim=1)).transpose(1, 2)


# --- laws of the tree -----------------------------------------------------------------------------


@given(SEQUENCES, st.booleans(), st.one_of(st.just(()), SEQUENCE))
def test_every_sequence_is_found_along_its_path(sequences: list[Tokens], share: bool, cached_prefix: Tokens) -> None:
    tree = make_tree(sequences, share, cached_prefix)
    flat = [*cached_prefix, *(token for segment in tree.segments for token in segment.tokens)]
    assert tree.cached_tokens == len(cached_prefix)
    assert len(flat) == len(cached_prefix) + tree.tokens
    for number, tokens in enumerate(sequences):
        path = tree.path(tree.leaves[number])
        on_cached = path[0].depth
        assert tokens == (*cached_prefix[:on_cached], *(token for segment in path for token in segment.tokens))
        depth = on_cached
        for segment in path:
            assert segment.depth == depth
            depth += len(segment.tokens)
        keys = [key for start, end in tree.keys(number, 0, len(tokens)) for key in range(start, end)]
        assert tuple(flat[key] for key in keys) == tokens
        for start in range(len(tokens)):
            for end in range(start, len(tokens) + 1):
                ranges = tree.keys(number, start, end)
                assert [key for first, last in ranges for key in range(first, last)] == keys[start:end]
                assert all(first < last for first, last in ranges)


@given(SEQUENCES, st.booleans(), st.one_of(st.just(()), SEQUENCE))
def test_segments_lie_end_to_end_with_parents_in_front(
    sequences: list[Tokens], share: bool, cached_prefix: Tokens
) -> None:
    tree = make_tree(sequences, share, cached_prefix)
    place = 0
    for number, segment in enumerate(tree.segments):
        assert segment.tokens
        assert segment.start == place
        assert -1 <= segment.parent < number
        place = segment.end
    assert tree.tokens == place
    used = {number for leaf in tree.leaves for number in ancestors(tree.segments, leaf)}
    assert used == set(range(len(tree.segments)))


def ancestors(segments: tuple[object, ...], number: int) -> list[int]:
    found = []
    while number >= 0:
        found.append(number)
        number = segments[number].parent  # type: ignore[attr-defined]
    return found


@given(SEQUENCES)
def test_no_saving_worth_a_segment_is_left(sequences: list[Tokens]) -> None:
    """Sorted neighbours share all that they have in common, but for less than LEAST_SAVED_TOKENS at each level."""
    tree = make_tree(sequences)
    for number, (one, other) in enumerate(itertools.pairwise(sequences)):
        common = common_prefix_tokens(one, other)
        keys, others = (
            [key for start, end in tree.keys(place, 0, common) for key in range(start, end)]
            for place in (number, number + 1)
        )
        kept = sum(one_key == other_key for one_key, other_key in zip(keys, others, strict=True))
        assert keys[:kept] == others[:kept], "they part once and for all"
        assert common - kept < LEAST_SAVED_TOKENS


@given(SEQUENCES)
def test_without_sharing_each_sequence_is_a_segment_of_its_own(sequences: list[Tokens]) -> None:
    tree = make_tree(sequences, share=False)
    assert [segment.tokens for segment in tree.segments] == sequences
    assert {(segment.parent, segment.depth) for segment in tree.segments} == {(-1, 0)}
    assert list(tree.leaves) == list(range(len(sequences)))


@given(SEQUENCES, SEQUENCE)
def test_a_cached_prefix_is_not_read_again_but_for_the_last_token(
    sequences: list[Tokens], cached_prefix: Tokens
) -> None:
    tree = make_tree(sequences, cached_prefix=cached_prefix)
    for number, tokens in enumerate(sequences):
        expected = min(common_prefix_tokens(cached_prefix, tokens), len(tokens) - 1)
        assert tree.path(tree.leaves[number])[0].depth == expected
        ((start, end),) = tree.keys(number, 0, expected) or [(0, 0)]
        assert (start, end) == (0, expected)


def test_identical_rows_lie_there_once() -> None:
    tree = make_tree([(5, 6, 7, 8, 9)] * 3)
    assert [segment.tokens for segment in tree.segments] == [(5, 6, 7, 8, 9)]
    assert tree.leaves == (0, 0, 0)


def test_a_row_that_begins_another_ends_inside_the_tree() -> None:
    tree = make_tree([(5, 6, 7, 8), (5, 6, 7, 8), (5, 6, 7, 8, 9), (5, 6, 7, 8, 9, 9)])
    assert [segment.tokens for segment in tree.segments] == [(5, 6, 7, 8), (9,), (9, 9)]
    assert [segment.parent for segment in tree.segments] == [-1, 0, 0]
    assert tree.leaves == (0, 0, 1, 2)


def test_a_beginning_that_saves_too_little_is_read_by_each_row() -> None:
    assert [segment.tokens for segment in make_tree([(5, 6, 7, 8), (5, 6, 7, 9)]).segments] == [
        (5, 6, 7, 8),
        (5, 6, 7, 9),
    ]
    assert make_tree([(5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 7, 10)]).tokens == 6, "two rows are saved three tokens each"


def test_three_levels_by_hand() -> None:
    common, filing = (1, 2, 3, 4), (5, 6, 7, 8)
    tree = make_tree([(*common, *filing, 20), (*common, *filing, 21), (*common, 9)])
    assert [(part.tokens, part.start, part.depth, part.parent) for part in tree.segments] == [
        (common, 0, 0, -1),
        (filing, 4, 4, 0),
        ((20,), 8, 8, 1),
        ((21,), 9, 8, 1),
        ((9,), 10, 4, 0),
    ]
    assert tree.leaves == (2, 3, 4)
    assert tree.keys(1, 2, 9) == [(2, 4), (4, 8), (9, 10)]
    shown = [
        "".join("1" if cell else "." for cell in line)
        for line in visible([(*common, *filing, 20), (*common, *filing, 21), (*common, 9)]).tolist()
    ]
    assert shown == [
        "1..........",
        "11.........",
        "111........",
        "1111.......",
        "11111......",
        "111111.....",
        "1111111....",
        "11111111...",
        "111111111..",
        "11111111.1.",
        "1111......1",
    ]


def test_no_sequences_make_an_empty_tree() -> None:
    assert make_tree([]).tokens == 0
    assert list(split_rows([], 10)) == []


@given(st.lists(TOKEN, max_size=12), st.lists(TOKEN, max_size=12))
def test_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    length = common_prefix_tokens(one, other)
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length == min(len(one), len(other))


# --- laws of packs --------------------------------------------------------------------------------


@given(example_lists(max_size=14), st.booleans(), st.integers(1, 80))
def test_split_loses_no_row_and_keeps_to_the_budget(examples: list[Example], share: bool, batch_tokens: int) -> None:
    parts = list(split_rows(examples, batch_tokens, share))
    assert Counter(example for part in parts for example in part) == Counter(examples)
    assert [example for part in parts for example in part] == in_order(examples)
    for part in parts:
        further = make_tree([example.read_ids for example in part], share).tokens - len(part[0].read_ids)
        # Beginnings too short for a segment are read by each row although they cost nothing in the budget.
        assert further <= batch_tokens + (LEAST_SAVED_TOKENS - 1) * (len(part) - 1) * share


@given(example_lists(), st.booleans(), st.integers(1, 80))
def test_every_answer_token_appears_once_after_its_own_row(
    examples: list[Example], share: bool, batch_tokens: int
) -> None:
    by_index = {example.index: example for example in examples}
    found: list[int] = []
    for part in split_rows(examples, batch_tokens, share):
        pack = make_pack(part, share=share)
        assert pack.token_ids.shape == pack.position_ids.shape == (1, pack.tokens)
        mask = visible([example.read_ids for example in part], share)
        # A token's position is how many tokens it sees before itself: what it would be in a row of its own.
        np.testing.assert_array_equal(mask.sum(dim=1).numpy() - 1, pack.position_ids[0].numpy())
        at = 0
        for index, length in zip(pack.row_index, pack.answer_lengths, strict=True):
            example = by_index[index]
            assert tuple(pack.answer_ids[at : at + length].tolist()) == example.answer_ids
            for answered, place in enumerate(pack.answer_index[at : at + length].tolist()):
                seen = sorted(
                    zip(
                        pack.position_ids[0][mask[place]].tolist(), pack.token_ids[0][mask[place]].tolist(), strict=True
                    )
                )
                assert tuple(token for _, token in seen) == example.prompt_ids + example.answer_ids[:answered]
            at += length
        assert at == len(pack.answer_ids)
        found += pack.row_index
    assert sorted(found) == list(range(len(examples)))


@given(example_lists(), st.integers(0, 5))
def test_the_order_of_the_rows_does_not_matter(examples: list[Example], seed: int) -> None:
    shuffled = [examples[place] for place in np.random.default_rng(seed).permutation(len(examples))]
    one, other = make_pack(examples), make_pack(shuffled)
    assert torch.equal(one.token_ids, other.token_ids)
    assert torch.equal(one.answer_ids, other.answer_ids)
    assert torch.equal(one.answer_index, other.answer_index)


def test_two_rows_behind_a_common_beginning_by_hand() -> None:
    pack = make_pack([Example((5, 6, 7, 8, 9), (20, EOS), 0), Example((5, 6, 7, 8, 10, 11), (21, EOS), 1)])
    assert pack.token_ids.tolist() == [[5, 6, 7, 8, 9, 20, 10, 11, 21]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6]]
    assert pack.answer_index.tolist() == [4, 5, 7, 8]
    assert pack.answer_ids.tolist() == [20, EOS, 21, EOS]
    assert (pack.row_index, pack.answer_lengths) == ((0, 1), (2, 2))


def test_two_rows_without_sharing_by_hand() -> None:
    pack = make_pack([Example((5, 6), (20, EOS), 0), Example((5, 7), (EOS,), 1)], share=False)
    assert pack.token_ids.tolist() == [[5, 6, 20, 5, 7]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert pack.answer_index.tolist() == [1, 2, 4]


def test_equal_prompts_are_read_once_and_answered_from_the_same_place() -> None:
    pack = make_pack([Example((5, 6, 7, 8, 9), (answer, EOS), answer) for answer in (30, 31, 31)])
    assert pack.token_ids.tolist() == [[5, 6, 7, 8, 9, 30, 31, 31]], "single tokens are not worth a segment"
    assert pack.answer_index.tolist() == [4, 5, 4, 6, 4, 7]
    assert pack.answer_ids.tolist() == [30, EOS, 31, EOS, 31, EOS]


def test_sharing_saves_what_it_promises() -> None:
    examples = filing_examples(filings=2, questions=3, filing_tokens=150)
    apart, together = (make_pack(examples, share=share).tokens for share in (False, True))
    assert apart == sum(len(example.read_ids) for example in examples)
    own = sum(len(example.read_ids) - 30 - 150 - 12 for example in examples)
    assert together == 30 + 2 * 150 + 2 * 3 * 12 + own


# --- attention ------------------------------------------------------------------------------------


def random_heads(tokens: int, earlier: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query (1, 4, T, 8) and key and value (1, 2, S + T, 8): two query heads read each key head."""
    draw = torch.Generator().manual_seed(seed)
    sizes = ((4, tokens), (2, earlier + tokens), (2, earlier + tokens))
    query, key, value = (torch.randn(1, heads, length, 8, generator=draw).requires_grad_() for heads, length in sizes)
    return query, key, value


def check_attention(sequences: list[Tokens], share: bool, cached_prefix: Tokens, seed: int) -> None:
    tree = make_tree(sequences, share, cached_prefix)
    heads = random_heads(tree.tokens, len(cached_prefix), seed)
    expected = dense_attention(*heads, visible(sequences, share, cached_prefix), 0.3)
    found = attend_by_runs(*heads, plan_of(tree, "cpu").runs, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 1))
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), heads),
        torch.autograd.grad((expected * weights).sum(), heads),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(
    SEQUENCES,
    st.booleans(),
    st.one_of(st.just(()), SEQUENCE),
    st.integers(0, 9),
    st.sampled_from([(1, 1), (2, 3), (64, 256)]),
)
def test_attention_by_runs_and_its_gradients_equal_the_whole_mask(
    sequences: list[Tokens], share: bool, cached_prefix: Tokens, seed: int, run_bounds: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SHORTEST_RUN", run_bounds[0])
        patch.setattr(attention, "LONGEST_RUN", run_bounds[1])
        check_attention(sequences, share, cached_prefix, seed)


@pytest.mark.parametrize("read_before", [0, 100, 400])
@pytest.mark.parametrize("share", [True, False])
def test_attention_over_long_rows_equals_that_under_the_whole_mask(share: bool, read_before: int) -> None:
    """Runs as long as in earnest: a common beginning of several runs, rows of several runs and several rows in a
    run.
    """
    sequences = sorted(example.read_ids for example in filing_examples(filings=2, questions=2, filing_tokens=500))
    long_row = tuple(np.random.default_rng(0).integers(2, 258, 400).tolist())
    check_attention(sorted([*sequences, sequences[0][:400] + long_row]), share, sequences[0][:read_before], 0)


@given(SEQUENCES, st.booleans(), st.one_of(st.just(()), SEQUENCE))
def test_runs_cover_every_query_once(sequences: list[Tokens], share: bool, cached_prefix: Tokens) -> None:
    tree = make_tree(sequences, share, cached_prefix)
    place = 0
    for run in plan_of(tree, "cpu").runs:
        assert run.start == place < run.end
        assert merge_ranges(run.keys) == list(run.keys)
        keys = sum(end - start for start, end in run.keys)
        assert run.mask is None or run.mask.shape == (run.end - run.start, keys)
        assert run.mask is None or run.end - run.start <= LONGEST_RUN
        place = run.end
    assert place == tree.tokens


def test_the_beginning_of_everything_is_one_causal_run() -> None:
    first, *others = plan_of(make_tree([(5,) * (SHORTEST_RUN + 1)]), "cpu").runs
    assert (first.start, first.end, first.mask, others) == (0, SHORTEST_RUN + 1, None, [])


def test_the_doctests_of_the_module_hold() -> None:
    found = doctest.testmod(attention)
    assert found.attempted > 0
    assert found.failed == 0


# --- loss and gradients ---------------------------------------------------------------------------


def loss_and_gradients(model: nn.Module, packs: list[Pack]) -> tuple[float, torch.Tensor]:
    parameters = list(trainable(model).values())
    total = torch.stack([answer_loss(model, pack) for pack in packs]).sum()
    gradients = torch.autograd.grad(total, parameters)
    return float(total.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])


def plain_loss_and_gradients(model: nn.Module, examples: list[Example]) -> tuple[float, torch.Tensor]:
    """Each row in a forward pass of its own, without plan, positions or any code of the packing module."""
    parameters = list(trainable(model).values())
    losses = []
    for example in examples:
        token_ids = torch.tensor([example.prompt_ids + example.answer_ids])
        logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits[0, len(example.prompt_ids) - 1 :]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="sum"))
    total = torch.stack(losses).sum()
    gradients = torch.autograd.grad(total, parameters)
    return float(total.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])


def check_equal_to_separate_rows(model: nn.Module, examples: list[Example], share: bool, batch_tokens: int) -> None:
    expected_loss, expected = plain_loss_and_gradients(model, examples)
    packs = [make_pack(part, share=share) for part in split_rows(examples, batch_tokens, share)]
    loss, gradients = loss_and_gradients(model, packs)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float((gradients - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    from fedfinlora.model.loading import get_session

    session = get_session(tiny_config())
    set_random_adapter(session)
    return session.model.train()


@settings(max_examples=25)
@given(examples=example_lists(), share=st.booleans(), batch_tokens=st.sampled_from([1, 12, 40, 4096]))
def test_packed_loss_and_gradients_equal_those_of_separate_rows(
    model: nn.Module, examples: list[Example], share: bool, batch_tokens: int
) -> None:
    check_equal_to_separate_rows(model, examples, share, batch_tokens)


@pytest.mark.parametrize("batch_tokens", [1, 150, 4096])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_packed_gradients_equal_separate_rows_on_every_base_and_adapter(
    session_of: MakeSession, quantization: str, method: str, share: bool, batch_tokens: int
) -> None:
    model = session_of(quantization, method).model.train()
    check_equal_to_separate_rows(model, text_examples(6), share, batch_tokens)
    if batch_tokens == 4096:
        check_equal_to_separate_rows(model, filing_examples(), share, batch_tokens)
    model.eval()
