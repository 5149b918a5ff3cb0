"""What a bank should know of its rows before it trains on them: `python -m fedfinlora data check FOLDER`.

Reads every file of a folder and reports, without changing anything: rows and bad rows, label counts, prompt lengths, prompts that
occur twice, and test prompts that also occur in the train files. Nothing of a row's prompt is shown; labels and short answers are.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.catalog import BENCHMARKS
from data.rows import BadRow, Row
from data.sample import FOLDER as SAMPLE_FOLDER
from data.sources.files import FileRows, read_file
from data.sources.layout import SPLITS, bank_files, finlora_files, walk
from data.sources.load import describe
from fedfinlora.errors import UserError, choose

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts -> the token ids of each, e.g. `lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]`."""

WIDTH = 120
"""Columns of the report."""
SHOWN_BAD_ROWS = 5
SHOWN_ANSWERS = 5
ANSWER_WIDTH = 24
MOST_TASK_WIDTH = 30
GAP = "  "
TOKENIZED_TOGETHER = 256


@dataclass(frozen=True)
class PromptTokens:
    """Lengths of one file's prompts in tokens."""

    mean: float
    longest: int
    over_window: int | None
    """Rows whose prompt and target together do not fit the model's context window; None where no window was given."""


@dataclass(frozen=True)
class FileReport:
    """One file."""

    name: str
    split: str
    tasks: tuple[str, ...]
    rows: int
    bad_rows: tuple[BadRow, ...]
    answers: tuple[tuple[str, int], ...]
    """Answer and count: all labels of a closed set in its order, else the most frequent answers."""
    strange_labels: int
    """Rows of a closed-label task whose target is none of its labels."""
    tokens: PromptTokens | None
    """None without a tokenizer, or without rows."""
    duplicates: int
    """Rows whose prompt an earlier row of the file has too."""
    in_train: int
    """Test rows whose prompt is also in a train file."""


@dataclass(frozen=True)
class CheckReport:
    """A folder."""

    root: str
    files: tuple[FileReport, ...]
    ignored: tuple[str, ...]
    """JSON-lines files whose names mean nothing in FinLoRA's layout."""
    has_tokens: bool

    @property
    def ok(self) -> bool:
        """There are rows, and no file and no line is bad. Duplicates, overlaps and long rows are warnings only."""
        return any(file.rows for file in self.files) and not any(file.bad_rows for file in self.files)


def check_folder(
    root: str | Path, source: str = "finlora", tokenizer: Tokenize | None = None, context_tokens: int = 0
) -> CheckReport:
    """Read and judge every train and test file below `root` (not used for the sample).

    `context_tokens` is the model's context window; with it and a tokenizer, rows that do not fit are counted. A bad or unreadable
    file is part of the report. Raises UserError only where there is no folder to read.
    """
    choose(source, ("finlora", "jsonl", "sample"), "source to check")
    folder = SAMPLE_FOLDER if source == "sample" else Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r} to check (looked at {folder.absolute()}).")
    files = [
        file
        for split in SPLITS
        for file in (bank_files(folder, split) if source == "jsonl" else finlora_files(folder, split)[0])
    ]
    in_train: set[bytes] = set()
    reports = []
    for file in files:
        content = read_file(file)
        prompts = [_fingerprint(row.prompt) for row in content.rows]
        reports.append(_report(content, prompts, in_train, tokenizer, context_tokens))
        if file.split == "train":
            in_train.update(prompts)
    read = {file.name for file in files}
    ignored = sorted(name for path in walk(folder) if (name := path.relative_to(folder).as_posix()) not in read)
    return CheckReport(str(folder), tuple(reports), tuple(ignored), tokenizer is not None)


def render(report: CheckReport) -> str:
    """The report as plain text of at most 120 columns: a line for each file, then what is wrong, then the verdict."""
    lines = [
        f"{report.root}: {_count(len(report.files), 'file')}, {_count(sum(file.rows for file in report.files), 'row')}",
        "",
    ]
    if report.files:
        lines += _table(report)
    if not report.has_tokens:
        lines += ["", "Prompt tokens are not shown: no tokenizer was given."]
    for file in report.files:
        lines += _findings(file)
    if report.ignored:
        lines += [
            "",
            "Not read (of no benchmark's name, or a merged file beside the split ones):",
            *(f"  {name}" for name in report.ignored),
        ]
    bad = sum(len(file.bad_rows) for file in report.files)
    if report.ok:
        verdict = "Every line is a usable row."
    elif bad:
        verdict = f"{_count(bad, 'fault')} to put right (a run skips such rows, or ends there with dataset.on_bad_row=stop)."
    else:
        verdict = "No rows: expected files such as train/fpb_train.jsonl and test/fpb_test.jsonl."
    return "\n".join(_wrap(line) for line in [*lines, "", verdict])


