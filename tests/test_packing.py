"""Rows laid end to end give the loss and the gradients of rows on their own, and no row or token is lost on the way."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import EOS, NF4_PACKED, MakeSession, set_random_adapter, text_examples, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora import attention
from fedfinlora.adapter import trainable
from fedfinlora.attention import packed_attention
from fedfinlora.packing import (
    SHORTEST_SHARED_PREFIX,
    Block,
    Example,
    Pack,
    block_mask,
    common_prefix_tokens,
    make_blocks,
    make_pack,
    split_blocks,
)
from fedfinlora.training import answer_loss

if TYPE_CHECKING:
    from torch import nn

# Few different tokens and a handful of common beginnings, so that prefixes of every length are shared.
TOKEN = st.integers(2, 4)
START = st.sampled_from([(), (2, 3, 4, 2, 3), (2, 3, 4, 2, 3, 4, 4), (4,) * 9])
PROMPT = st.builds(lambda start, rest: start + tuple(rest), START, st.lists(TOKEN, min_size=1, max_size=7))
ANSWER = st.lists(TOKEN, max_size=3).map(lambda tokens: (*tokens, EOS))


@st.composite
def example_lists(draw: st.DrawFn, max_size: int = 8) -> list[Example]:
    rows = draw(st.lists(st.tuples(PROMPT, ANSWER), min_size=1, max_size=max_size))
    return [Example(prompt, answer, index) for index, (prompt, answer) in enumerate(rows)]


def packs_of(examples: list[Example], share_prefix: bool, batch_tokens: int, planned: bool = True) -> list[Pack]:
    parts = split_blocks(make_blocks(examples, share_prefix), batch_tokens)
    return [make_pack(part, planned=planned) for part in parts]


def plan_always(patch: pytest.MonkeyPatch) -> None:
    """Attention by plan also where the mask is cheaper, as it is for most of these few short rows."""
    patch.setattr(attention, "LEAST_SAVING", 0.0)
    patch.setattr(attention, "MOST_COPIES", 10**9)


def row_tokens(example: Example) -> int:
    """Tokens of a row as read by the model: the last answer token is predicted, never read."""
    return len(example.prompt_ids) + len(example.answer_ids) - 1


def rows_of_pack(pack: Pack) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, answer) of each row, read back from what the mask lets its predicting positions see."""
    token_ids, mask = pack.token_ids[0], pack.mask[0, 0]
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for place, answer in zip(pack.answer_index.tolist(), pack.answer_ids.tolist(), strict=True):
        seen = tuple(token_ids[mask[place]].tolist())
        if rows and rows[-1][1][-1] != EOS:
            prompt, answers = rows[-1]
            assert seen == prompt + answers, "an answer position must see its prompt and the answer so far"
            rows[-1] = (prompt, (*answers, answer))
        else:
            rows.append((seen, (answer,)))
    return rows


# --- equality with separate rows --------------------------------------------------------------------------------------------------


def loss_and_gradients(model: nn.Module, packs: list[Pack]) -> tuple[float, torch.Tensor]:
    parameters = list(trainable(model).values())
    total = torch.stack([answer_loss(model, pack) for pack in packs]).sum()
    gradients = torch.autograd.grad(total, parameters)
    return float(total.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])


