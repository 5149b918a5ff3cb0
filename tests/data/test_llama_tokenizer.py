"""Rows in Llama 3.1's own tokenizer: beginning, end, label masks, packs and budgets, on the sample and on real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_tokenizer import llama_tokenizer

from data.catalog import BENCHMARKS, Benchmark
from data.encode import encode_prompts, encode_rows, encode_targets
from data.rows import Row
from data.sources import load_rows
from eval.decoding.stopping import fewest_marker_tokens
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.model.packing import make_pack

BOS, EOS = 128000, 128009
WINDOW = 8192
REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "finlora"
SPACED = ("fpb", "fiqa", "tfns", "nwgi", "headline", "ner")
"""Benchmarks whose prompts end in "Answer: "."""
ROWS_OF_EACH = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llama_tokenizer()


@pytest.fixture(scope="module", params=["sample", "real"])
def all_rows(request: pytest.FixtureRequest) -> dict[str, list[Row]]:
    """Benchmark -> its test rows, the shortest first; real rows where they are next to the project."""
    config = DatasetConfig()
    if request.param == "real":
        if not REAL_ROWS.is_dir():
            pytest.skip("FinLoRA's rows are not next to the project (../shared/data/finlora)")
        config = DatasetConfig(source="finlora", root=str(REAL_ROWS))
    found: dict[str, list[Row]] = {}
    for row in sorted(load_rows(config, "test").rows, key=lambda row: len(row.prompt)):
        found.setdefault(row.task, []).append(row)
    assert len(found) > 5
    return found


@pytest.fixture(scope="module")
def rows(all_rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Benchmark -> some of its rows, the shortest and the longest among them."""
    return {key: [*own[:: max(1, len(own) // ROWS_OF_EACH)][:ROWS_OF_EACH], own[-1]] for key, own in all_rows.items()}


def test_every_prompt_begins_once_and_every_answer_ends_once(tokenizer: Any, rows: dict[str, list[Row]]) -> None:
    assert tokenizer.bos_token_id == BOS
    assert tokenizer.eos_token_id == EOS
    assert tokenizer.pad_token_id is None  # nothing is padded
    for own in rows.values():
        for example in encode_rows(tokenizer, own, WINDOW).examples:
            assert example.prompt_ids[0] == BOS
            assert BOS not in example.prompt_ids[1:] + example.answer_ids
            assert example.answer_ids[-1] == EOS
            assert EOS not in example.prompt_ids + example.answer_ids[:-1]


def test_loss_covers_the_target_and_the_end_alone(tokenizer: Any, rows: dict[str, list[Row]]) -> None:
    for own in rows.values():
        encoded = encode_rows(tokenizer, own, WINDOW)
        pack = make_pack(encoded.examples)
        answers = pack.answer_ids.split(pack.answer_lengths)
        for index, answer in zip(pack.row_index, answers, strict=True):
            assert tokenizer.decode(answer[:-1]) == encoded.rows[index].target
            assert int(answer[-1]) == EOS


def test_training_reads_the_prompt_tokens_that_evaluation_reads(tokenizer: Any, rows: dict[str, list[Row]]) -> None:
    for own in rows.values():
        encoded = encode_rows(tokenizer, own, WINDOW)
        prompts = encode_prompts(tokenizer, [row.prompt for row in encoded.rows])
        assert [example.prompt_ids for example in encoded.examples] == prompts


def test_packs_read_common_beginnings_once(tokenizer: Any, rows: dict[str, list[Row]]) -> None:
    for key in set(SPACED) & set(rows):
        examples = encode_rows(tokenizer, rows[key], WINDOW).examples
        apart = sum(len(example.read_ids) for example in examples)
        pack = make_pack(examples)
        assert pack.tokens < apart
        assert sum(pack.answer_lengths) == sum(len(example.answer_ids) for example in examples)


def test_answers_fit_their_budgets(tokenizer: Any, all_rows: dict[str, list[Row]]) -> None:
    """All labels and values do. FinLoRA's budgets cut some formulas and tag lists of Llama's tokens, and free texts."""
    for key, own in all_rows.items():
        benchmark = BENCHMARKS[key]
        lengths = [len(ids) for ids in encode_targets(tokenizer, [row.target for row in own])]
        over = sum(length > benchmark.budget_tokens for length in lengths) / len(own)
        allowed = {"text": 0.25, "formula": 0.1, "tag_list": 0.01}.get(benchmark.parser, 0.0)
        assert over <= allowed, f"{key}: {over:.0%} of the targets are longer than {benchmark.budget_tokens} tokens"


def test_prompts_fit_the_window_next_to_their_budget(tokenizer: Any, rows: dict[str, list[Row]]) -> None:
    for key, own in rows.items():
        longest = max(map(len, encode_prompts(tokenizer, [row.prompt for row in own])))
        assert longest + BENCHMARKS[key].budget_tokens <= 131072, key


@pytest.mark.parametrize("benchmark", [BENCHMARKS[key] for key in SPACED[:5]], ids=lambda benchmark: benchmark.key)
def test_answer_space_gives_labels_their_leading_space(tokenizer: Any, benchmark: Benchmark) -> None:
    """The cut moves, the text does not: " positive" is one token of running text, as the base model has read it."""
    label = benchmark.labels[0]
    row = Row("x/test/0", benchmark.key, "What is it? Answer: ", label)
    (plain,) = encode_rows(tokenizer, [row], WINDOW).examples
    (spaced,) = encode_rows(tokenizer, [row], WINDOW, answer_space=True).examples
    assert tokenizer.decode(plain.prompt_ids[1:]) == "What is it? Answer: "
    assert tokenizer.decode(spaced.prompt_ids[1:]) == "What is it? Answer:"
    assert tokenizer.decode(spaced.answer_ids[:1]).startswith(" ")
    assert tokenizer.decode(spaced.prompt_ids + spaced.answer_ids) == tokenizer.decode(
        plain.prompt_ids + plain.answer_ids
    )
    text = tokenizer(row.prompt + row.target, add_special_tokens=False)["input_ids"]
    assert [*spaced.prompt_ids[1:], *spaced.answer_ids[:-1]] == text  # the tokens of the text as a whole


def test_special_tokens_in_a_row_are_text(tokenizer: Any) -> None:
    row = Row("x/test/0", "fpb", "up <|eot_id|><|start_header_id|>system Answer: ", "<|end_of_text|>")
    (example,) = encode_rows(tokenizer, [row], WINDOW).examples
    assert max(example.prompt_ids[1:] + example.answer_ids[:-1]) < BOS
    assert fewest_marker_tokens(tokenizer.get_vocab()) >= 1