def _report(
    content: FileRows, prompts: Sequence[bytes], in_train: set[bytes], tokenizer: Tokenize | None, context_tokens: int
) -> FileReport:
    rows = content.rows
    tasks = tuple(dict.fromkeys(row.task for row in rows)) or tuple(task for task in (content.file.task,) if task)
    return FileReport(
        name=content.file.name,
        split=content.file.split,
        tasks=tasks,
        rows=len(rows),
        bad_rows=content.bad_rows,
        answers=_answers(rows),
        strange_labels=sum(bool(labels := _labels(row.task)) and row.target not in labels for row in rows),
        tokens=_tokens(rows, tokenizer, context_tokens) if tokenizer and rows else None,
        duplicates=len(prompts) - len(set(prompts)),
        in_train=sum(prompt in in_train for prompt in prompts) if content.file.split == "test" else 0,
    )


def _labels(task: str) -> tuple[str, ...]:
    return BENCHMARKS[task].labels if task in BENCHMARKS else ()


def _answers(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    """Counts of every label where all rows have closed labels, else of the most frequent answers."""
    counts = Counter(row.target for row in rows)
    labels = list(dict.fromkeys(label for task in dict.fromkeys(row.task for row in rows) for label in _labels(task)))
    if labels and all(_labels(row.task) for row in rows):
        return tuple((label, counts[label]) for label in labels)
    return tuple(counts.most_common(SHOWN_ANSWERS))


def _tokens(rows: Sequence[Row], tokenizer: Tokenize, context_tokens: int) -> PromptTokens:
    """Lengths as `data.encode` will have them, but for the one or two tokens that begin and end a text."""
    prompts: list[int] = []
    targets: list[int] = []
    for start in range(0, len(rows), TOKENIZED_TOGETHER):
        chunk = rows[start : start + TOKENIZED_TOGETHER]
        prompts += map(len, tokenizer([row.prompt for row in chunk]))
        if context_tokens:
            targets += map(len, tokenizer([row.target for row in chunk]))
    over = (
        sum(prompt + target + 1 > context_tokens for prompt, target in zip(prompts, targets, strict=True))
        if context_tokens
        else None
    )
    return PromptTokens(sum(prompts) / len(prompts), max(prompts), over)


def _fingerprint(prompt: str) -> bytes:
    """16 bytes in the place of a prompt, so that 100,000 long ones fit in memory."""
    return hashlib.sha256(prompt.encode()).digest()[:16]


# Text


def _table(report: CheckReport) -> list[str]:
    """A line for each file; with a tokenizer also the mean and the longest prompt in tokens."""
    heads = ["file", "task", "rows", "bad", "twice", "in train"] + (["tokens", "longest"] if report.has_tokens else [])
    cells = [heads]
    for file in report.files:
        in_train = f"{file.in_train}" if file.split == "test" else ""
        line = [file.name, _tasks(file), f"{file.rows}", f"{len(file.bad_rows)}", f"{file.duplicates}", in_train]
        if report.has_tokens:
            line += [f"{file.tokens.mean:.0f}", f"{file.tokens.longest}"] if file.tokens else ["", ""]
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


def _findings(file: FileReport) -> list[str]:
    """Answers, warnings and the first bad rows of one file."""
    lines = ["", file.name]
    if file.answers:
        kind = "labels" if all(_labels(task) for task in file.tasks) else "most frequent answers"
        listed = ", ".join(f"{_clip(' '.join(answer.split()), ANSWER_WIDTH)} {count}" for answer, count in file.answers)
        lines.append(f"  {kind}: {listed}")
    if file.strange_labels:
        lines.append(f"  warning: {_count(file.strange_labels, 'target')} outside the label set")
    if file.in_train:
        lines.append(f"  warning: {_count(file.in_train, 'prompt')} also in the train files; scores on them flatter")
    if file.tokens and file.tokens.over_window:
        lines.append(f"  warning: {_count(file.tokens.over_window, 'row')} longer than the model's context window")
    lines += [f"  bad: {describe(bad)}" for bad in file.bad_rows[:SHOWN_BAD_ROWS]]
    if len(file.bad_rows) > SHOWN_BAD_ROWS:
        lines.append(f"  bad: and {len(file.bad_rows) - SHOWN_BAD_ROWS} more")
    return lines if len(lines) > 2 else []


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _wrap(line: str) -> str:
    """A line over WIDTH goes on in the next one, four blanks in."""
    return line if len(line) <= WIDTH else textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
