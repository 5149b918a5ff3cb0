"""Packed greedy decoding gives the tokens of plain greedy decoding row by row, within its memory, reading nothing
twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import EOS, NF4_PACKED, MakeSession, set_random_adapter, text_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from data.catalog import BENCHMARKS
from data.encode import encode_prompts
from data.sources import load_rows
from eval.answers import ModelAnswer
from eval.decoding import generation
from eval.decoding import kv_cache as kept_keys
from eval.decoding.cached_attention import Writing, weighted
from eval.decoding.generation import Answer, generate
from eval.decoding.kv_cache import (
    LONG_PREFIX_TOKENS,
    WIDTHS,
    Buffer,
    Layers,
    Prefix,
    buffer_width,
    cache_bytes_per_token,
    long_prefixes,
)
from eval.decoding.plain_generation import generate_plainly
from eval.models import LocalModel, end_ids
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import read_adapter, write_adapter
from fedfinlora.model.loading import get_session, initial_adapter

if TYPE_CHECKING:
    from fedfinlora.model.loading import Session

Prompts = list[tuple[int, ...]]
MOST = 7
"""The largest budget of these tests."""
ONE_ROW_GIB, SOME_ROWS_GIB, ALL_ROWS_GIB = 1e-9, 1.5e-3, 2.0
"""Room for less than one row, for some rows of the families below, and for all of them."""
REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "finlora"


def plain(session: Session, prompts: Prompts, budget: int, ends: list[int]) -> list[list[int]]:
    """Hugging Face's own greedy `generate`, one row at a time, up to the end-of-sequence token."""
    from transformers import GenerationConfig

    outputs = []
    for prompt in prompts:
        token_ids = torch.tensor([prompt])
        settings = GenerationConfig(
            max_new_tokens=budget, do_sample=False, eos_token_id=ends, pad_token_id=0, use_cache=True
        )
        with torch.no_grad():
            found = session.model.generate(  # type: ignore[operator]
                input_ids=token_ids, attention_mask=torch.ones_like(token_ids), generation_config=settings
            )
        new = found[0, len(prompt) :].tolist()
        stop = next((place for place, token in enumerate(new) if token in ends), len(new))
        outputs.append(new[:stop])
    return outputs


def texts(
    session: Session, prompts: Prompts, budget: int, ends: Sequence[int] = (EOS,), **limits: Any
) -> list[list[int]]:
    """The tokens of `generate`."""
    return [list(answer.tokens) for answer in generate(session.model, prompts, budget, ends, **limits).answers]


# --- families of prompts --------------------------------------------------------------------------


def drawn(draw: np.random.Generator, length: int) -> tuple[int, ...]:
    return tuple(draw.integers(2, 258, length).tolist())


def short_beginnings(draw: np.random.Generator) -> Prompts:
    """Two groups with common beginnings of some tokens, one row twice the same, one of a single token."""
    seed = int(draw.integers(1000))
    rows = [*text_examples(4, seed, "rate this headline: "), *text_examples(3, seed + 1, "rate that: ")]
    return [row.prompt_ids for row in rows] + [(70,), rows[0].prompt_ids, (70, 71, 72)]


def long_beginnings(draw: np.random.Generator) -> Prompts:
    """Two beginnings of equal length that are kept once, one that is just too short for that, and rows by
    themselves.
    """
    one, other, shorter = drawn(draw, 270), drawn(draw, 270), drawn(draw, LONG_PREFIX_TOKENS - 1)
    groups = [
        beginning + drawn(draw, int(draw.integers(1, 20))) for beginning in (one, other, shorter) for _ in range(3)
    ]
    return [*groups, drawn(draw, 5), drawn(draw, 300)]


def nested_beginnings(draw: np.random.Generator) -> Prompts:
    """A beginning within which a part of the rows shares a longer one, and a part of those one more."""
    outer = drawn(draw, 260)
    inner = outer + drawn(draw, 258)
    innermost = inner + drawn(draw, 257)
    starts = [*[outer] * 3, *[inner] * 3, *[innermost] * 4]
    return [start + drawn(draw, int(draw.integers(1, 9))) for start in starts]


