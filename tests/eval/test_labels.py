"""Label log-probabilities in one packed pass equal those of plain forward passes, one label at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import EOS, NF4_PACKED, MakeSession, set_random_adapter, text_examples, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from data.catalog import BENCHMARKS
from data.encode import encode_prompts
from data.rows import Row
from eval.decoding.labels import label_logprobs
from eval.models import LocalModel, choice_of
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import get_session

if TYPE_CHECKING:
    from fedfinlora.model.loading import Session

Tokens = tuple[int, ...]
CLOSED = [key for key, benchmark in BENCHMARKS.items() if benchmark.labels]


def plainly(session: Session, prompts: Sequence[Tokens], labels: Sequence[Tokens]) -> list[list[float]]:
    """The sum of the log-softmax at each token of prompt + label, by transformers alone."""
    scores = []
    for prompt in prompts:
        scores.append([])
        for label in labels:
            token_ids = torch.tensor([prompt + label])
            with torch.inference_mode():
                logprobs = session.model(input_ids=token_ids, use_cache=False).logits[0].double().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(label) - 1)
            scores[-1].append(sum(float(logprobs[place, token_ids[0, place + 1]]) for place in places))
    return scores


def label_ids(session: Session, labels: Sequence[str]) -> list[Tokens]:
    return [(*ids, EOS) for ids in session.tokenizer(list(labels), add_special_tokens=False)["input_ids"]]


def prompts_with_long_beginnings(seed: int) -> list[Tokens]:
    draw = np.random.default_rng(seed)
    beginning = tuple(draw.integers(2, 258, 300).tolist())
    rows = [beginning + row.prompt_ids for row in text_examples(3, seed)]
    return [*rows, *(row.prompt_ids for row in text_examples(3, seed + 1)), rows[0], (9,), beginning]


@pytest.mark.parametrize("batch_tokens", [4096, 100, 1])
@pytest.mark.parametrize(
    "labels",
    [
        ("negative", "neutral", "positive"),
        ("no", "nothing", "not", "n"),
        ("strong negative", "moderately negative", "mildly negative", "neutral", "mildly positive"),
        ("A", "B"),
        ("", "a"),
    ],
    ids=" ".join,
)
def test_logprobs_equal_a_plain_computation(tiny: Session, labels: tuple[str, ...], batch_tokens: int) -> None:
    """Also where labels share their beginnings or are the beginning of one another."""
    prompts, ids = prompts_with_long_beginnings(len(labels)), label_ids(tiny, labels)
    found = label_logprobs(tiny.model, prompts, ids, batch_tokens)
    np.testing.assert_allclose(found, plainly(tiny, prompts, ids), rtol=0, atol=1e-4)
    assert np.max(found) < 0


@pytest.mark.parametrize(("quantization", "method"), [("int8", "lora"), ("nf4", "qlora"), (NF4_PACKED, "dora")])
def test_logprobs_equal_a_plain_computation_on_a_quantized_base(
    session_of: MakeSession, quantization: str, method: str
) -> None:
    session = session_of(quantization, method)
    prompts, ids = prompts_with_long_beginnings(1), label_ids(session, ("up", "upper", "down"))
    np.testing.assert_allclose(
        label_logprobs(session.model, prompts, ids), plainly(session, prompts, ids), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("batch_tokens", [4096, 1])
def test_every_row_is_reported_once_with_all_its_labels(tiny: Session, batch_tokens: int) -> None:
    prompts, ids = prompts_with_long_beginnings(2), label_ids(tiny, ("up", "down"))
    reported: list[tuple[int, list[float]]] = []
    found = label_logprobs(
        tiny.model, prompts, ids, batch_tokens, lambda number, scores: reported.append((number, list(scores)))
    )
    assert Counter(number for number, _ in reported) == Counter(range(len(prompts)))
    assert dict(reported) == dict(enumerate(found))


def test_no_prompts_have_no_scores(tiny: Session) -> None:
    assert label_logprobs(tiny.model, [], label_ids(tiny, ("up", "down"))) == []


def test_scores_use_no_dropout(session_of: MakeSession) -> None:
    session = session_of(dropout=0.5)
    session.model.train()
    prompts, ids = prompts_with_long_beginnings(3), label_ids(session, ("up", "down"))
    assert label_logprobs(session.model, prompts, ids) == label_logprobs(session.model, prompts, ids)


def test_a_model_scores_the_labels_of_the_rows_that_are_asked_for(tiny: Session) -> None:
    benchmark = BENCHMARKS["fpb"]
    rows = [Row(f"fpb/test/{index}", "fpb", f"item {index}. Answer: ", "positive") for index in range(4)]
    answers = {}
    model = LocalModel.as_it_is(tiny, tiny_config())
    model.compare_labels(benchmark, rows, [3, 1], answers.__setitem__)
    assert sorted(answers) == [1, 3]
    prompts = encode_prompts(tiny.tokenizer, [rows[number].prompt for number in (1, 3)])
    expected = plainly(tiny, prompts, label_ids(tiny, benchmark.labels))
    for number, scores in zip((1, 3), expected, strict=True):
        assert list(answers[number].label_logprobs) == list(benchmark.labels)
        np.testing.assert_allclose(list(answers[number].label_logprobs.values()), scores, rtol=0, atol=1e-4)


# --- the choice -----------------------------------------------------------------------------------


@given(st.sampled_from(CLOSED), st.data())
def test_the_most_probable_label_is_chosen_as_answers_are_read(key: str, data: st.DataObject) -> None:
    benchmark = BENCHMARKS[key]
    best = data.draw(st.sampled_from(benchmark.labels))
    logprobs = {label: data.draw(st.floats(-50, -5)) for label in benchmark.labels} | {best: -1.0}
    expected = best.split()[-1] if key == "nwgi" else best
    assert choice_of(benchmark, logprobs) == expected


def test_nwgis_levels_are_compared_by_themselves_and_collapsed_afterwards() -> None:
    """The single most probable level decides, not the sum over those that collapse to the same answer."""
    benchmark = BENCHMARKS["nwgi"]
    logprobs = dict.fromkeys(benchmark.labels, -2.0) | {"neutral": -1.9}
    assert choice_of(benchmark, logprobs) == "neutral"
    assert {
        choice_of(benchmark, dict.fromkeys(benchmark.labels, -9.0) | {label: -1.0}) for label in benchmark.labels
    } == {
        "negative",
        "neutral",
        "positive",
    }


@pytest.mark.parametrize("key", CLOSED)
def test_ties_go_to_the_earlier_label(key: str) -> None:
    benchmark = BENCHMARKS[key]
    first = choice_of(benchmark, dict.fromkeys(benchmark.labels, -3.0))
    assert first == choice_of(benchmark, {label: -float(place) for place, label in enumerate(benchmark.labels)})
    last = benchmark.labels[-1]
    assert choice_of(benchmark, dict.fromkeys(benchmark.labels, -3.0) | {last: -2.9}) == (
        last.split()[-1] if key == "nwgi" else last
    )


@pytest.mark.slow
def test_the_embedded_models_logprobs_equal_a_plain_computation(smollm2_config: Config) -> None:
    session = get_session(smollm2_config)
    set_random_adapter(session)
    labels = [
        (*ids, session.tokenizer.eos_token_id)
        for ids in session.tokenizer(list(BENCHMARKS["nwgi"].labels))["input_ids"]
    ]
    prompts = encode_prompts(
        session.tokenizer, ["Profit rose. Answer: ", "Profit fell to 3 % in June. Answer: ", "Profit"]
    )
    np.testing.assert_allclose(
        label_logprobs(session.model, prompts, labels), plainly(session, prompts, labels), rtol=1e-5, atol=1e-3
    )
