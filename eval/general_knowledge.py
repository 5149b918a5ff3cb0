"""The forgetting check: does the tuned model still answer what the base model answered?

Each option's score is the sum of the log-probabilities of its tokens after the question (Brown et al. 2020, section
2.4, without normalising by length); the highest is the answer. Nothing is generated, so a model that was tuned to
answer in another form is not held wrong for the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from data.encode import encode_prompts, encode_targets
from data.general_knowledge import QUESTIONS, Question
from eval.decoding.labels import label_logprobs
from eval.metrics.intervals import wilson_interval
from eval.models import LocalModel
from fedfinlora.run.general_knowledge import GeneralKnowledge


def general_knowledge(model: LocalModel) -> GeneralKnowledge:
    """Score a model with its adapter on all questions."""
    session = model.session
    scores = []
    with model.in_place() as module:
        for question in QUESTIONS:
            [prompt] = encode_prompts(session.tokenizer, [prompt_of(question)])
            options = encode_targets(session.tokenizer, [f" {option}" for option in question.options])
            [found] = label_logprobs(module, [prompt], [tuple(option) for option in options])
            scores.append(found)
    return judged(scores)


def prompt_of(question: Question) -> str:
    """
    >>> prompt_of(QUESTIONS[0])
    'Question: What is the capital of France?\\nAnswer:'
    """
    return f"Question: {question.text}\nAnswer:"


def judged(scores: Sequence[Sequence[float]]) -> GeneralKnowledge:
    """The record of log-probabilities in nats, one sequence a question in the order of its options. Ties go to the
    earlier option.
    """
    places = [question.options.index(question.right) for question in QUESTIONS]
    correct = [max(range(len(one)), key=one.__getitem__) == place for one, place in zip(scores, places, strict=True)]
    right = sum(correct)
    return GeneralKnowledge(
        questions=len(QUESTIONS),
        right=right,
        accuracy=right / len(QUESTIONS),
        accuracy_ci95=tuple(wilson_interval(right, len(QUESTIONS)) or ()) or None,
        right_logprob=fmean(one[place] for one, place in zip(scores, places, strict=True)),
        correct=tuple(correct),
    )