def equal_prompts(draw: np.random.Generator) -> Prompts:
    long, short = drawn(draw, 280), drawn(draw, 6)
    return [long, short, long, short, short, (*long, 9), long]


def prompts_within_prompts(draw: np.random.Generator) -> Prompts:
    """Each the beginning of the next, and the long ones the beginning of several."""
    whole = drawn(draw, 540)
    chain = [whole[:length] for length in (1, 2, 5, 255, 256, 257, 258, 300, 540)]
    return [*chain, (*whole[:256], 3), (*whole[:300], 4, 5)]


def unequal_lengths(draw: np.random.Generator) -> Prompts:
    return [drawn(draw, length) for length in (1, 8, 9, 64, 65, 330, 700)]


FAMILIES: dict[str, Callable[[np.random.Generator], Prompts]] = {
    function.__name__: function
    for function in (
        short_beginnings, long_beginnings, nested_beginnings, equal_prompts, prompts_within_prompts, unequal_lengths,
    )
}  # fmt: skip


def prompts_of(family: str, seed: int) -> Prompts:
    """The prompts of a family, in no order."""
    draw = np.random.default_rng([seed, *family.encode()])
    prompts = FAMILIES[family](draw)
    return [prompts[place] for place in draw.permutation(len(prompts))]


# --- the same tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_decoding_equals_plain_generate_row_by_row(session_of: MakeSession, family: str, seed: int) -> None:
    """For all budgets, passes and memory sizes."""
    session = session_of(seed=seed)
    prompts = prompts_of(family, seed)
    expected = plain(session, prompts, MOST, [EOS])
    assert all(len(tokens) == MOST for tokens in expected), "the random model is not expected to stop by itself"
    limits = product((ALL_ROWS_GIB, SOME_ROWS_GIB, ONE_ROW_GIB), (4096, 300, 1))
    for number, (cache_gib, batch_tokens) in enumerate(limits):
        budget = MOST if number == 0 else number % MOST + 1
        found = texts(session, prompts, budget, batch_tokens=batch_tokens, cache_gib=cache_gib)
        assert found == [tokens[:budget] for tokens in expected], (budget, batch_tokens, cache_gib)


