"""Decoding in buffers that are taken once and steps of fixed shape gives the tokens of decoding that grows."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import EOS, text_examples

from eval.decoding import steps
from eval.decoding.cache_memory import gives_memory_back, held_cache, static_cache
from eval.decoding.generation import generate
from eval.decoding.kv_cache import Buffer, Layers, StaticCache, compacted
from eval.decoding.pools import Prompts
from eval.decoding.steps import Graphs
from fedfinlora.errors import UserError

if TYPE_CHECKING:
    from fedfinlora.model.loading import Session

BUDGET = 12
Rows = list[tuple[int, ...]]


@pytest.fixture
def prompts() -> Rows:
    """Rows of several widths, and two long beginnings that are kept once."""
    draw = np.random.default_rng(4)
    one, other = (tuple(draw.integers(2, 258, 270).tolist()) for _ in range(2))
    long = [start + tuple(draw.integers(2, 258, 6 + place).tolist()) for start in (one, other) for place in range(3)]
    return [*long, *(row.prompt_ids for row in text_examples(7, 1, "rate this headline: ")), (70,)]


@pytest.mark.parametrize("cache_gib", [2.0, 1e-3])
def test_steps_of_fixed_shape_give_the_tokens_of_growing_ones(
    tiny: Session, prompts: Rows, cache_gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave early too, so that buffers are cut down between steps of fixed shape."""
    monkeypatch.setattr(steps, "LEAST_FIXED_STEPS", 1)
    taken: list[int] = []
    run = steps.FixedStep._run

    def noted(step: steps.FixedStep) -> None:
        taken.append(step.tokens.shape[1])
        run(step)

    monkeypatch.setattr(steps.FixedStep, "_run", noted)
    for leave in (BUDGET, 3):
        found = [
            generate(
                tiny.model,
                prompts,
                BUDGET,
                [EOS],
                cache_gib=cache_gib,
                stops_early=lambda number, tokens, left, leave=leave: len(tokens) > leave + number % 7,  # type: ignore[misc]
                fixed=fixed,
            )
            for fixed in (False, True)
        ]
        assert found[0].answers == found[1].answers
        assert found[0].written_tokens == found[1].written_tokens
    assert len(set(taken)) > 2, "fixed steps ran, with fewer rows later on"


def test_memory_is_taken_once_and_what_lay_there_does_not_matter(tiny: Session, prompts: Rows) -> None:
    expected = generate(tiny.model, prompts, BUDGET, [EOS]).answers
    cache = static_cache(tiny.model, 1.0)
    places = set()
    for fixed in (False, True, False):
        assert generate(tiny.model, prompts, BUDGET, [EOS], cache=cache, fixed=fixed).answers == expected
        places.add(tuple(tensor.data_ptr() for tensor in (*cache.flat.keys, *cache.flat.values)))
        with torch.inference_mode():
            for tensor in (*cache.flat.keys, *cache.flat.values):
                tensor.fill_(math.nan)
    assert len(places) == 1
    fewer = generate(tiny.model, prompts[:2], 3, [EOS], cache=cache).answers
    assert [answer.tokens for answer in fewer] == [answer.tokens[:3] for answer in expected[:2]]
    assert places == {tuple(tensor.data_ptr() for tensor in (*cache.flat.keys, *cache.flat.values))}


def test_where_graphs_cannot_be_recorded_one_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("here they can be recorded")
    graphs = Graphs(torch.device("cuda"))
    done: list[str] = []
    with caplog.at_level(logging.WARNING):
        for name in ("one", "other"):
            work = graphs.recorded(lambda name=name: done.append(name))  # type: ignore[misc]
            for _ in range(3):
                work()
    assert done == ["one"] * 3 + ["other"] * 3, "each call works, and none works twice"
    assert caplog.text.count("decoding without CUDA graphs") == 1


def test_rows_move_into_the_places_of_those_that_ended() -> None:
    keys = [torch.arange(5.0).reshape(5, 1, 1, 1).repeat(1, 2, 3, 1) for _ in range(2)]
    values = [tensor + 10 for tensor in keys]
    buffer = Buffer(2, [7, 8, 9, 10, 11], Layers(keys, values), torch.arange(5.0).reshape(5, 1).repeat(1, 2))
    (left,) = compacted([buffer], [False, True, False, True, True])
    assert left.rows == [10, 8, 11]
    for tensor, more in zip((*left.layers.keys, *left.layers.values, left.hidden), (0, 0, 10, 10, 0), strict=True):
        assert tensor.flatten(1)[:, 0].tolist() == [3 + more, 1 + more, 4 + more]
        assert tensor.untyped_storage().data_ptr() in {
            each.untyped_storage().data_ptr() for each in (*keys, *values, buffer.hidden)
        }
    assert compacted([buffer], [False] * 5) == []


@pytest.mark.parametrize("limit", [1.0, 700.0, 1500.0, math.inf])
def test_pools_have_every_row_once_within_their_limit(prompts: Rows, limit: float) -> None:
    cut = Prompts(sorted(set(prompts)), BUDGET)
    pools = cut.pools(batch_tokens=40, most_rows=5, limit_tokens=limit)
    rows = [row for pool in pools for first, last in pool.passes for row in range(first, last)]
    assert rows == list(range(len(set(prompts))))
    for pool in pools:
        own = [row for first, last in pool.passes for row in range(first, last)]
        assert Counter(cut.width(row) for row in own) == pool.rows_by_width
        assert pool.own_tokens == sum(cut.width(row) + BUDGET for row in own)
        assert len(own) <= 5
        assert len(own) == 1 or pool.own_tokens + pool.other_tokens <= limit


def test_a_smaller_pool_uses_the_memory_of_a_larger_one() -> None:
    cache, like = StaticCache(1e9), Layers([torch.zeros(1, 2, 1, 4)], [torch.zeros(1, 2, 1, 4)])
    cache.reserve(100, like)
    assert cache.size_bytes == 2 * 100 * 2 * 4 * 4
    before = cache.flat.keys[0]
    cache.reserve(60, like)
    assert cache.flat.keys[0] is before
    buffers = cache.buffers({8: 3, 16: 2}, 4, like)
    assert {width: tuple(buffer.layers.keys[0].shape) for width, buffer in buffers.items()} == {
        8: (3, 2, 12, 4),
        16: (2, 2, 20, 4),
    }
    before.zero_()
    buffers[8].layers.keys[0].fill_(1.0)
    assert float(before.sum()) == 3 * 12 * 2 * 4, "buffers lie side by side"
    assert float(buffers[16].layers.keys[0].sum()) == 0


def test_an_evaluation_holds_one_cache_and_gives_it_back(tiny: Session, prompts: Rows) -> None:
    caches: list[StaticCache] = []

    @gives_memory_back()
    def evaluation() -> None:
        for _ in range(2):
            caches.append(held_cache(tiny.model, 0.5))
            generate(tiny.model, prompts, 2, [EOS], cache=caches[-1])
        raise UserError("the evaluation fails")

    with pytest.raises(UserError, match="the evaluation fails"):
        evaluation()
    assert caches[0] is caches[1]
    assert caches[0].size_bytes > 0
    with gives_memory_back():
        assert held_cache(tiny.model, 0.5) is not caches[0]
        assert held_cache(tiny.model, 0.25).limit_bytes == 2**28, "another limit, another cache"