def plain_loss_and_gradients(model: nn.Module, examples: list[Example]) -> tuple[float, torch.Tensor]:
    """Each row in a forward pass of its own, without mask, positions or any code of the packing module."""
    parameters = list(trainable(model).values())
    losses = []
    for example in examples:
        token_ids = torch.tensor([example.prompt_ids + example.answer_ids])
        logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits[0, len(example.prompt_ids) - 1 :]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="sum"))
    total = torch.stack(losses).sum()
    gradients = torch.autograd.grad(total, parameters)
    return float(total.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    from fedfinlora.models import get_session

    session = get_session(tiny_config())
    set_random_adapter(session)
    return session.model.train()


@settings(max_examples=25)
@given(
    examples=example_lists(),
    share_prefix=st.booleans(),
    batch_tokens=st.sampled_from([1, 12, 40, 4096]),
    how=st.sampled_from(["mask", "plan", "whichever is cheaper"]),
)
def test_packed_loss_and_gradients_equal_those_of_separate_rows(
    model: nn.Module, examples: list[Example], share_prefix: bool, batch_tokens: int, how: str
) -> None:
    expected_loss, expected = plain_loss_and_gradients(model, examples)
    with pytest.MonkeyPatch.context() as patch:
        if how == "plan":
            plan_always(patch)
        packs = packs_of(examples, share_prefix, batch_tokens, planned=how != "mask")
    assert how != "plan" or all(pack.plan is not None for pack in packs)
    assert how != "mask" or all(pack.plan is None for pack in packs)
    loss, gradients = loss_and_gradients(model, packs)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float((gradients - expected).norm()) <= 1e-5 * float(expected.norm())


@settings(max_examples=50)
@given(examples=example_lists(), share_prefix=st.booleans(), seed=st.integers(0, 9))
def test_planned_attention_equals_attention_under_the_whole_mask(
    examples: list[Example], share_prefix: bool, seed: int
) -> None:
    blocks = make_blocks(examples, share_prefix)
    with pytest.MonkeyPatch.context() as patch:
        plan_always(patch)
        planned = make_pack(blocks)
    masked = make_pack(blocks, planned=False)
    assert planned.plan is not None
    assert torch.equal(planned.token_ids, masked.token_ids)
    assert torch.equal(planned.answer_index, masked.answer_index)
    draw = torch.Generator().manual_seed(seed)
    tokens, heads, key_heads, width = masked.token_ids.shape[1], 4, 2, 8
    query = torch.randn(1, heads, tokens, width, generator=draw)
    key, value = (torch.randn(1, key_heads, tokens, width, generator=draw) for _ in range(2))
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    weights = scores.masked_fill(~masked.mask, -torch.inf).softmax(dim=-1)
    expected = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    found = packed_attention(query, key, value, planned.plan, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_plan_is_made_only_where_it_saves_enough() -> None:
    alone = make_pack(make_blocks(text_examples(1)))
    many = make_pack(make_blocks(text_examples(12, prefix="a prompt of some length: "), share_prefix=False))
    assert alone.plan is None
    assert many.plan is not None
    assert many.mask.shape == (1, 1, 1, 1)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("quantization", ["int8", "nf4", NF4_PACKED])
def test_packed_gradients_equal_those_of_separate_rows_on_a_quantized_base(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    model = session_of(quantization, method).model.train()
    examples = text_examples(6)
    expected_loss, expected = plain_loss_and_gradients(model, examples)
    loss, gradients = loss_and_gradients(model, packs_of(examples, True, 60))
    model.eval()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float((gradients - expected).norm()) <= 1e-5 * float(expected.norm())


# --- by hand ----------------------------------------------------------------------------------------------------------------------


def test_two_rows_behind_a_shared_prefix_by_hand() -> None:
    rows = [Example((5, 6, 7, 8, 9), (20, EOS), 0), Example((5, 6, 7, 8, 10, 11), (21, EOS), 1)]
    (block,) = make_blocks(rows)
    assert block.prefix_tokens == 4
    assert block.tokens == 4 + 2 + 3
    pack = make_pack([block], planned=False)
    assert pack.token_ids.tolist() == [[5, 6, 7, 8, 9, 20, 10, 11, 21]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6]]
    assert pack.owner.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert pack.parent.tolist() == [0] * 9
    assert pack.answer_index.tolist() == [4, 5, 7, 8]
    assert pack.answer_ids.tolist() == [20, EOS, 21, EOS]
    assert pack.row_index == (0, 1)
    expected = [
        "1........",
        "11.......",
        "111......",
        "1111.....",
        "11111....",
        "111111...",
        "1111..1..",
        "1111..11.",
        "1111..111",
    ]
    shown = ["".join("1" if cell else "." for cell in line) for line in pack.mask[0, 0].tolist()]
    assert shown == expected


def test_two_rows_without_sharing_by_hand() -> None:
    rows = [Example((5, 6), (20, EOS), 0), Example((5, 7), (EOS,), 1)]
    pack = make_pack(make_blocks(rows, share_prefix=False), planned=False)
    assert pack.token_ids.tolist() == [[5, 6, 20, 5, 7]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert pack.answer_index.tolist() == [1, 2, 4]
    shown = ["".join("1" if cell else "." for cell in line) for line in pack.mask[0, 0].tolist()]
    assert shown == ["1....", "11...", "111..", "...1.", "...11"]


def test_block_mask_is_causal_within_owner_and_parent_only() -> None:
    owner, parent = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 2])
    assert block_mask(owner, parent).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]]


def test_identical_prompts_run_once_but_for_their_last_token() -> None:
    rows = [Example((5, 6, 7, 8, 9), (answer, EOS), answer) for answer in (30, 31, 32)]
    (block,) = make_blocks(rows)
    assert (block.prefix_tokens, block.tokens) == (4, 4 + 3 * 2)
    pack = make_pack([block], planned=False)
    assert pack.answer_ids.tolist() == [30, EOS, 31, EOS, 32, EOS]
    assert rows_of_pack(pack) == [((5, 6, 7, 8, 9), (answer, EOS)) for answer in (30, 31, 32)]


