"""The text of `data check`: a line for each file, what is wrong with it, each bank's tasks, what was not read, and the
verdict.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from data.catalog import BENCHMARKS
from data.sources.load import describe, refusal
from fedfinlora.errors import plural

if TYPE_CHECKING:
    from data.check import CheckReport, FileReport

WIDTH = 120
"""Columns of the report."""
ALL_ROWS = "show=all"
"""The word on the command line of `data check` that lists every bad and every long row."""
SHOWN_BAD_ROWS = 5
SHOWN_LONG_ROWS = 5
SHOWN_NAMES = 30
"""Of files that are not read for one and the same reason."""
ANSWER_WIDTH = 24
MOST_TASK_WIDTH = 30
GAP = "  "


def render(report: CheckReport, all_rows: bool = False) -> str:
    """The report as plain text of at most 120 columns, with the first bad and long rows of each file or with all of
    them.
    """
    lines = [
        f"{report.root}: {plural(len(report.files), 'file')}, "
        f"{plural(sum(file.rows for file in report.files), 'row')}, read as dataset={report.source}",
        "",
    ]
    if report.files:
        lines += _table(report)
    if not report.has_tokens:
        lines += ["", "Prompt tokens are not shown: no tokenizer was given."]
    for file in report.files:
        lines += _findings(file, all_rows)
    lines += _banks(report)
    lines += ["", *(f"warning: {task}" for task in report.missing)] if report.missing else []
    if report.passed_over:
        lines += [
            "",
            f"Not looked at, as dataset.tasks and evaluation.benchmarks leave it out: {', '.join(report.passed_over)}.",
        ]
    lines += _not_read(report)
    bad = sum(len(file.bad_rows) for file in report.files) + len(report.refused)
    ignored = (
        f" {plural(len(report.ignored), 'file or folder', 'files or folders')} not read, named above."
        if report.ignored
        else ""
    )
    if report.ok:
        verdict = f"Every line is a usable row.{ignored}"
    elif report.refused:
        verdict = f"{plural(bad, 'fault')} to put right: no run begins before the files under Refused are.{ignored}"
    elif bad:
        verdict = (
            f"{plural(bad, 'fault')} to put right (a run skips such rows, or ends there with "
            f"dataset.on_bad_row=stop).{ignored}"
        )
    else:
        verdict = f"No rows: expected files such as train/fpb_train.jsonl and test/fpb_test.jsonl.{ignored}"
    return "\n".join(_wrap(line) for line in [*lines, "", verdict])


def _banks(report: CheckReport) -> list[str]:
    """With a folder a bank: the tasks and rows that each of them would train on, and the test rows, which are no
    bank's.
    """
    folders = sorted({file.folder for file in report.files if file.split == "train"})
    if report.source != "jsonl" or not any(folders):
        return []
    files_of = {
        folder: [file for file in report.files if file.folder == folder and file.split == "train"] for folder in folders
    }
    banks = [folder for folder in folders if any(file.rows for file in files_of[folder])]
    how = f" (dataset=jsonl partition=by_path banks={len(banks)})" if banks else ""
    lines = ["", f"Banks, a folder each{how}:"]
    lines += [f"  {folder or '(no folder)'}: {_tasks_of(files_of[folder])}" for folder in banks]
    for folder in folders:
        if folder not in banks:
            bad = sum(len(file.bad_rows) for file in files_of[folder])
            lines.append(f"  no bank: {folder or '(no folder)'}: no usable row ({bad:,} bad); a run passes over it")
        elif all(file.tokens and len(file.tokens.over_window) == file.rows for file in files_of[folder] if file.rows):
            lines.append(
                f"  warning: {folder or '(no folder)'}: no row fits the context window; a bank with these rows alone "
                "fails"
            )
    tests = [file for file in report.files if file.split == "test"]
    return [*lines, f"Test rows, for the evaluation alone: {_tasks_of(tests)}" if tests else "No test rows."]


def _tasks_of(files: list[FileReport]) -> str:
    counts: dict[str, int] = {}
    for file in files:
        for task, rows in file.task_rows:
            counts[task] = counts.get(task, 0) + rows
    words = ", ".join(f"{task} {rows:,}" for task, rows in sorted(counts.items())) or "no rows"
    bad = sum(len(file.bad_rows) for file in files)
    return words + (f" ({bad:,} bad)" if bad else "")


def _not_read(report: CheckReport) -> list[str]:
    """Everything in the folder that gave no rows, by reason; what may be rows all the same comes first."""
    lines = ["", "Refused", *(f"  bad: {refusal(files)}." for files in report.refused)] if report.refused else []
    reasons: dict[str, list[str]] = {}
    for entry in sorted(report.not_read, key=lambda entry: not entry.looks_like_rows):
        reasons.setdefault(entry.reason, []).append(entry.name)
    if not reasons:
        return lines
    lines += ["", f"Not read: {len(report.not_read):,}"]
    for reason, names in reasons.items():
        more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        lines.append(f"  {', '.join(names[:SHOWN_NAMES])}{more}: {reason}")
    return lines


def labels_of(task: str) -> tuple[str, ...]:
    """The closed set of a task's targets; () where there is none."""
    return BENCHMARKS[task].labels if task in BENCHMARKS else ()


