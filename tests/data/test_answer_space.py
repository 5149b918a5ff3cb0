"""dataset.answer_space moves the cut between prompt and answer, and nothing else: the same in training, answers and
labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import random_adapter, tiny_config

from data.catalog import BENCHMARKS
from data.encode import cut_rows, encode_rows, moves_space
from data.rows import Row
from eval.answers import ModelAnswer
from eval.models import LocalModel
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import Session, get_session

FPB = BENCHMARKS["fpb"]
ROWS = [
    Row("fpb/test/0", "fpb", "Profit rose. Answer: ", "positive"),
    Row("fpb/test/1", "fpb", "Profit fell. Answer:", "negative"),
]


@pytest.fixture(scope="module")
def session() -> Session:
    return get_session(tiny_config())


def model_of(session: Session, answer_space: bool) -> LocalModel:
    config: Config = tiny_config()
    config = replace(config, dataset=replace(config.dataset, answer_space=answer_space))
    return LocalModel(session, config, random_adapter(session.layout.size))


def test_only_one_space_at_the_end_moves() -> None:
    assert cut_rows(["a ", "b", "c  "], ["1", "2", "3"], answer_space=True) == (["a", "b", "c  "], [" 1", "2", "3"])
    assert cut_rows(["a "], ["1"], answer_space=False) == (["a "], ["1"])
    assert not moves_space("")


def test_training_and_evaluation_cut_at_the_same_place(session: Session) -> None:
    for answer_space in (False, True):
        examples = encode_rows(session.tokenizer, ROWS, 1000, answer_space=answer_space).examples
        assert [example.prompt_ids for example in examples] == model_of(session, answer_space)._tokens(ROWS)


def test_the_text_of_prompt_and_answer_stays_the_same(session: Session) -> None:
    def texts(answer_space: bool) -> list[str]:
        examples = encode_rows(session.tokenizer, ROWS, 1000, answer_space=answer_space).examples
        return [session.tokenizer.decode(example.prompt_ids + example.answer_ids) for example in examples]

    assert texts(True) == texts(False)


def test_it_has_no_effect_within_a_chat_template(session: Session) -> None:
    config = tiny_config()
    chat = replace(config, dataset=replace(config.dataset, answer_space=True, chat_template=True))
    assert not LocalModel(session, chat, random_adapter(session.layout.size))._moves(ROWS[0])


def test_labels_begin_with_the_space_that_was_the_prompts(session: Session) -> None:
    """A byte-level model reads the same bytes: the label's log-probability gains that of the space."""
    import torch

    def scores(answer_space: bool) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {}

        def keep(number: int, answer: ModelAnswer) -> None:
            assert answer.label_logprobs is not None
            found[number] = dict(answer.label_logprobs)

        model_of(session, answer_space).compare_labels(FPB, ROWS, [0, 1], keep)
        return found

    plain, spaced = scores(False), scores(True)
    assert spaced[1] == pytest.approx(plain[1])  # nothing moves there
    prompt: Any = torch.tensor([model_of(session, True)._tokens(ROWS[:1])[0]])
    with torch.no_grad():
        logprobs = session.model(input_ids=prompt).logits[0, -1].log_softmax(-1)
    space = float(logprobs[session.tokenizer(" ")["input_ids"][0]])
    for label in FPB.labels:
        assert spaced[0][label] == pytest.approx(plain[0][label] + space, abs=1e-3)


def test_answers_are_kept_apart_and_those_without_it_as_before(session: Session) -> None:
    plain, spaced = (model_of(session, value).settings(FPB, ROWS, labels=False) for value in (False, True))
    assert spaced == {**plain, "answer_space": True}


def test_an_answer_has_no_space_that_was_the_prompts(session: Session) -> None:
    model = model_of(session, True)
    tokens = session.tokenizer(" up")["input_ids"]
    assert model._text(ROWS[0], tokens) == "up"
    assert model._text(ROWS[1], tokens) == " up"
