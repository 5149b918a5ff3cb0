"""The shared evaluator: test rows -> answers of one or several models -> scoring -> eval/<label>/ in the run's
folder.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.catalog import BENCHMARKS, Benchmark, select
from data.rows import Row
from eval.answers import ModelAnswer
from eval.asking import answers_of, unanswered
from eval.decoding.cache_memory import gives_memory_back
from eval.general_knowledge import general_knowledge
from eval.metrics.averages import finlora_overall, group_means, headline_score
from eval.models import TOO_LONG, LocalModel, Model, choice_of
from eval.rows import EvaluationRows, prepared, rows_to_score
from eval.scoring.final_answer import is_unfinished
from eval.scoring.records import score_rows
from fedfinlora.config.schema import Config
from fedfinlora.errors import plural
from fedfinlora.files import write_bytes, write_json
from fedfinlora.model.loading import Session
from fedfinlora.run.evaluation import (
    METRICS_FILE,
    BenchmarkMetrics,
    DecodingCheck,
    Evaluation,
    RowRecord,
    TokenCounts,
    Work,
)
from fedfinlora.run.events import Evaluate, EvaluateDone, Event, Message
from fedfinlora.run.general_knowledge import write_general_knowledge
from fedfinlora.run.typed import to_json
from fedfinlora.seeds import generator

OnEvent = Callable[[Event], None]
log = logging.getLogger("fedfinlora")
CUT, FILTERED, MANY_CUT = ("budget", "length", "max_tokens"), ("content_filter", "safety", "refusal"), 0.05
"""Why a text ended at its budget (ours and servers' words) or was held back; the share that is worth a warning."""
PARTIAL = ".partial"
"""Ends the names of files that hold answers until all benchmarks are scored."""


def evaluate(
    session: Session,
    config: Config,
    label: str,
    run: Path,
    on_event: OnEvent | None = None,
    chosen_rows: EvaluationRows | None = None,
) -> Evaluation:
    """Score the session's model with its adapter as it is now; write eval/<label>/ and return the content of
    metrics.json.

    `chosen_rows` takes the place of the test rows that the configuration asks for.
    """
    return evaluate_models({label: LocalModel.as_it_is(session, config)}, config, run, on_event, chosen_rows)[label]


@gives_memory_back()
def evaluate_models(
    models: Mapping[str, Model],
    config: Config,
    run: Path,
    on_event: OnEvent | None = None,
    chosen_rows: EvaluationRows | None = None,
) -> dict[str, Evaluation]:
    """Score several models, given by label, benchmark by benchmark in one pass over the rows; returns metrics.json by
    label.
    """
    asked = prepared(chosen_rows or rows_to_score(config), config, next(iter(models.values())).length)
    scored: dict[str, list[_Scored]] = {label: [] for label in models}
    benchmarks = [benchmark for benchmark in select(config.evaluation.benchmarks) if benchmark.key in asked.rows]
    for number, benchmark in enumerate(benchmarks, 1):
        for label, model in models.items():
            task = _Task(benchmark, asked.rows[benchmark.key], model, label, config, run)
            place = {"index": number, "of": len(benchmarks)}
            scored[label].append(task.run_all(_reporter(on_event, label, benchmark.key, len(task.rows), place)))
    summaries: dict[str, Evaluation] = {}
    for label, model in models.items():
        summaries[label] = summary = _summary(label, scored[label], model, config, asked)
        write_json(run / "eval" / label / METRICS_FILE, to_json(summary))
        if config.evaluation.general_knowledge and chosen_rows is None and isinstance(model, LocalModel):
            write_general_knowledge(run / "eval" / label, general_knowledge(model))
        for partial in (run / "eval" / label).glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        if on_event is not None:
            shown = {key: headline_score(metrics, "strict") for key, metrics in summary.scores.items()}
            on_event(Message(level="info", text=_cost(summary, config)))
            on_event(EvaluateDone(label=label, scores=shown))
    return summaries


def prompts_to_send(config: Config, model: Model) -> dict[str, list[str]]:
    """The prompts that `evaluate_models` would put to a model: with examples, without those answered earlier."""
    asked = prepared(rows_to_score(config), config, model.length)
    return {key: unanswered(model, BENCHMARKS[key], rows, config) for key, rows in asked.rows.items()}


@dataclass(frozen=True)
class _Scored:
    key: str
    metrics: BenchmarkMetrics
    work: Work
    seconds: float


@dataclass(frozen=True)
class _Task:
    benchmark: Benchmark
    rows: Sequence[Row]
    model: Model
    label: str
    config: Config
    run: Path

    @property
    def folder(self) -> Path:
        return self.run / "eval" / self.label

    def run_all(self, report: Callable[[int], None]) -> _Scored:
        started = time.monotonic()
        evaluation, benchmark = self.config.evaluation, self.benchmark
        prompts = self.model.prompts(self.rows, benchmark)
        none: list[ModelAnswer | None] = [None] * len(self.rows)
        (texts, reused), (rankings, reused_rankings) = (none, 0), (none, 0)
        report(0)
        if evaluation.mode != "labels":
            texts, reused = self._answers(prompts, report)
        if evaluation.mode != "generate" and benchmark.labels:
            rankings, reused_rankings = self._answers(prompts, report, labels=True)
        outputs = [None if evaluation.mode == "labels" else _output(text) for text in texts]
        choices = [choice_of(benchmark, one.label_logprobs) if one and one.label_logprobs else None for one in rankings]
        records, metrics = score_rows(benchmark, self.rows, outputs, evaluation.bertscore_model, choices)
        records = [_with_answers(*one) for one in zip(records, prompts, texts, rankings, strict=True)]
        metrics = replace(metrics, too_long=sum(record.too_long for record in records))
        if evaluation.mode != "labels":
            self._say_what_was_cut(records)
            if evaluation.check_rows:
                metrics = replace(metrics, decoding=self._checked(records))
        lines = "".join(json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        write_bytes(self.folder / f"{benchmark.key}.jsonl", lines.encode("utf-8", "surrogatepass"))
        work = Work(len(self.rows), reused + reused_rankings)
        return _Scored(benchmark.key, metrics, work, time.monotonic() - started)

    def _answers(
        self, prompts: Sequence[str | None], report: Callable[[int], None], labels: bool = False
    ) -> tuple[list[ModelAnswer | None], int]:
        partial = self.folder / f"{self.benchmark.key}.{'labels' if labels else 'text'}{PARTIAL}"
        return answers_of(self.model, self.benchmark, self.rows, prompts, partial, self.config, report, labels)

    def _say_what_was_cut(self, records: Sequence[RowRecord]) -> None:
        """Warn where many texts reach the budget while they are empty or inside a thought: their score says little of
        the model.
        """
        texts = [record.output or "" for record in records if record.stopped in CUT]
        cut = sum(not text.strip() or is_unfinished(text) for text in texts)
        filtered = sum(record.stopped in FILTERED for record in records)
        if filtered >= max(1, MANY_CUT * len(records)):
            log.warning(
                 "%s, %s: the server held back %d of %d answers (content filter); they count as they came, empty ones "
                "as unparsed." ,
                self.label, self.benchmark.key, filtered, len(records),
            )  # fmt: skip
        if cut >= max(1, MANY_CUT * len(records)):
            log.warning(
                "%s, %s: %d of %d answers were cut off at the benchmark's budget of %d tokens before they said "
                "anything. Ask for answers without thoughts, or raise budget_tokens in data/catalog.py.",
                self.label, self.benchmark.key, cut, len(records), self.benchmark.budget_tokens,
            )  # fmt: skip

    def _checked(self, records: Sequence[RowRecord]) -> DecodingCheck | None:
        """How many of a seeded few rows plain decoding row by row answers otherwise, as far as ours were decoded."""
        if not isinstance(self.model, LocalModel):
            return None
        fitting = [place for place, record in enumerate(records) if not record.too_long]
        drawn = generator(self.config.seed, "check rows", self.benchmark.key).permutation(len(fitting))
        places = [fitting[index] for index in sorted(drawn[: self.config.evaluation.check_rows].tolist())]
        plain = self.model.generate_plainly(self.benchmark, [self.rows[place] for place in places])
        differ = 0
        for place, text in zip(places, plain, strict=True):
            ours = records[place].output or ""
            same = text.startswith(ours) if records[place].stopped == "settled" else text == ours
            differ += not same
        return DecodingCheck(len(places), differ)


def _output(text: ModelAnswer | None) -> str | None:
    """What is scored of a text: nothing where the prompt did not fit."""
    return "" if text is None or text.stopped == TOO_LONG else text.text


def _with_answers(
    record: RowRecord, prompt: str | None, text: ModelAnswer | None, ranking: ModelAnswer | None
) -> RowRecord:
    """The record with what is known of its answers apart from the score."""
    text, ranking = text or ModelAnswer(), ranking or ModelAnswer()
    return replace(
        record,
        too_long=prompt is None or text.stopped == TOO_LONG,
        stopped=text.stopped,
        api=text.api,
        served_model=text.served_model,
        label_logprobs=ranking.label_logprobs,
    )


def _reporter(
    on_event: OnEvent | None, label: str, benchmark: str, rows: int, place: Mapping[str, int]
) -> Callable[[int], None]:
    """Reports how many rows are done, at most some hundred times a benchmark."""
    reported = -1

    def report(done: int) -> None:
        nonlocal reported
        if on_event is not None and done != reported and (done in (0, rows) or done - reported >= rows / 100):
            reported = done
            on_event(Evaluate(label=label, benchmark=benchmark, rows_done=done, rows=rows, **place))

    return report


def _cost(summary: Evaluation, config: Config) -> str:
    rows = sum(work.rows for work in summary.work.values())
    speed = f"{summary.rows_per_s:.2f} rows a second" if summary.rows_per_s else "none asked"
    memory = f"keys and values took at most {summary.peak_cache_gib or 0.0:.2f} GiB"
    return f"{summary.label}: {plural(rows, 'row')}, {summary.reused} answered earlier, {speed}; {memory}"


def _summary(label: str, scored: Sequence[_Scored], model: Model, config: Config, asked: EvaluationRows) -> Evaluation:
    scores = {one.key: one.metrics for one in scored}
    seconds, reused = sum(one.seconds for one in scored), sum(one.work.reused for one in scored)
    new = sum(one.work.rows for one in scored) - reused
    work = model.work
    return Evaluation(
        scores=scores,
        seconds={one.key: one.seconds for one in scored},
        work={one.key: one.work for one in scored},
        label=label,
        synthetic=asked.synthetic,
        skipped=asked.skipped,
        groups=group_means(scores),
        finlora_overall=finlora_overall(scores),
        model=dict(model.identity),
        mode=config.evaluation.mode,
        shots=config.evaluation.shots,
        shortages=asked.shortages,
        reused=reused,
        rows_per_s=new / seconds if seconds else None,
        peak_cache_gib=work.peak_cache_bytes / 2**30,
        tokens=TokenCounts(work.prompt_tokens, work.read_tokens, work.written_tokens),
        server=model.account(),
    )