def _table(report: CheckReport) -> list[str]:
    """A line for each file; with a tokenizer also the mean and the longest prompt in tokens."""
    heads = ["file", "task", "rows", "bad", "twice", "in train"] + (["tokens", "longest"] if report.has_tokens else [])
    cells = [heads]
    for file in report.files:
        in_train = f"{file.in_train}" if file.split == "test" else ""
        line = [file.name, _tasks(file), f"{file.rows}", f"{len(file.bad_rows)}", f"{file.duplicates}", in_train]
        if report.has_tokens:
            least = "≥" if file.tokens and file.tokens.at_least else ""
            line += [f"{least}{file.tokens.mean:.0f}", f"{least}{file.tokens.longest}"] if file.tokens else ["", ""]
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    widths[1] = min(widths[1], MOST_TASK_WIDTH)
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - len(GAP) * (len(heads) - 1))
    lines = []
    for line in cells:
        words = [f"{_clip(cell, width):<{width}}" for cell, width in zip(line[:2], widths[:2], strict=True)]
        numbers = [f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True)]
        lines.append(GAP.join([*words, *numbers]).rstrip())
    return lines


def _tasks(file: FileReport) -> str:
    return file.tasks[0] if len(file.tasks) == 1 else f"{len(file.tasks)} tasks" if file.tasks else "?"


def _findings(file: FileReport, all_rows: bool) -> list[str]:
    lines = ["", file.name]
    if file.doubt:
        lines.append(f"  warning: {file.doubt}")
    if file.answers:
        kind = "labels" if all(labels_of(task) for task in file.tasks) else "most frequent answers"
        listed = ", ".join(f"{_clip(' '.join(answer.split()), ANSWER_WIDTH)} {count}" for answer, count in file.answers)
        lines.append(f"  {kind}: {listed}")
    if file.strange_labels:
        lines.append(f"  warning: {plural(file.strange_labels, 'target')} outside the label set")
    if file.in_train:
        lines.append(f"  warning: {plural(file.in_train, 'prompt')} also in the train files; scores on them flatter")
    if file.same_as:
        lines.append(f"  warning: the same bytes as {file.same_as}: these rows are there twice")
    if file.tokens and file.tokens.over_window:
        lines += _long(file, all_rows)
    bad_rows = file.bad_rows if all_rows else file.bad_rows[:SHOWN_BAD_ROWS]
    lines += [f"  bad: {describe(bad)}" for bad in bad_rows]
    if len(file.bad_rows) > len(bad_rows):
        lines.append(
            f"  bad: and {len(file.bad_rows) - len(bad_rows):,} more; {ALL_ROWS} behind the folder lists them all"
        )
    return lines if len(lines) > 2 else []


def _long(file: FileReport, all_rows: bool) -> list[str]:
    """The rows that a run skips for their length, by line, and what to do."""
    assert file.tokens is not None
    long, window = file.tokens.over_window, file.tokens.window
    shown = long if all_rows else long[:SHOWN_LONG_ROWS]
    listed = ", ".join(f"line {row.line:,} ({'at least ' if row.at_least else ''}{row.tokens:,})" for row in shown)
    more = f" and {len(long) - len(shown):,} more" if len(long) > len(shown) else ""
    what = "longer with the answer's budget" if file.split == "test" else "longer"
    unused = "not scored" if file.split == "test" else "skipped by a run"
    return [
        f"  warning: {plural(len(long), 'row')} {what} than the model's context window of {window:,} tokens, and "
        f"{unused}: {listed}{more}. Shorten them, or raise model.context_tokens where the model has more positions"
    ]


def _wrap(line: str) -> str:
    """A line over WIDTH continues in the next one, indented by four blanks."""
    return line if len(line) <= WIDTH else textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