def test_prompts_of_one_token_share_nothing() -> None:
    rows = [Example((5,), (30, EOS), 0), Example((5,), (31, EOS), 1), Example((6,), (EOS,), 2)]
    blocks = make_blocks(rows)
    assert all(block.prefix_tokens == 0 for block in blocks)
    assert [row for block in blocks for row in rows_of_pack(make_pack([block], planned=False))] == [
        ((5,), (30, EOS)),
        ((5,), (31, EOS)),
        ((6,), (EOS,)),
    ]


def test_a_prompt_that_begins_another_keeps_its_last_token() -> None:
    rows = [Example((5, 6, 7, 8, 9), (EOS,), 0), Example((5, 6, 7, 8, 9, 10, 11), (EOS,), 1)]
    (block,) = make_blocks(rows)
    assert block.prefix_tokens == 4
    assert rows_of_pack(make_pack([block], planned=False)) == [(rows[0].prompt_ids, (EOS,)), (rows[1].prompt_ids, (EOS,))]


def test_no_examples_give_no_blocks_and_no_packs() -> None:
    assert make_blocks([]) == []
    assert list(split_blocks([], 10)) == []


# --- laws -------------------------------------------------------------------------------------------------------------------------


@given(st.lists(TOKEN, max_size=12), st.lists(TOKEN, max_size=12))
def test_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    length = common_prefix_tokens(one, other)
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length == min(len(one), len(other))


@given(examples=example_lists(), share_prefix=st.booleans())
def test_blocks_hold_every_row_once_behind_a_prefix_that_all_its_rows_have(examples: list[Example], share_prefix: bool) -> None:
    blocks = make_blocks(examples, share_prefix)
    assert Counter(example for block in blocks for example in block.examples) == Counter(examples)
    for block in blocks:
        beginnings = {example.prompt_ids[: block.prefix_tokens] for example in block.examples}
        assert len(beginnings) == 1
        assert all(len(example.prompt_ids) > block.prefix_tokens for example in block.examples)
        assert block.prefix_tokens == 0 or (share_prefix and block.prefix_tokens >= SHORTEST_SHARED_PREFIX)
        saved = (len(block.examples) - 1) * block.prefix_tokens
        assert block.tokens == sum(map(row_tokens, block.examples)) - saved
    if not share_prefix:
        assert all(len(block.examples) == 1 for block in blocks)


@given(examples=example_lists(max_size=14), share_prefix=st.booleans(), batch_tokens=st.integers(1, 80))
def test_split_loses_no_row_and_keeps_to_the_budget(examples: list[Example], share_prefix: bool, batch_tokens: int) -> None:
    parts = list(split_blocks(make_blocks(examples, share_prefix), batch_tokens))
    assert Counter(example for part in parts for block in part for example in block.examples) == Counter(examples)
    for part in parts:
        assert part
        assert all(block.examples for block in part)
        rows = sum(len(block.examples) for block in part)
        assert rows == 1 or sum(block.tokens for block in part) <= batch_tokens


@given(examples=example_lists(), share_prefix=st.booleans(), batch_tokens=st.integers(1, 80))
def test_every_answer_token_appears_once_after_its_own_row(
    examples: list[Example], share_prefix: bool, batch_tokens: int
) -> None:
    found = []
    for part in split_blocks(make_blocks(examples, share_prefix), batch_tokens):
        pack = make_pack(part, planned=False)
        assert pack.token_ids.shape == pack.position_ids.shape == (1, sum(block.tokens for block in part))
        assert pack.mask.shape == (1, 1, pack.token_ids.shape[1], pack.token_ids.shape[1])
        by_index = {example.index: example for example in examples}
        rows = rows_of_pack(pack)
        assert rows == [(by_index[index].prompt_ids, by_index[index].answer_ids) for index in pack.row_index]
        # A token's position is how many tokens it sees before itself: what it would be in a row of its own.
        np.testing.assert_array_equal(pack.mask[0, 0].sum(dim=1).numpy() - 1, pack.position_ids[0].numpy())
        found += pack.row_index
    assert sorted(found) == list(range(len(examples)))


def test_sharing_saves_what_it_promises() -> None:
    examples = text_examples(10, prefix="a prompt of some length: ")
    apart, together = make_blocks(examples, share_prefix=False), make_blocks(examples)
    assert sum(block.tokens for block in apart) == sum(map(row_tokens, examples))
    assert sum(block.tokens for block in together) < 0.6 * sum(block.tokens for block in apart)


@given(examples=example_lists(), seed=st.integers(0, 5))
def test_the_order_of_the_rows_does_not_matter(examples: list[Example], seed: int) -> None:
    shuffled = [examples[place] for place in np.random.default_rng(seed).permutation(len(examples))]

    def content(blocks: list[Block]) -> list[tuple[int, list[tuple[tuple[int, ...], tuple[int, ...]]]]]:
        return [(block.prefix_tokens, [(row.prompt_ids, row.answer_ids) for row in block.examples]) for block in blocks]

    assert content(make_blocks(examples)) == content(make_blocks(shuffled))
