"""The forgetting check: what is asked, how options are scored, and what the report says of the change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_adapter, tiny_config
from report_runs import add_evaluations, make_run, report

from data.general_knowledge import QUESTIONS
from eval.evaluate import evaluate_models
from eval.general_knowledge import general_knowledge, judged, prompt_of
from eval.models import LocalModel
from eval.rows import rows_to_score
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.general_knowledge import (
    FILE,
    GeneralKnowledge,
    read_general_knowledge,
    write_general_knowledge,
)


def config(on: bool = True) -> Config:
    evaluation = EvaluationConfig(benchmarks=("fpb",), limit=1, reuse=False, general_knowledge=on)
    return replace(tiny_config(), dataset=DatasetConfig(source="sample"), evaluation=evaluation)


def adapted(values: Config, seed: int) -> LocalModel:
    session = get_session(values)
    return LocalModel(session, values, random_adapter(session.layout.size, seed))


def test_every_question_is_asked_once_with_four_options_apart() -> None:
    assert 40 <= len(QUESTIONS) <= 60
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert len(set(question.options)) == 4
        assert not any(one != other and one in other for one in question.options for other in question.options)
    places = [question.options.index(question.right) for question in QUESTIONS]
    assert all(places.count(place) >= 5 for place in range(4)), "no place that is always right"


def test_the_likeliest_option_is_the_answer_and_ties_go_to_the_earlier() -> None:
    right = [question.options.index(question.right) for question in QUESTIONS]
    sure = [[-1.0 if place == one else -2.0 for place in range(4)] for one in right]
    assert judged(sure).accuracy == 1.0
    assert judged(sure).right_logprob == -1.0
    tied = judged([[-1.0] * 4 for _ in QUESTIONS])
    assert tied.right == right.count(0)
    assert tied.correct == tuple(place == 0 for place in right)


def test_scores_equal_those_of_a_plain_forward_pass() -> None:
    """Log-probabilities of one question's options from transformers' logits, option by option."""
    import torch

    model = adapted(config(), seed=3)
    found = general_knowledge(model)
    tokenizer = model.session.tokenizer
    best = []
    for question in QUESTIONS[:6]:
        prompt = tokenizer(prompt_of(question), add_special_tokens=False)["input_ids"]
        scores = []
        for option in question.options:
            answer = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model.session.model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
            logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            scores.append(sum(float(row[token]) for row, token in zip(logprobs, answer, strict=True)))
        best.append(question.options[scores.index(max(scores))] == question.right)
    assert found.correct[:6] == tuple(best)


def test_base_and_adapter_are_asked_and_rounds_are_not(tmp_path: Path) -> None:
    values = config()
    session = get_session(values)
    base = LocalModel(session, values, initial_adapter(session, values))
    evaluate_models({"base": base, "final": adapted(values, 3)}, values, tmp_path)
    before, after = (read_general_knowledge(tmp_path, label) for label in ("base", "final"))
    assert before is not None
    assert after is not None
    assert before.right_logprob != after.right_logprob
    evaluate_models({"round_001": base}, values, tmp_path, chosen_rows=rows_to_score(values))
    evaluate_models({"off": base}, config(on=False), tmp_path)
    assert [read_general_knowledge(tmp_path, label) for label in ("round_001", "off")] == [None, None]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((True, False, True, True), "75.0 % of 4 questions outside finance right (95 % interval 30.0 to 95.4); "
         "+25.0 points against base: 0 forgotten, 1 gained."),
        ((False, False, True, False), "25.0 % of 4 questions outside finance right (95 % interval 30.0 to 95.4); "
         "−25.0 points against base: 1 forgotten, 0 gained."),
    ],
    ids=["gained", "forgotten"],
)  # fmt: skip
def test_the_report_says_what_was_forgotten_and_gained(tmp_path: Path, after: tuple[bool, ...], words: str) -> None:
    run = add_evaluations(make_run(tmp_path / "demo"))
    for label, correct in (("base", (True, False, True, False)), ("final", after)):
        found = GeneralKnowledge(4, sum(correct), sum(correct) / 4, (0.3, 0.954), -1.0, correct)
        write_general_knowledge(run / "eval" / label, found)
    assert f"General knowledge, demo final: {words}" in report(tmp_path, run)


def test_a_damaged_record_is_left_out_of_the_report(tmp_path: Path) -> None:
    run = add_evaluations(make_run(tmp_path / "demo"))
    (run / "eval" / "final" / FILE).write_text('{"questions": "many"}', encoding="utf-8")
    assert "General knowledge" not in report(tmp_path, run)
