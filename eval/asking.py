"""Rows put to a model. Answers are on disk as they come, and what the model has answered before is not asked again.

They are kept in the run's folder, so that a killed evaluation resumes, and (evaluation.reuse) in
evaluation.answers_dir, for later evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data.catalog import Benchmark
from data.rows import Row
from eval.answers import AnswerFile, ModelAnswer, read_answers, settings_id
from eval.models import Model
from fedfinlora.config.schema import Config


def answers_of(
    model: Model,
    benchmark: Benchmark,
    rows: Sequence[Row],
    prompts: Sequence[str | None],
    partial: Path,
    config: Config,
    report: Callable[[int], None],
    labels: bool = False,
) -> tuple[list[ModelAnswer | None], int]:
    """(each row's answer, None where its prompt is too long; how many were known already).

    `prompts` are ids, None where one does not fit the context window; `partial` is the file in the run's folder;
    `report` gets the number of rows done. With `labels` the log-probabilities of the benchmark's labels are asked in
    place of texts.
    """
    settings = model.settings(benchmark, rows, labels=labels)
    with ExitStack() as stack:
        files = [stack.enter_context(AnswerFile(partial, settings))]
        if config.evaluation.reuse and model.lasting:
            files.append(stack.enter_context(AnswerFile(_shared_file(config, settings), settings)))
        known: dict[str, ModelAnswer] = {}
        for file in files:
            known |= file.known
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            if prompt is not None:
                places.setdefault(prompt, []).append(place)
        for prompt in places:
            if prompt in known:
                for file in files:
                    file.add(prompt, known[prompt])
        asked = [same[0] for prompt, same in places.items() if prompt not in known]
        missing = sum(len(same) for prompt, same in places.items() if prompt not in known)
        done = len(prompts) - missing
        report(done)

        def keep(place: int, answer: ModelAnswer) -> None:
            nonlocal done
            prompt = prompts[place]
            assert prompt is not None
            known[prompt] = answer
            for file in files:
                file.add(prompt, answer)
            done += len(places[prompt])
            report(done)

        if asked:
            (model.compare_labels if labels else model.generate)(benchmark, rows, asked, keep)
    return [None if prompt is None else known[prompt] for prompt in prompts], sum(map(len, places.values())) - missing


def unanswered(model: Model, benchmark: Benchmark, rows: Sequence[Row], config: Config) -> list[str]:
    """The prompts of these rows that the model would be asked: each once, without those answered earlier."""
    file = _shared_file(config, model.settings(benchmark, rows, labels=False))
    known = read_answers(file) if config.evaluation.reuse and model.lasting else {}
    ids = model.prompts(rows, benchmark)
    return list({prompt: row.prompt for row, prompt in zip(rows, ids, strict=True) if prompt not in known}.values())


def _shared_file(config: Config, settings: Mapping[str, Any]) -> Path:
    return Path(config.evaluation.answers_dir).expanduser() / f"{settings_id(settings)}.jsonl"
