"""What a bank should know of its rows before it trains on them: `python -m fedfinlora data check FOLDER`.

Reads the files that training and evaluation would read (`data.sources.layout.find`), and reports: rows and bad rows,
label counts, prompt lengths, prompts that occur twice, test prompts that also occur in the train files, each bank's
tasks, and everything in the folder that is not read. Nothing of a row's prompt is shown; labels and short answers are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.catalog import BENCHMARKS, merged_files
from data.check_text import SHOWN_BAD_ROWS, WIDTH, labels_of, render
from data.rows import BadRow, Row
from data.sample import FOLDER as SAMPLE_FOLDER
from data.sources.files import FileRows, SourceFile, read_file
from data.sources.layout import Refused, find
from data.sources.listing import NotRead, shown
from data.sources.names import SPLITS
from fedfinlora.config.dataset import ColumnsConfig
from fedfinlora.errors import UserError, choose

__all__ = ["SHOWN_BAD_ROWS", "WIDTH", "CheckReport", "FileReport", "PromptTokens", "check_folder", "render"]

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts -> the token ids of each, e.g. `lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]`."""

LeastTokens = Callable[[Row], int]
"""A row -> tokens that it has at least, where that alone shows that it does not fit the window; else 0."""

SHOWN_ANSWERS = 5
TOKENIZED_TOGETHER = 256


@dataclass(frozen=True)
class LongRow:
    """A row that does not fit the model's context window."""

    line: int
    """From 1, as editors count; of a Parquet table its row from 1."""
    tokens: int
    """Prompt and target with the tokens that begin and end them; of a test row, prompt and the answer's budget."""
    at_least: bool = False
    """The row was not tokenized: its number of characters shows that it has these tokens or more."""


@dataclass(frozen=True)
class PromptTokens:
    """Lengths of one file's prompts in tokens."""

    mean: float
    longest: int
    over_window: tuple[LongRow, ...] = ()
    """Rows that a run skips because they do not fit the model's context window; () where no window was given."""
    window: int = 0
    """The context window in tokens."""
    at_least: bool = False
    """A row was not tokenized, so mean and longest are no more than lower bounds."""


@dataclass(frozen=True)
class Lengths:
    """How long rows are for the model, as `data.encode` will have them."""

    prompts: Tokenize | None
    targets: Tokenize | None
    context_tokens: int
    """0 = no window is known."""
    least: LeastTokens | None = None

    def of(self, content: FileRows) -> PromptTokens | None:
        """The lengths of a file's prompts, and its rows that do not fit. A test row needs room for its answer's whole
        budget.
        """
        if not self.prompts or not self.targets or not content.rows:
            return None
        prompts: list[int] = []
        long: list[LongRow] = []
        for start in range(0, len(content.rows), TOKENIZED_TOGETHER):
            chunk = content.rows[start : start + TOKENIZED_TOGETHER]
            least = [self.least(row) if self.least and self.context_tokens else 0 for row in chunk]
            tokenized = [row for row, tokens in zip(chunk, least, strict=True) if not tokens]
            lengths = iter(list(map(len, self.prompts([row.prompt for row in tokenized]))) if tokenized else [])
            rooms = iter(self._rooms(tokenized, content.file.split) if tokenized and self.context_tokens else [])
            for line, tokens in zip(content.lines[start : start + TOKENIZED_TOGETHER], least, strict=True):
                prompts.append(tokens or next(lengths))
                needed = tokens or prompts[-1] + next(rooms, 0)
                if self.context_tokens and needed > self.context_tokens:
                    long.append(LongRow(line, needed, bool(tokens)))
        bounded = any(row.at_least for row in long)
        return PromptTokens(sum(prompts) / len(prompts), max(prompts), tuple(long), self.context_tokens, bounded)

    def _rooms(self, rows: Sequence[Row], split: str) -> list[int]:
        if split == "test" and all(row.task in BENCHMARKS for row in rows):
            return [BENCHMARKS[row.task].budget_tokens for row in rows]
        assert self.targets is not None
        return [len(ids) + 1 for ids in self.targets([row.target for row in rows])]


@dataclass(frozen=True)
class FileReport:
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
    folder: str = ""
    """The bank whose file it is, with dataset=jsonl."""
    task_rows: tuple[tuple[str, int], ...] = ()
    """Task and number of rows."""
    same_as: str = ""
    """An earlier file with the same bytes, where it has rows."""
    doubt: str = ""
    """What its name leaves open about its split."""


@dataclass(frozen=True)
class CheckReport:
    root: str
    files: tuple[FileReport, ...]
    not_read: tuple[NotRead, ...]
    """Everything else in the folder, with the reason."""
    has_tokens: bool
    source: str = "finlora"
    """How the folder was read: finlora, jsonl or sample."""
    refused: tuple[Refused, ...] = ()
    """Files that are not read, and keep a run from beginning."""
    passed_over: tuple[str, ...] = ()
    """Tasks that the folder has, and that neither dataset.tasks nor evaluation.benchmarks names."""
    missing: tuple[str, ...] = ()
    """Tasks of dataset.tasks that have no train file, each with the reason."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of what looks like rows and is not read."""
        return tuple(entry.name for entry in self.not_read if entry.looks_like_rows)

    @property
    def ok(self) -> bool:
        """There are rows, and no file and no line is bad. Duplicates, overlaps, long rows and files not read are
        warnings only.
        """
        return (
            any(file.rows for file in self.files) and not any(file.bad_rows for file in self.files) and not self.refused
        )


