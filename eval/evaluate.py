"""The shared evaluator: test rows -> answers of one or several models -> scoring -> eval/<label>/ in the run's folder.

Answers are written as they come, to the run's folder and (evaluation.reuse) to evaluation.answers_dir: an evaluation that was killed goes
on where it was, and what a model has answered is not asked again, in this run or another.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS, Benchmark, select
from data.rows import Row
from data.shots import few_shot_rows
from data.sources import load_rows
from eval.answers import AnswerFile, read_answers, settings_id
from eval.metrics import finlora_overall, group_means, headline_score, summarise
from eval.models import TOO_LONG, LocalModel, Model, OnAnswer, choice_of
from eval.records import score_rows
from eval.said import is_unfinished
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.memory import give_back_heap
from fedfinlora.models import Session
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, DecodingCheck, Evaluation, RowRecord, TokenCounts, Work
from fedfinlora.run.typed import to_json
from fedfinlora.runfolder import write_bytes, write_json
from fedfinlora.seeds import generator

OnEvent = Callable[..., None]
log = logging.getLogger("fedfinlora")
CUT, FILTERED, MANY_CUT = ("budget", "length", "max_tokens"), ("content_filter", "safety", "refusal"), 0.05
"""Why a text ended at its budget, in ours and in servers' words, and because the server held it back; the share of such answers that is worth a
warning."""
PARTIAL = ".partial"
"""Ends the names of files that hold answers until all benchmarks are scored."""


@dataclass(frozen=True)
class EvaluationRows:
    """What one evaluation reads."""

    rows: Mapping[str, list[Row]]
    """Benchmark key -> its rows."""
    skipped: Mapping[str, str]
    """Benchmark key -> why it has none."""
    files: Mapping[str, str]
    """File -> SHA-256."""
    synthetic: bool


def rows_to_score(config: Config, limit: int | None = None) -> EvaluationRows:
    """Test rows of each benchmark asked for: a seeded sample of `limit` (default evaluation.limit; 0 = all).

    A smaller sample is part of every larger one.
    """
    synthetic = config.dataset.source == "sample"
    benchmarks = select(config.evaluation.benchmarks)
    if not benchmarks:
        return EvaluationRows({}, {}, {}, synthetic)
    try:
        loaded = load_rows(config.dataset, "test", tuple(benchmark.key for benchmark in benchmarks), config.seed)
    except UserError as error:  # no test rows at all, or bad ones with dataset.on_bad_row=stop
        if config.dataset.on_bad_row == "stop":
            raise
        return EvaluationRows({}, {benchmark.key: str(error) for benchmark in benchmarks}, {}, synthetic)
    rows: dict[str, list[Row]] = {benchmark.key: [] for benchmark in benchmarks}
    for row in loaded.rows:
        if row.task in rows:
            rows[row.task].append(row)
    skipped: dict[str, str] = {}
    limit = config.evaluation.limit if limit is None else limit
    for key in list(rows):
        if not rows[key]:
            skipped[key] = loaded.missing.get(key, "no usable test rows")
            del rows[key]
            continue
        if limit and len(rows[key]) > limit:
            chosen = generator(config.seed, "evaluation", key).permutation(len(rows[key]))[:limit]
            rows[key] = [rows[key][index] for index in sorted(chosen.tolist())]
    return EvaluationRows(rows, skipped, loaded.files, loaded.synthetic)


def data_files(config: Config) -> dict[str, str]:
    """File -> SHA-256 of every train and test file that can be read from here (a deployed bank's own files cannot)."""
    files = dict(rows_to_score(config).files)
    try:
        files |= load_rows(config.dataset, "train", config.dataset.tasks, config.seed).files
    except UserError:
        return files
    return files


def evaluate(
    session: Session,
    config: Config,
    label: str,
    run: Path,
    on_event: OnEvent | None = None,
    chosen_rows: EvaluationRows | None = None,
) -> Evaluation:
    """Score the session's model with its adapter as it is now; write eval/<label>/ and return the content of metrics.json.

    `chosen_rows` takes the place of the test rows that the configuration asks for.
    """
    return evaluate_models({label: LocalModel.as_it_is(session, config)}, config, run, on_event, chosen_rows)[label]


def evaluate_models(
    models: Mapping[str, Model],
    config: Config,
    run: Path,
    on_event: OnEvent | None = None,
    chosen_rows: EvaluationRows | None = None,
) -> dict[str, Evaluation]:
    """Score several models, given by label, benchmark by benchmark in one pass over the rows; returns metrics.json by label."""
    asked = chosen_rows or rows_to_score(config)
    rows, skipped, shortages = _prepared(asked, config, next(iter(models.values())))
    scored: dict[str, list[_Scored]] = {label: [] for label in models}
    benchmarks = [benchmark for benchmark in select(config.evaluation.benchmarks) if benchmark.key in rows]
    for number, benchmark in enumerate(benchmarks, 1):
        for label, model in models.items():
            task = _Task(benchmark, rows[benchmark.key], model, label, config, run)
            place = {"index": number, "of": len(benchmarks)}
            found = task.run_all(_reporter(on_event, label, benchmark.key, len(task.rows), place))
            lines = "".join(json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n" for record in found.records)
            write_bytes(task.folder / f"{benchmark.key}.jsonl", lines.encode("utf-8", "surrogatepass"))
            scored[label].append(replace(found, records=()))
    summaries: dict[str, Evaluation] = {}
    for label, model in models.items():
        summary = _summary(label, scored[label], model, config)
        summary = replace(summary, synthetic=asked.synthetic, skipped=skipped, shortages=shortages)
        summaries[label] = summary
        write_json(run / "eval" / label / METRICS_FILE, to_json(summary))
        for partial in (run / "eval" / label).glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        if on_event is not None:
            shown = {key: headline_score(metrics, "honest") for key, metrics in summary.scores.items()}
            on_event("message", level="info", text=_cost(summary, config))
            on_event("evaluate_done", label=label, scores=shown)
    give_back_heap()
    return summaries


def prompts_to_send(config: Config, model: Model) -> dict[str, list[str]]:
    """The prompts that `evaluate_models` would put to a model: with examples, without those answered earlier."""
    rows, _, _ = _prepared(rows_to_score(config), config, model)
    found: dict[str, list[str]] = {}
    for key, chosen in rows.items():
        file = _shared_file(config, model.settings(BENCHMARKS[key], chosen, labels=False))
        known = read_answers(file) if config.evaluation.reuse and model.lasting else {}
        ids = model.prompts(chosen, BENCHMARKS[key])
        texts = {prompt: row.prompt for row, prompt in zip(chosen, ids, strict=True) if prompt not in known}
        found[key] = list(texts.values())
    return found


@dataclass(frozen=True)
class _Scored:
    """One benchmark, scored."""

    key: str
    records: Sequence[RowRecord]
    metrics: BenchmarkMetrics
    work: Work
    seconds: float


@dataclass(frozen=True)
class _Task:
    """One benchmark asked of one model."""

    benchmark: Benchmark
    rows: Sequence[Row]
    model: Model
    label: str
    config: Config
    run: Path

    @property
    def folder(self) -> Path:
        return self.run / "eval" / self.label

    def partial_file(self, what: str) -> Path:
        return self.folder / f"{self.benchmark.key}.{what}{PARTIAL}"

    def run_all(self, report: Callable[[int], None]) -> _Scored:
        """Ask the model and score its answers."""
        started = time.monotonic()
        evaluation, benchmark = self.config.evaluation, self.benchmark
        ids = self.model.prompts(self.rows, benchmark)
        texts: list[dict[str, Any] | None] = [None] * len(self.rows)
        choices: list[dict[str, Any] | None] = [None] * len(self.rows)
        reused = 0
        report(0)
        if evaluation.mode != "labels":
            texts, reused = self._answers(ids, "text", self.model.generate, report)
        if evaluation.mode != "generate" and benchmark.labels:
            choices, again = self._answers(ids, "labels", self.model.compare_labels, report)
            reused += again
        too_long = [
            place
            for place, (prompt, answer) in enumerate(zip(ids, texts, strict=True))
            if prompt is None or (answer and answer["stopped"] == TOO_LONG)
        ]
        outputs = [answer["text"] if answer else None for answer in texts]
        if evaluation.mode != "labels":
            outputs = ["" if place in set(too_long) else output for place, output in enumerate(outputs)]
        records, metrics = score_rows(benchmark, self.rows, outputs, evaluation.bertscore_model)
        for place in too_long:
            records[place] = replace(records[place], too_long=True)
        for place, (answer, choice) in enumerate(zip(texts, choices, strict=True)):
            if answer:
                stopped, api, served = (answer.get(name) for name in ("stopped", "api", "served_model"))
                records[place] = replace(records[place], stopped=stopped, api=api, served_model=served)
            if choice:
                chosen = choice_of(benchmark, choice["label_logprobs"])
                records[place] = replace(records[place], label_logprobs=choice["label_logprobs"], label_choice=chosen)
        if any(choices):
            metrics = summarise(benchmark, records)
        metrics = replace(metrics, too_long=len(too_long))
        if evaluation.mode != "labels":
            self._say_what_was_cut(records)
        if evaluation.check_rows and evaluation.mode != "labels":
            metrics = replace(metrics, decoding=self._checked(records))
        return _Scored(benchmark.key, records, metrics, Work(len(self.rows), reused), time.monotonic() - started)

    def _say_what_was_cut(self, records: Sequence[RowRecord]) -> None:
        """Warn where many texts reach the budget while they are empty or inside a thought: their score says little of the model."""
        texts = [record.output or "" for record in records if record.stopped in CUT]
        cut = sum(not text.strip() or is_unfinished(text) for text in texts)
        filtered = sum(record.stopped in FILTERED for record in records)
        if filtered >= max(1, MANY_CUT * len(records)):
            log.warning(
                "%s, %s: the server held back %d of %d answers (content filter); they count as they came, empty ones as unparsed.",
                self.label, self.benchmark.key, filtered, len(records),
            )  # fmt: skip
        if cut >= max(1, MANY_CUT * len(records)):
            log.warning(
                "%s, %s: %d of %d answers were cut off at the benchmark's budget of %d tokens before they said anything. Ask for answers without "
                "thoughts, or raise budget_tokens in data/catalog.py.",
                self.label, self.benchmark.key, cut, len(records), self.benchmark.budget_tokens,
            )  # fmt: skip

    def _answers(
        self,
        ids: Sequence[str | None],
        what: str,
        ask: Callable[[Benchmark, Sequence[Row], Sequence[int], OnAnswer], None],
        report: Callable[[int], None],
    ) -> tuple[list[dict[str, Any] | None], int]:
        """(each row's answer, None where its prompt is too long; how many were known already)."""
        settings = self.model.settings(self.benchmark, self.rows, labels=what == "labels")
        with ExitStack() as stack:
            files = [stack.enter_context(AnswerFile(self.partial_file(what), settings))]
            if self.config.evaluation.reuse and self.model.lasting:
                files.append(stack.enter_context(AnswerFile(_shared_file(self.config, settings), settings)))
            known: dict[str, dict[str, Any]] = {}
            for file in files:
                known |= file.known
            places: dict[str, list[int]] = {}
            for place, prompt in enumerate(ids):
                if prompt is not None:
                    places.setdefault(prompt, []).append(place)
            for prompt in places:
                if prompt in known:
                    for file in files:
                        file.add(prompt, known[prompt])
            asked = [same[0] for prompt, same in places.items() if prompt not in known]
            missing = sum(len(same) for prompt, same in places.items() if prompt not in known)
            done = len(ids) - missing
            report(done)

            def keep(place: int, answer: dict[str, Any]) -> None:
                nonlocal done
                prompt = ids[place]
                assert prompt is not None
                known[prompt] = answer
                for file in files:
                    file.add(prompt, answer)
                done += len(places[prompt])
                report(done)

            if asked:
                ask(self.benchmark, self.rows, asked, keep)
        answers: list[dict[str, Any] | None] = [None if prompt is None else known[prompt] for prompt in ids]
        return answers, sum(map(len, places.values())) - missing

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


def _prepared(
    asked: EvaluationRows, config: Config, model: Model
) -> tuple[dict[str, Sequence[Row]], dict[str, str], dict[str, str]]:
    """(rows as they are put to the models, what is skipped and why, benchmarks with fewer examples than asked for)."""
    rows: dict[str, Sequence[Row]] = dict(asked.rows)
    skipped, shortages = dict(asked.skipped), dict[str, str]()
    for key in list(rows):
        benchmark = BENCHMARKS[key]
        if config.evaluation.mode == "labels" and not benchmark.labels:
            skipped[key] = "evaluation.mode=labels: it has no closed label set"
            del rows[key]
        elif config.evaluation.shots:
            prepared = few_shot_rows(config, benchmark, rows[key], model.length())
            if prepared.skipped:
                skipped[key] = prepared.skipped
                del rows[key]
                continue
            if prepared.shortage:
                shortages[key] = prepared.shortage
            rows[key] = prepared.rows
    return rows, skipped, shortages


def _shared_file(config: Config, settings: Mapping[str, Any]) -> Path:
    """Where answers under these settings are kept for later evaluations."""
    return Path(config.evaluation.answers_dir).expanduser() / f"{settings_id(settings)}.jsonl"


def _reporter(
    on_event: OnEvent | None, label: str, benchmark: str, rows: int, place: Mapping[str, int]
) -> Callable[[int], None]:
    """Tells how many rows are done, at most some hundred times a benchmark."""
    told = -1

    def report(done: int) -> None:
        nonlocal told
        if on_event is not None and done != told and (done in (0, rows) or done - told >= rows / 100):
            told = done
            on_event("evaluate", label=label, benchmark=benchmark, rows_done=done, rows=rows, **place)

    return report


def _cost(summary: Evaluation, config: Config) -> str:
    """What an evaluation cost, in a line."""
    rows = sum(work.rows for work in summary.work.values())
    speed = f"{summary.rows_per_s:.2f} rows a second" if summary.rows_per_s else "none asked"
    memory = f"keys and values took at most {summary.peak_cache_gib or 0.0:.2f} of {config.evaluation.cache_gib:g} GiB"
    return f"{summary.label}: {rows} rows, {summary.reused} answered earlier, {speed}; {memory}"


def _summary(label: str, scored: Sequence[_Scored], model: Model, config: Config) -> Evaluation:
    """All benchmarks of one model together."""
    scores = {one.key: one.metrics for one in scored}
    seconds, reused = sum(one.seconds for one in scored), sum(one.work.reused for one in scored)
    asked = sum(one.work.rows for one in scored) - reused
    work = model.work
    return Evaluation(
        scores=scores,
        seconds={one.key: one.seconds for one in scored},
        work={one.key: one.work for one in scored},
        label=label,
        groups=group_means(scores),
        finlora_overall=finlora_overall(scores),
        model=dict(model.identity),
        mode=config.evaluation.mode,
        shots=config.evaluation.shots,
        reused=reused,
        rows_per_s=asked / seconds if seconds else None,
        peak_cache_gib=work.peak_cache_bytes / 2**30,
        tokens=TokenCounts(work.prompt_tokens, work.read_tokens, work.written_tokens),
        server=model.account(),
    )
