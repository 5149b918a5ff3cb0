"""The shared evaluator: test rows -> generation -> scoring -> eval/<label>/ in the run's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.catalog import Benchmark, select
from data.encode import encode_prompts
from data.rows import Row
from data.sources import load_rows
from eval.generation import generate
from eval.metrics import finlora_overall, group_means
from eval.records import score_rows
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.models import Session
from fedfinlora.runfolder import write_bytes, write_json
from fedfinlora.seeds import generator

OnEvent = Callable[..., None]


def test_rows(config: Config) -> tuple[dict[str, list[Row]], dict[str, str], Mapping[str, str], bool]:
    """Rows of each benchmark asked for (a seeded sample of evaluation.limit), what is skipped and why, file hashes, synthetic or not."""
    benchmarks = select(config.evaluation.benchmarks)
    if not benchmarks:
        return {}, {}, {}, config.dataset.source == "sample"
    try:
        loaded = load_rows(config.dataset, "test", tuple(benchmark.key for benchmark in benchmarks), config.seed)
    except UserError as error:  # no test rows at all, or bad ones with dataset.on_bad_row=stop
        if config.dataset.on_bad_row == "stop":
            raise
        return {}, {benchmark.key: str(error) for benchmark in benchmarks}, {}, config.dataset.source == "sample"
    rows: dict[str, list[Row]] = {benchmark.key: [] for benchmark in benchmarks}
    for row in loaded.rows:
        if row.task in rows:
            rows[row.task].append(row)
    skipped: dict[str, str] = {}
    for key in list(rows):
        if not rows[key]:
            skipped[key] = loaded.missing.get(key, "no usable test rows")
            del rows[key]
            continue
        limit = config.evaluation.limit
        if limit and len(rows[key]) > limit:
            chosen = generator(config.seed, "evaluation", key).permutation(len(rows[key]))[:limit]
            rows[key] = [rows[key][index] for index in sorted(chosen.tolist())]
    return rows, skipped, loaded.files, loaded.synthetic


def data_files(config: Config) -> dict[str, str]:
    """File -> SHA-256 of every train and test file that can be read from here (a deployed bank's own files cannot)."""
    files = dict(test_rows(config)[2])
    try:
        files |= load_rows(config.dataset, "train", config.dataset.tasks, config.seed).files
    except UserError:
        return files
    return files


def evaluate(session: Session, config: Config, label: str, run: Path, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Score the session's model with its adapter as it is now; write eval/<label>/ and return the content of metrics.json."""
    rows, skipped, _, synthetic = test_rows(config)
    benchmarks = [benchmark for benchmark in select(config.evaluation.benchmarks) if benchmark.key in rows]
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for number, benchmark in enumerate(benchmarks, 1):
        chosen = rows[benchmark.key]

        def report(done: int, benchmark: Benchmark = benchmark, number: int = number, total: int = len(chosen)) -> None:
            if on_event is not None:
                on_event(
                    "evaluate",
                    label=label,
                    benchmark=benchmark.key,
                    index=number,
                    of=len(benchmarks),
                    rows_done=done,
                    rows=total,
                )

        report(0)
        started = time.monotonic()
        outputs, too_long = answers(session, config, benchmark, chosen, report)
        records, metrics = score_rows(benchmark, chosen, outputs, config.evaluation.bertscore_model)
        metrics["too_long"] = too_long
        scores[benchmark.key] = metrics
        seconds[benchmark.key] = time.monotonic() - started
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_bytes(run / "eval" / label / f"{benchmark.key}.jsonl", lines.encode())
    summary = {
        "label": label,
        "synthetic": synthetic,
        "scores": scores,
        "skipped": skipped,
        "groups": group_means(scores),
        "finlora_overall": finlora_overall(scores),
        "seconds": seconds,
    }
    write_json(run / "eval" / label / "metrics.json", summary)
    if on_event is not None:
        shown = {key: metrics.get("accuracy", metrics.get("bertscore_f1")) for key, metrics in scores.items()}
        on_event("evaluate_done", label=label, scores=shown)
    return summary


def answers(
    session: Session, config: Config, benchmark: Benchmark, rows: list[Row], on_rows: Callable[[int], None] | None = None
) -> tuple[list[str], int]:
    """The generated text for each row, and how many rows were too long for the context window (their answer is empty)."""
    prompts = encode_prompts(session.tokenizer, [row.prompt for row in rows], config.dataset.chat_template)
    fitting = [
        place for place, prompt in enumerate(prompts) if len(prompt) + benchmark.budget_tokens <= config.model.context_tokens
    ]
    tokens = generate(
        session.model,
        [prompts[place] for place in fitting],
        benchmark.budget_tokens,
        end_ids(session),
        config.evaluation.batch_tokens,
        on_rows,
    )
    texts = [""] * len(rows)
    if not fitting:
        return texts, len(rows)
    for place, text in zip(fitting, session.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
        texts[place] = text
    return texts, len(rows) - len(fitting)


def end_ids(session: Session) -> list[int]:
    """End-of-sequence tokens: the tokenizer's, which training used, first, and those of the model's generation settings."""
    configured = getattr(session.model.generation_config, "eos_token_id", None) or []
    more = configured if isinstance(configured, list) else [configured]
    return [session.tokenizer.eos_token_id, *(token for token in more if token != session.tokenizer.eos_token_id)]
