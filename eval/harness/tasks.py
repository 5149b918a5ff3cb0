"""Writes a folder of harness tasks: rows of the configured data set, a YAML file for each benchmark, processing.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from data.catalog import BENCHMARKS, Benchmark
from data.encode import cut_rows
from data.general_knowledge import QUESTIONS
from data.rows import Row
from eval.general_knowledge import prompt_of
from eval.harness.judging import LOWER_IS_BETTER, ROWS_FOLDER, all_metric_names, metric_names
from eval.rows import rows_to_score
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import write_bytes

PREFIX = "fedfinlora"
"""Begins the names of all tasks; alone it is the tag of them all."""
KNOWLEDGE = "general_knowledge"
PROCESSING_FILE = "processing.py"
PROCESSING = '''"""What the tasks of this folder do with rows and answers: fedfinlora's own reading and scoring."""

from pathlib import Path

import fedfinlora  # noqa: F401 - finds the project's packages
from eval.harness.judging import metric, process_results, rows_of


def rows(benchmark, **_):
    return rows_of(Path(__file__).parent, benchmark)


def process(doc, results):
    return process_results(doc, results)


'''


def is_of_tasks(folder: Path) -> bool:
    """Whether a folder was written by `write_tasks`: all of it may be written again."""
    processing = folder / PROCESSING_FILE
    return processing.is_file() and processing.read_text("utf-8", "replace").startswith(PROCESSING)


class WrittenTasks(NamedTuple):
    """What was written, and what could not be."""

    tasks: dict[str, int]
    """Task -> its rows."""
    skipped: dict[str, str]
    """Benchmark key -> why it has no task."""


def write_tasks(folder: Path, config: Config) -> WrittenTasks:
    """Write the tasks of evaluation.benchmarks with the test rows that an evaluation of `config` would ask.

    Raises ConfigError for evaluation.shots, UserError if there are no rows or the folder cannot be written.
    """
    if config.evaluation.shots:
        raise ConfigError("evaluation.shots is not for harness tasks: set it to 0 (lm_eval asks without examples).")
    asked = rows_to_score(config)
    if not asked.rows:
        raise UserError("No benchmark has rows: " + "; ".join(f"{key}: {why}" for key, why in asked.skipped.items()))
    tasks = {f"{PREFIX}_{key}": len(rows) for key, rows in asked.rows.items()}
    answer_space = config.dataset.answer_space and not config.dataset.chat_template
    for key, rows in asked.rows.items():
        lines = [_document(row, answer_space) for row in rows]
        content = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        write_bytes(folder / ROWS_FOLDER / f"{key}.jsonl", content.encode("utf-8", "surrogatepass"))
        write_bytes(folder / f"{PREFIX}_{key}.yaml", task_yaml(BENCHMARKS[key]).encode())
    if config.evaluation.general_knowledge:
        _write_general_knowledge(folder)
        tasks[f"{PREFIX}_{KNOWLEDGE}"] = len(QUESTIONS)
    metrics = "".join(f'{name} = metric("{name}")\n' for name in all_metric_names())
    write_bytes(folder / PROCESSING_FILE, (PROCESSING + metrics).encode())
    return WrittenTasks(tasks, dict(asked.skipped))


def task_yaml(benchmark: Benchmark) -> str:
    """The task of a benchmark: greedy answers of at most its budget, until the end-of-sequence token alone."""
    metrics = "".join(
        f"  - metric: {name}\n    aggregation: !function processing.{name}\n"
        f"    higher_is_better: {str(name not in LOWER_IS_BETTER).lower()}\n"
        for name in metric_names(benchmark)
    )
    return (
        f"# {benchmark.title}. Rows: {benchmark.source}; licence: {benchmark.licence}\n".replace("\n", " ").rstrip()
        + f"""
task: {PREFIX}_{benchmark.key}
tag: [{PREFIX}, {PREFIX}_{benchmark.group}]
custom_dataset: !function processing.rows
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: target
process_results: !function processing.process
num_fewshot: 0
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {benchmark.budget_tokens}
metric_list:
{metrics}metadata:
  version: 1.0
  benchmark: {benchmark.key}
"""
    )


def _write_general_knowledge(folder: Path) -> None:
    """The questions of the forgetting check as multiple choice by log-probability, which is how ours are scored."""
    lines = [
        {"prompt": prompt_of(question), "options": question.options, "answer": question.options.index(question.right)}
        for question in QUESTIONS
    ]
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_bytes(folder / ROWS_FOLDER / f"{KNOWLEDGE}.jsonl", content.encode())
    task = f"""# General knowledge outside finance: the forgetting check.
task: {PREFIX}_{KNOWLEDGE}
tag: [{PREFIX}]
custom_dataset: !function processing.rows
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: options
doc_to_target: answer
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
  benchmark: {KNOWLEDGE}
"""
    write_bytes(folder / f"{PREFIX}_{KNOWLEDGE}.yaml", task.encode())


def _document(row: Row, answer_space: bool) -> dict[str, object]:
    [prompt], [target] = cut_rows([row.prompt], [row.target], answer_space)
    return {
        "benchmark": row.task,
        "prompt": prompt,
        "target": target,
        "moved_space": prompt != row.prompt,
        "row": json.dumps(asdict(row), ensure_ascii=False, allow_nan=False),
    }