def test_the_families_take_every_way_through_the_code(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows one by one, several pools, long beginnings kept once, a buffer filled by several passes."""
    pools: list[int] = []
    passes: list[int] = []
    decode, read = generation._Engine._decode, generation._Engine._read

    def noted(engine: Any) -> None:
        pools.append(len(engine.pool.first_tokens))
        decode(engine)

    def noted_read(engine: Any, first: int, last: int) -> None:
        passes.append(last - first)
        read(engine, first, last)

    monkeypatch.setattr(generation._Engine, "_decode", noted)
    monkeypatch.setattr(generation._Engine, "_read", noted_read)
    prompts = prompts_of("nested_beginnings", 0)
    generate(tiny.model, prompts, 2, [EOS], cache_gib=ONE_ROW_GIB)
    assert set(pools) == {1}
    pools.clear()
    generate(tiny.model, prompts, 2, [EOS], batch_tokens=300, cache_gib=SOME_ROWS_GIB)
    assert len(pools) > 1
    assert max(pools) > 1
    pools.clear()
    passes.clear()
    generate(tiny.model, prompts, 2, [EOS], batch_tokens=1)
    assert pools == [len(prompts)]
    assert len(passes) > 1
    assert set(long_prefixes(sorted(prompts))) == {260, 518, 775}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_rows", [1, 4])
def test_the_reference_is_plain_generate_in_batches_too(tiny: Session, family: str, batch_rows: int) -> None:
    prompts = prompts_of(family, 3)
    assert list(map(list, generate_plainly(tiny.model, prompts, 4, [EOS], batch_rows))) == plain(
        tiny, prompts, 4, [EOS]
    )


@pytest.mark.parametrize(("quantization", "method"), [("int8", "dora"), ("nf4", "qlora"), (NF4_PACKED, "dora")])
def test_packed_decoding_equals_plain_generate_on_a_quantized_base(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method)
    prompts = prompts_of("short_beginnings", 2) + prompts_of("nested_beginnings", 2)
    assert texts(session, prompts, 5) == plain(session, prompts, 5, [EOS])


def test_rows_end_at_their_own_end_token_and_others_continue(tiny: Session) -> None:
    prompts = prompts_of("short_beginnings", 3) + prompts_of("long_beginnings", 3)
    free = texts(tiny, prompts, 8)
    first_place = [{token: tokens.index(token) for token in tokens} for tokens in free]
    ends = sorted(
        {token for places in first_place for token in places},
        key=lambda token: (-len({places.get(token, 8) for places in first_place}), token),
    )[:2]
    assert ends
    expected = [
        tokens[: min(places.get(end, 8) for end in ends)] for tokens, places in zip(free, first_place, strict=True)
    ]
    assert len({len(tokens) for tokens in expected}) > 1, "rows should end at different places"
    assert expected == plain(tiny, prompts, 8, ends)
    for limits in ({}, {"batch_tokens": 50}, {"cache_gib": SOME_ROWS_GIB}, {"cache_gib": ONE_ROW_GIB}):
        answers = generate(tiny.model, prompts, 8, ends, **limits).answers
        assert [list(answer.tokens) for answer in answers] == expected
        assert [answer.stopped for answer in answers] == [
            "budget" if len(tokens) == 8 else "end" for tokens in expected
        ]


def test_a_model_that_ends_at_once_gives_empty_answers(tiny: Session) -> None:
    prompts = prompts_of("short_beginnings", 4)
    first = sorted({tokens[0] for tokens in texts(tiny, prompts, 1)})
    found = generate(tiny.model, prompts, 5, first)
    assert set(found.answers) == {Answer((), "end")}
    assert found.written_tokens == 0


def test_no_prompts_give_nothing(tiny: Session) -> None:
    found = generate(tiny.model, [], 5, [EOS])
    assert (found.answers, found.prompt_tokens, found.read_tokens, found.peak_cache_bytes) == ((), 0, 0, 0)


def test_no_budget_gives_empty_answers_and_reads_nothing(tiny: Session) -> None:
    reported: list[int] = []
    found = generate(
        tiny.model, [(70, 71), (70,), (70, 71)], 0, [EOS], on_answer=lambda number, answer: reported.append(number)
    )
    assert found.answers == (Answer((), "budget"),) * 3
    assert (found.prompt_tokens, found.read_tokens, found.written_tokens) == (5, 0, 0)
    assert sorted(reported) == [0, 1, 2]


# --- nothing is read twice, and memory is kept to -------------------------------------------------


def trie_tokens(prompts: Prompts) -> int:
    """Nodes of the token trie of the prompts."""
    root: dict[int, Any] = {}
    nodes = 0
    for prompt in prompts:
        place = root
        for token in prompt:
            nodes += token not in place
            place = place.setdefault(token, {})
    return nodes


def branching_prompts(seed: int) -> Prompts:
    """Beginnings of beginnings; what follows a common one begins with a token of its own, so that no two share 1 to 3
    tokens by chance.
    """
    draw = np.random.default_rng(seed)
    prompts: Prompts = []
    for group in range(3):
        outer = (2 + group, *drawn(draw, int(draw.integers(8, 300))))
        for place in range(3):
            inner = (*outer, 10 + place, *drawn(draw, int(draw.integers(8, 300))))
            prompts += [(*inner, 20 + leaf, *drawn(draw, int(draw.integers(4, 12)))) for leaf in range(3)]
    prompts += [prompts[0], (*prompts[5], 7, 7), (100,)]
    return [prompts[place] for place in draw.permutation(len(prompts))]


@pytest.mark.parametrize("cache_gib", [ALL_ROWS_GIB, SOME_ROWS_GIB, ONE_ROW_GIB])
@pytest.mark.parametrize("seed", range(4))
def test_every_common_beginning_is_read_once(tiny: Session, seed: int, cache_gib: float) -> None:
    prompts = branching_prompts(seed)
    for batch_tokens in (4096, 200, 1):
        found = generate(tiny.model, prompts, 1, [EOS], batch_tokens=batch_tokens, cache_gib=cache_gib)
        assert found.read_tokens == trie_tokens(prompts)
        assert found.prompt_tokens == sum(map(len, prompts))


@pytest.mark.parametrize("family", FAMILIES)
def test_beginnings_of_less_than_four_tokens_are_all_that_is_read_again(tiny: Session, family: str) -> None:
    prompts = prompts_of(family, 5)
    found = generate(tiny.model, prompts, 1, [EOS])
    assert 0 <= found.read_tokens - trie_tokens(prompts) <= 3 * len(prompts)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", [*FAMILIES, "branching_prompts"])
def test_keys_and_values_stay_within_cache_gib_when_it_allows_a_row(tiny: Session, family: str, seed: int) -> None:
    prompts = branching_prompts(seed) if family == "branching_prompts" else prompts_of(family, seed)
    layers = tiny.model.config.num_hidden_layers  # type: ignore[union-attr]
    longest = max(map(len, prompts))
    # The prompt itself, its own part in a buffer, a long beginning kept once, and one layer twice while it is copied.
    row_tokens = longest + buffer_width(longest) + MOST + longest + 8
    row_bytes = row_tokens * cache_bytes_per_token(tiny.model) * (1 + 1 / layers)  # type: ignore[operator]
    peaks = []
    for times in (1.0, 1.5, 3.0):
        allowed_bytes = times * row_bytes
        for batch_tokens in (4096, 100):
            found = generate(
                tiny.model, prompts, MOST, [EOS], batch_tokens=batch_tokens, cache_gib=allowed_bytes / 2**30
            )
            peaks.append(found.peak_cache_bytes)
            assert 0 < found.peak_cache_bytes <= allowed_bytes
    assert generate(tiny.model, prompts, MOST, [EOS]).peak_cache_bytes >= max(peaks)


def test_bytes_of_a_token_are_those_of_its_keys_and_values(session_of: MakeSession) -> None:
    model = session_of().model
    assert cache_bytes_per_token(model) == 2 * 2 * 2 * 16 * 4, (
        "kinds, layers, key heads, numbers a head, bytes a number"
    )


def test_tokens_written_are_counted(tiny: Session) -> None:
    prompts = prompts_of("unequal_lengths", 0)
    assert generate(tiny.model, prompts, 5, [EOS]).written_tokens == 4 * len(prompts)


# --- long beginnings ------------------------------------------------------------------------------

ORDERED = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14).map(tuple), max_size=14, unique=True).map(
    sorted
)


@given(ORDERED)
@settings(max_examples=300)
def test_long_beginnings_are_shared_by_neighbours_and_keep_fewer_tokens(ordered: Prompts) -> None:
    least = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_keys, "LONG_PREFIX_TOKENS", least)
        kept = long_prefixes(ordered)
    assert len(kept) == len(ordered)
    beginnings = [tokens[:length] for tokens, length in zip(ordered, kept, strict=True)]
    for tokens, length in zip(ordered, kept, strict=True):
        assert length == 0 or least <= length < len(tokens), "the last token of a prompt is the row's own"
    for beginning, length in zip(beginnings, kept, strict=True):
        sharing = [
            tokens for tokens in ordered if tokens[: len(beginning)] == beginning and len(tokens) > len(beginning)
        ]
        assert length == 0 or len(sharing) > 1
    own = sum(len(tokens) - length for tokens, length in zip(ordered, kept, strict=True))
    assert own + sum(map(len, set(beginnings))) <= sum(map(len, ordered))
    for tokens, length in zip(ordered, kept, strict=True):
        same = [other for other in ordered if other[:least] == tokens[:least] and len(other) > least]
        if len(tokens) > least and len(same) > 1 and not any(other == tokens[:least] for other in ordered):
            assert length >= least, "who shares so many tokens keeps them once"


def test_rows_without_a_common_prefix_share_nothing() -> None:
    assert long_prefixes([]) == []
    assert long_prefixes([(1,) * 600]) == [0]
    assert long_prefixes([(1,) * 600, (2,) * 600]) == [0, 0]


@pytest.mark.parametrize("common", [LONG_PREFIX_TOKENS - 1, LONG_PREFIX_TOKENS, LONG_PREFIX_TOKENS + 1])
def test_a_beginning_is_long_from_a_number_of_tokens_on(common: int) -> None:
    rows = [(1,) * common + (2, 3), (1,) * common + (4,)]
    assert long_prefixes(rows) == [common if common >= LONG_PREFIX_TOKENS else 0] * 2


@given(st.integers(1, 20_000))
def test_buffers_are_as_wide_as_their_rows_and_little_wider(tokens: int) -> None:
    width = buffer_width(tokens)
    assert width >= tokens
    assert width in WIDTHS or width % 4096 == 0
    assert width <= max(8, 2 * tokens)


# --- rows leave -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_gib", [ALL_ROWS_GIB, SOME_ROWS_GIB, ONE_ROW_GIB])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stop_early_have_the_beginning_of_their_full_answer(
    tiny: Session, family: str, cache_gib: float
) -> None:
    prompts = list(dict.fromkeys(prompts_of(family, 6)))
    full = texts(tiny, prompts, MOST)
    draw = np.random.default_rng(0)
    leaves = draw.integers(1, MOST + 3, len(prompts)).tolist()

    def stops_early(number: int, tokens: list[int], left: int) -> bool:
        assert tokens == full[number][: len(tokens)]
        assert len(tokens) + left == MOST
        assert left > 0
        return len(tokens) >= leaves[number]

    found = generate(tiny.model, prompts, MOST, [EOS], cache_gib=cache_gib, stops_early=stops_early)
    for answer, tokens, leave in zip(found.answers, full, leaves, strict=True):
        assert list(answer.tokens) == tokens[:leave]
        assert answer.stopped == ("settled" if leave < MOST else "budget")
    assert found.written_tokens <= (MOST - 1) * len(prompts)


def test_buffers_are_cut_down_when_rows_have_left(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of("long_beginnings", 7) + prompts_of("short_beginnings", 7)
    prompts = list(dict.fromkeys(prompts))
    full = texts(tiny, prompts, MOST)
    sizes: list[tuple[int, int]] = []
    compact = generation.compacted

    def noted(buffers: Sequence[Buffer], alive: Sequence[bool]) -> list[Buffer]:
        smaller = compact(buffers, alive)
        assert sum(len(buffer.rows) for buffer in smaller) == sum(alive)
        assert all(buffer.layers.keys[0].shape[0] == len(buffer.rows) == len(buffer.hidden) for buffer in smaller)
        sizes.append((len(alive), sum(alive)))
        return smaller

    monkeypatch.setattr(generation, "compacted", noted)
    found = generate(
        tiny.model, prompts, MOST, [EOS], stops_early=lambda number, tokens, left: len(tokens) > number % 6
    )
    assert [list(answer.tokens) for answer in found.answers] == [
        tokens[: number % 6 + 1] for number, tokens in enumerate(full)
    ]
    assert len(sizes) > 1
    assert all(after <= generation.COMPACT_BELOW * before for before, after in sizes)
    assert found.written_tokens < (MOST - 1) * len(prompts)


@pytest.mark.parametrize("cache_gib", [ALL_ROWS_GIB, ONE_ROW_GIB])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_reported_once_with_its_answer(tiny: Session, family: str, cache_gib: float) -> None:
    prompts = prompts_of(family, 8)
    reported: list[tuple[int, Answer]] = []
    found = generate(
        tiny.model,
        prompts,
        3,
        [EOS],
        cache_gib=cache_gib,
        on_answer=lambda number, answer: reported.append((number, answer)),
    )
    assert Counter(number for number, _ in reported) == Counter(range(len(prompts)))
    assert dict(reported) == dict(enumerate(found.answers))


def test_answers_are_reported_before_the_last_prompt_is_read(tiny: Session) -> None:
    """An evaluation that is killed keeps what it has."""
    prompts = prompts_of("unequal_lengths", 9)
    reported: list[int] = []

    class Killed(Exception):
        pass

    def on_answer(number: int, answer: Answer) -> None:
        reported.append(number)
        if len(reported) == 3:
            raise Killed

    with pytest.raises(Killed):
        generate(tiny.model, prompts, 3, [EOS], cache_gib=ONE_ROW_GIB, on_answer=on_answer)
    assert len(reported) == 3


# --- one step of decoding -------------------------------------------------------------------------


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 30.0]))
def test_two_parts_merged_by_their_normalisers_are_one_softmax(
    seed: int, first: int, second: int, spread: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 2, first + second, generator=draw) * spread
    scores[0, 0, : first - 1] = -math.inf
    values = torch.randn(3, first + second, 4, generator=draw)
    whole, normaliser = weighted(scores.clone(), values)
    torch.testing.assert_close(whole, scores.softmax(-1) @ values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normaliser, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    one, weight = weighted(scores[..., :first].clone(), values[:, :first])
    other, other_weight = weighted(scores[..., first:].clone(), values[:, first:])
    merged = torch.lerp(one, other, torch.sigmoid(other_weight - weight).unsqueeze(-1))
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_decoding_step_is_dense_attention_of_each_row(seed: int, scaling: float | None) -> None:
    """Two buffers with rows of unequal lengths, two long beginnings of which one row has none, in the third step."""
    heads, groups, numbers, step = 4, 2, 8, 2
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    lengths = {8: [3, 8, 5], 16: [16, 9]}
    buffers = []
    for width, own in lengths.items():
        hidden = torch.zeros(len(own), width)
        for row, length in enumerate(own):
            hidden[row, : width - length] = -math.inf
        keys, values = random(len(own), groups, width + 4, numbers), random(len(own), groups, width + 4, numbers)
        buffers.append(Buffer(width, list(range(len(own))), Layers([keys], [values]), hidden))
    members = [[0, 3], [1, 4]]
    prefixes = [
        Prefix((), Layers([random(groups, tokens, numbers)], [random(groups, tokens, numbers)])) for tokens in (7, 300)
    ]
    rows = sum(map(len, lengths.values()))
    query, key, value = (
        random(1, heads, rows, numbers),
        random(1, groups, rows, numbers),
        random(1, groups, rows, numbers),
    )
    shared = [(prefix, torch.tensor(slots)) for prefix, slots in zip(prefixes, members, strict=True)]
    found = Writing(buffers, shared, step).attend(0, query, key, value, scaling)
    assert found.shape == (1, rows, heads, numbers)
    places = [
        (buffer, row, length)
        for buffer, own in zip(buffers, lengths.values(), strict=True)
        for row, length in enumerate(own)
    ]
    for slot, (buffer, row, length) in enumerate(places):
        seen = slice(buffer.width - length, buffer.width + step)
        own_keys = [buffer.layers.keys[0][row, :, seen], key[0, :, slot : slot + 1]]
        own_values = [buffer.layers.values[0][row, :, seen], value[0, :, slot : slot + 1]]
        for prefix, slots in zip(prefixes, members, strict=True):
            if slot in slots:
                own_keys.insert(0, prefix.layers.keys[0])
                own_values.insert(0, prefix.layers.values[0])
        all_keys = torch.cat(own_keys, dim=1).repeat_interleave(heads // groups, dim=0)
        all_values = torch.cat(own_values, dim=1).repeat_interleave(heads // groups, dim=0)
        scores = (query[0, :, slot].unsqueeze(1) @ all_keys.transpose(1, 2)) * (scaling or numbers**-0.5)
        expected = (scores.softmax(-1) @ all_values).squeeze(1)
        torch.testing.assert_close(found[0, slot], expected, rtol=1e-4, atol=1e-5)


# --- the model is left as it was ------------------------------------------------------------------


def test_generation_uses_no_dropout_and_changes_no_adapter(session_of: MakeSession) -> None:
    session = session_of(dropout=0.5)
    before = read_adapter(session.model)
    session.model.train()
    prompts = prompts_of("short_beginnings", 6)
    first = texts(session, prompts, 5)
    session.model.train()
    assert texts(session, prompts, 5) == first
    np.testing.assert_array_equal(read_adapter(session.model), before)
    session.model.eval()
    assert plain(session, prompts, 5, [EOS]) == first


def test_training_is_possible_after_generation(tiny: Session) -> None:
    from fedfinlora.config.train import TrainConfig
    from fedfinlora.train.loop import Stretch, train

    start = read_adapter(tiny.model)
    outcomes = []
    for generate_first in (False, True):
        write_adapter(tiny.model, start)
        if generate_first:
            generate(tiny.model, prompts_of("long_beginnings", 7), 4, [EOS])
        train(tiny.model, text_examples(4), Stretch(0, 2, 10, 4.0), TrainConfig(batch_rows=4), seed=0, bank="bank-0")
        outcomes.append(read_adapter(tiny.model).tobytes())
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("configured", "expected"), [(1, [1]), ([1, 9], [1, 9]), ([9, 1], [1, 9]), (None, [1]), (7, [1, 7])]
)
def test_end_tokens_are_the_tokenizers_first_and_then_the_models(
    tiny: Session, monkeypatch: pytest.MonkeyPatch, configured: Any, expected: list[int]
) -> None:
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", configured)
    assert end_ids(tiny) == expected


# --- the embedded model ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_embedded_model_decodes_sample_rows_as_plain_generate_does(smollm2_config: Config) -> None:
    session = get_session(smollm2_config)
    set_random_adapter(session)
    write_adapter(session.model, read_adapter(session.model) * 0.05)
    tasks = ("fpb", "fiqa", "tfns", "headline")
    rows = [row for task in tasks for row in load_rows(DatasetConfig(), "test", (task,)).rows[:3]]
    prompts = encode_prompts(session.tokenizer, [row.prompt for row in rows])
    ends = end_ids(session)
    assert len(prompts) == 12
    found = texts(session, prompts, 6, ends)
    assert found == plain(session, prompts, 6, ends)
    assert len({tuple(tokens) for tokens in found}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count"), [("fpb", 6), ("xbrl_finer", 2)])
def test_the_embedded_model_answers_real_rows_as_plain_generate_does(
    smollm2_config: Config, task: str, count: int
) -> None:
    if not REAL_ROWS.is_dir():
        pytest.skip("FinLoRA's rows are not next to the project (../shared/data/finlora)")
    config = replace(smollm2_config, dataset=DatasetConfig(source="finlora", root=str(REAL_ROWS)))
    loaded = load_rows(config.dataset, "test", (task,))
    if len(loaded.rows) < count:
        pytest.skip(f"FinLoRA's folder holds no test rows of {task}")
    rows = sorted(loaded.rows, key=lambda row: len(row.prompt))[:count]
    session = get_session(config)
    model = LocalModel(session, config, initial_adapter(session, config))
    answers: dict[int, ModelAnswer] = {}
    benchmark = replace(BENCHMARKS[task], budget_tokens=min(BENCHMARKS[task].budget_tokens, 20))
    model.generate(benchmark, rows, range(count), answers.__setitem__)
    for place, text in enumerate(model.generate_plainly(benchmark, rows)):
        if answers[place].stopped == "settled":
            assert text.startswith(answers[place].text)
        else:
            assert answers[place].text == text
