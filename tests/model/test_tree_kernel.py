"""The tree's mask as one integer a key, and FlexAttention with it, agree with the runs; forward only, as on a CPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.model.attention import TreePlan, attend_by_runs
from fedfinlora.model.packing import Segment, Tokens, Tree, make_tree, runs_of, visible_until
from fedfinlora.model.tree_kernel import BLOCK, KernelPlan, attend_in_one, tree_mask

TOKEN = st.integers(5, 7)
SEQUENCE = st.lists(TOKEN, min_size=1, max_size=30).map(tuple)
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=8, unique=True).map(sorted)


@pytest.fixture(autouse=True)
def unfused() -> object:
    """On a CPU FlexAttention runs without a compiler, and says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without")
        yield


def heads_of(tree: Tree, seed: int = 0) -> list[torch.Tensor]:
    """query (1, 4, T, 8), key and value (1, 2, S + T, 8)."""
    draw = torch.Generator().manual_seed(seed)
    keys = tree.cached_tokens + tree.tokens
    return [torch.randn(1, heads, size, 8, generator=draw) for heads, size in ((4, tree.tokens), (2, keys), (2, keys))]


def dense(tree: Tree) -> np.ndarray:
    """(T, S + T) bool by the runs' masks: which keys each token sees."""
    found = np.zeros((tree.tokens, tree.cached_tokens + tree.tokens), bool)
    for run in runs_of(tree, "cpu").runs:
        keys = [key for start, end in run.keys for key in range(start, end)]
        size = run.end - run.start
        mask = np.tril(np.ones((size, size), bool)) if run.mask is None else run.mask.numpy() == 0
        found[run.start : run.end, keys] = mask
    return found


@given(SEQUENCES, st.booleans(), st.booleans())
def test_one_integer_a_key_is_the_whole_mask(sequences: list[Tokens], share: bool, cached_prefix: bool) -> None:
    before = sequences.pop(0) if cached_prefix and len(sequences) > 1 else ()
    tree = make_tree(sequences, share, before)
    until = visible_until(tree)
    assert until is not None
    query, key = np.arange(tree.tokens)[:, None], np.arange(len(until))[None]
    assert np.array_equal((key <= query + tree.cached_tokens) & (query < until), dense(tree))


@settings(max_examples=6, deadline=None)
@given(SEQUENCES, st.integers(0, 9))
def test_the_kernel_computes_what_the_runs_do(sequences: list[Tokens], seed: int) -> None:
    tree = make_tree(sequences)
    heads = heads_of(tree, seed)
    until = visible_until(tree)
    assert until is not None
    found = attend_in_one(heads[0], heads[1], heads[2], tree_mask(until, 0, "cpu"), 0.3)
    expected = attend_by_runs(heads[0], heads[1], heads[2], runs_of(tree, "cpu").runs, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def long_tree() -> Tree:
    """Several blocks: a beginning of 300 tokens, three rows of 200 behind it, 150 tokens read before."""
    draw = np.random.default_rng(0)
    common = tuple(draw.integers(5, 90, 300).tolist())
    rows = sorted(common + tuple(draw.integers(5, 90, 200).tolist()) for _ in range(3))
    return make_tree(rows, cached_prefix=common[:150])


def test_the_kernel_over_blocks_and_a_cached_prefix_equals_the_runs() -> None:
    tree = long_tree()
    heads, until = heads_of(tree), visible_until(tree)
    assert until is not None
    mask = tree_mask(until, tree.cached_tokens, "cpu")
    assert (mask.padded_tokens % BLOCK, mask.padded_keys % BLOCK) == (0, 0)
    assert int(mask.blocks.kv_num_blocks.sum() + mask.blocks.full_kv_num_blocks.sum()) < mask.padded_keys // BLOCK * (
        mask.padded_tokens // BLOCK
    ), "blocks that no query sees are not computed"
    found = attend_in_one(heads[0], heads[1], heads[2], mask, None)
    torch.testing.assert_close(found, runs_of(tree, "cpu").attend(0, *heads, scaling=None), rtol=1e-4, atol=1e-5)


def test_where_the_kernel_has_no_backward_pass_the_runs_are_used(caplog: pytest.LogCaptureFixture) -> None:
    """As on this CPU: the first use is a trial, which says why, once."""
    tree, verdicts = long_tree(), {}
    until = visible_until(tree)
    assert until is not None
    plan = KernelPlan(tree_mask(until, tree.cached_tokens, "cpu"), lambda: runs_of(tree, "cpu"), verdicts)
    assert plan.runs == ()
    heads = heads_of(tree)
    found = [plan.attend(layer, *heads, scaling=0.3) for layer in range(2)]
    expected = runs_of(tree, "cpu").attend(0, *heads, scaling=0.3)
    if not all(verdicts.values()):
        assert all(torch.equal(one, expected) for one in found)
        assert caplog.text.count("in one kernel") == 1
        assert plan.runs, "the estimate of memory counts them from then on"
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_cached_prefixes_that_are_not_nested_have_no_such_mask() -> None:
    segments = (Segment((5,), 0, 1, -1), Segment((6,), 1, 2, -1))
    assert visible_until(Tree(segments, (0, 1), 3)) is None


def by_slices(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: TreePlan) -> torch.Tensor:
    """Attention by runs with a slice of the keys for each run, as it is without a backward pass."""
    _, heads, tokens, width = query.shape
    groups = key.shape[1]
    queries = query.reshape(groups, heads // groups, tokens, width)
    outputs = []
    for run in plan.runs:
        seen = [
            torch.cat([tensor.transpose(0, 1)[:, :, start:end] for start, end in run.keys], dim=2)
            for tensor in (key, value)
        ]
        key_run, value_run = (each.expand(groups, heads // groups, each.shape[2], width) for each in seen)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries[:, :, run.start : run.end], key_run, value_run, attn_mask=run.mask, is_causal=run.mask is None
            )
        )
    return torch.cat(outputs, dim=2).reshape(heads, tokens, width).transpose(0, 1).unsqueeze(0)


def test_split_keys_have_the_bits_of_sliced_ones_and_their_gradients() -> None:
    tree = long_tree()
    plan = runs_of(tree, "cpu")
    heads = [tensor.requires_grad_() for tensor in heads_of(tree)]
    weights = torch.randn(1, tree.tokens, 4, 8, generator=torch.Generator().manual_seed(1))
    found, expected = plan.attend(0, *heads, scaling=None), by_slices(heads[0], heads[1], heads[2], plan)
    assert torch.equal(found, expected)
    ours, theirs = (torch.autograd.grad((output * weights).sum(), heads) for output in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_masks_are_cast_once_a_pass() -> None:
    tree = long_tree()
    plan = runs_of(tree, "cpu")
    heads = [tensor.bfloat16() for tensor in heads_of(tree)]
    for layer in range(3):
        plan.attend(layer, *heads, scaling=None)
    (masks,) = plan._masks.values()
    plan.attend(3, *heads, scaling=None)
    assert next(iter(plan._masks.values())) is masks
    assert {mask.dtype for mask in masks if mask is not None} == {torch.bfloat16}
