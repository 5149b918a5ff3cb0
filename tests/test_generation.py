"""Packed greedy decoding gives the tokens of plain greedy decoding row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import EOS, NF4_PACKED, MakeSession, set_random_adapter, text_examples, tiny_config

from data.catalog import BENCHMARKS
from data.encode import encode_prompts
from data.sources import load_rows
from eval.evaluate import answers, end_ids
from eval.generation import generate
from fedfinlora.adapter import read_adapter, write_adapter
from fedfinlora.config import Config, DatasetConfig
from fedfinlora.models import get_session

if TYPE_CHECKING:
    from fedfinlora.models import Session

Prompts = list[tuple[int, ...]]


def plain(session: Session, prompts: Prompts, budget: int, ends: list[int]) -> list[list[int]]:
    """Hugging Face's own greedy `generate`, one row at a time, up to the end-of-sequence token."""
    from transformers import GenerationConfig

    outputs = []
    for prompt in prompts:
        token_ids = torch.tensor([prompt])
        settings = GenerationConfig(max_new_tokens=budget, do_sample=False, eos_token_id=ends, pad_token_id=0, use_cache=True)
        with torch.no_grad():
            found = session.model.generate(  # type: ignore[operator]
                input_ids=token_ids, attention_mask=torch.ones_like(token_ids), generation_config=settings
            )
        new = found[0, len(prompt) :].tolist()
        stop = next((place for place, token in enumerate(new) if token in ends), len(new))
        outputs.append(new[:stop])
    return outputs


def prompts_with_shared_beginnings(seed: int) -> Prompts:
    """Two groups with long common beginnings, one twice the same, one of a single token, in no order."""
    draw = np.random.default_rng(seed)
    rows = [*text_examples(4, seed, "rate this headline: "), *text_examples(3, seed + 1, "rate that: ")]
    prompts = [row.prompt_ids for row in rows] + [(70,), rows[0].prompt_ids, (70, 71, 72)]
    return [prompts[place] for place in draw.permutation(len(prompts))]


@pytest.mark.parametrize("batch_tokens", [4096, 60, 1])
@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_packed_decoding_equals_plain_generate_row_by_row(
    session_of: MakeSession, seed: int, budget: int, batch_tokens: int
) -> None:
    session = session_of(seed=seed)
    prompts = prompts_with_shared_beginnings(seed)
    expected = plain(session, prompts, budget, [EOS])
    found = generate(session.model, prompts, budget, [EOS], batch_tokens)
    assert found == expected
    assert all(len(tokens) == budget for tokens in found), "the random model is not expected to stop by itself"


@pytest.mark.parametrize(("quantization", "method"), [("int8", "dora"), ("nf4", "qlora"), (NF4_PACKED, "dora")])
def test_packed_decoding_equals_plain_generate_on_a_quantized_base(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method)
    prompts = prompts_with_shared_beginnings(2)
    assert generate(session.model, prompts, 5, [EOS]) == plain(session, prompts, 5, [EOS])


def test_rows_end_at_their_own_end_token_and_the_others_go_on(tiny: Session) -> None:
    prompts = prompts_with_shared_beginnings(3)
    free = generate(tiny.model, prompts, 8, [EOS])
    first_place = [{token: tokens.index(token) for token in tokens} for tokens in free]
    ends = sorted(
        {token for places in first_place for token in places},
        key=lambda token: (-len({places.get(token, 8) for places in first_place}), token),
    )[:2]
    assert ends
    expected = [tokens[: min(places.get(end, 8) for end in ends)] for tokens, places in zip(free, first_place, strict=True)]
    assert len({len(tokens) for tokens in expected}) > 1, "rows should end at different places"
    assert generate(tiny.model, prompts, 8, ends) == expected
    assert generate(tiny.model, prompts, 8, ends, batch_tokens=50) == expected == plain(tiny, prompts, 8, ends)


def test_a_model_that_ends_at_once_gives_empty_answers(tiny: Session) -> None:
    prompts = prompts_with_shared_beginnings(4)
    first = {tokens[0] for tokens in generate(tiny.model, prompts, 1, [EOS])}
    assert generate(tiny.model, prompts, 5, sorted(first)) == [[] for _ in prompts]


def test_no_prompts_and_no_budget_give_nothing(tiny: Session) -> None:
    assert generate(tiny.model, [], 5, [EOS]) == []
    assert generate(tiny.model, [(70, 71)], 0, [EOS]) == [[]]


def test_rows_done_are_told_batch_by_batch(tiny: Session) -> None:
    prompts = prompts_with_shared_beginnings(5)
    told: list[int] = []
    generate(tiny.model, prompts, 1, [EOS], 60, told.append)
    assert told == sorted(told)
    assert told[-1] == len(prompts)
    assert len(told) > 1


def test_generation_uses_no_dropout_and_changes_no_adapter(session_of: MakeSession) -> None:
    session = session_of(dropout=0.5)
    before = read_adapter(session.model)
    session.model.train()
    prompts = prompts_with_shared_beginnings(6)
    first = generate(session.model, prompts, 5, [EOS])
    session.model.train()
    assert generate(session.model, prompts, 5, [EOS]) == first
    np.testing.assert_array_equal(read_adapter(session.model), before)
    session.model.eval()
    assert plain(session, prompts, 5, [EOS]) == first


def test_training_is_possible_after_generation(tiny: Session) -> None:
    from fedfinlora.config import TrainConfig
    from fedfinlora.training import Stretch, train

    start = read_adapter(tiny.model)
    outcomes = []
    for generate_first in (False, True):
        write_adapter(tiny.model, start)
        if generate_first:
            generate(tiny.model, prompts_with_shared_beginnings(7), 4, [EOS])
        train(tiny.model, text_examples(4), Stretch(0, 2, 10, 4.0), TrainConfig(batch_rows=4), seed=0, bank="bank-0")
        outcomes.append(read_adapter(tiny.model).tobytes())
    assert outcomes[0] == outcomes[1]


def test_rows_that_do_not_fit_the_window_are_counted_and_unanswered(tiny: Session) -> None:
    from dataclasses import replace

    from data.rows import Row

    benchmark = BENCHMARKS["fpb"]
    rows = [Row("a", "fpb", "up? ", "positive"), Row("b", "fpb", "x" * 80, "positive"), Row("c", "fpb", "down? ", "negative")]
    config = tiny_config()
    config = replace(config, model=replace(config.model, context_tokens=60))
    texts, too_long = answers(tiny, config, benchmark, rows)
    assert too_long == 1
    assert texts[1] == ""
    prompts = encode_prompts(tiny.tokenizer, ["up? ", "down? "])
    expected = tiny.tokenizer.batch_decode(plain(tiny, prompts, benchmark.budget_tokens, [EOS]), skip_special_tokens=True)
    assert [texts[0], texts[2]] == expected
    assert answers(tiny, config, benchmark, [rows[1]]) == ([""], 1)


@pytest.mark.parametrize(("configured", "expected"), [(1, [1]), ([1, 9], [1, 9]), ([9, 1], [1, 9]), (None, [1]), (7, [1, 7])])
def test_end_tokens_are_the_tokenizers_first_and_then_the_models(
    tiny: Session, monkeypatch: pytest.MonkeyPatch, configured: Any, expected: list[int]
) -> None:
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", configured)
    assert end_ids(tiny) == expected


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
    found = generate(session.model, prompts, 6, ends)
    assert found == plain(session, prompts, 6, ends)
    assert len({tuple(tokens) for tokens in found}) > 1