def check_folder(
    root: str | Path,
    source: str = "finlora",
    tokenizer: Tokenize | None = None,
    context_tokens: int = 0,
    columns: ColumnsConfig | None = None,
    answer_tokenizer: Tokenize | None = None,
    least_tokens: LeastTokens | None = None,
    wanted: Mapping[str, Sequence[str]] | None = None,
) -> CheckReport:
    """Read and judge every train and test file that `source` has below `root` (not used for the sample; with jsonl also
    a file).

    `context_tokens` is the model's context window; with it and a tokenizer, rows that do not fit are named.
    `answer_tokenizer` is that of the targets, where it is another one: a prompt may have a token that begins it.
    `least_tokens` saves tokenizing rows whose length in characters says enough. `wanted` names the tasks of each split
    to look at; () = all. A bad or unreadable file is part of the report. Raises UserError only where there is nothing
    to read.
    """
    choose(source, ("finlora", "jsonl", "sample"), "source to check")
    folder = SAMPLE_FOLDER if source == "sample" else Path(root).expanduser()
    if not folder.is_dir() and not (source == "jsonl" and folder.exists()):
        raise UserError(
            f"There is no folder {shown(str(folder))!r} to check (looked at {shown(str(folder.absolute()))})."
        )
    layout = "jsonl" if source == "jsonl" else "finlora"
    tasks = {split: (wanted or {}).get(split, ()) for split in SPLITS}
    found = [find(folder, layout, split, tasks[split], columns, thorough=True) for split in SPLITS]
    there = {
        task
        for split in SPLITS
        if tasks[split]
        for file in find(folder, layout, split).files
        for task in _tasks_of(file)
    }
    passed_over = there.difference(*tasks.values()) if any(tasks.values()) else set()
    missing = [f"{task}: {reason}" for task, reason in found[SPLITS.index("train")].missing.items() if tasks["train"]]
    doubts = {name: doubt for each in found for name, doubt in each.doubts.items()}
    in_train: set[bytes] = set()
    by_sha256: dict[str, str] = {}
    reports = []
    for file in (file for each in found for file in each.files):
        content = read_file(file)
        prompts = [_fingerprint(row.prompt) for row in content.rows]
        lengths = Lengths(tokenizer, answer_tokenizer or tokenizer, context_tokens, least_tokens)
        report = replace(_report(content, prompts, in_train, lengths), doubt=doubts.get(file.name, ""))
        same_as = by_sha256.setdefault(content.sha256, file.name) if content.rows else file.name
        reports.append(replace(report, same_as="" if same_as == file.name else same_as))
        if file.split == "train":
            in_train.update(prompts)
    refused = tuple(dict.fromkeys(files for each in found for files in each.refused))
    not_read = tuple(sorted({entry for each in found for entry in each.not_read}))
    where = shown(str(folder))
    return CheckReport(
        where,
        tuple(reports),
        not_read,
        tokenizer is not None,
        source,
        refused,
        tuple(sorted(passed_over)),
        tuple(missing),
    )


def _tasks_of(file: SourceFile) -> tuple[str, ...]:
    """The tasks that a file's name promises; () where its rows say their own."""
    return (file.task,) if file.task else merged_files().get(file.merged, ())


def _report(content: FileRows, prompts: Sequence[bytes], in_train: set[bytes], lengths: Lengths) -> FileReport:
    rows = content.rows
    tasks = tuple(dict.fromkeys(row.task for row in rows)) or tuple(task for task in (content.file.task,) if task)
    return FileReport(
        name=content.file.name,
        split=content.file.split,
        tasks=tasks,
        rows=len(rows),
        bad_rows=content.bad_rows,
        answers=_answers(rows),
        strange_labels=sum(bool(labels := labels_of(row.task)) and row.target not in labels for row in rows),
        tokens=lengths.of(content),
        duplicates=len(prompts) - len(set(prompts)),
        in_train=sum(prompt in in_train for prompt in prompts) if content.file.split == "test" else 0,
        folder=content.file.folder,
        task_rows=tuple(Counter(row.task for row in rows).items()),
    )


def _answers(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    """Counts of every label where all rows have closed labels, else of the most frequent answers."""
    counts = Counter(row.target for row in rows)
    labels = list(dict.fromkeys(label for task in dict.fromkeys(row.task for row in rows) for label in labels_of(task)))
    if labels and all(labels_of(row.task) for row in rows):
        return tuple((label, counts[label]) for label in labels)
    return tuple(counts.most_common(SHOWN_ANSWERS))


def _fingerprint(prompt: str) -> bytes:
    """16 bytes in the place of a prompt, so that 100,000 long ones fit in memory."""
    return hashlib.sha256(prompt.encode()).digest()[:16]
