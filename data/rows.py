"""The one row type that flows from every source through partitioning, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its right answer."""

    id: str
    """Stable name inside its data set, e.g. `fpb/test/000017` (task / split / line number from 0)."""
    task: str
    """Benchmark key, e.g. `fpb`."""
    prompt: str
    """The whole prompt, FinLoRA's `context`: ends in "Answer:", "Answer: " or "Output US GAAP tags:"."""
    target: str
    """The right answer as text."""
    issuer: str = ""
    """The filer that an XBRL row speaks of, or a bank's own grouping key; empty where there is none."""
    path: str = ""
    """The folder that the row came from, for the by_path partitioner."""
    reference: str = ""
    """What answers are judged by where the target alone does not say it: the words of a text and their entity tags
    (`data.sources.flare.reference_of`).
    """


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not a usable row."""

    file: str
    line: int
    """From 1, as editors count."""
    reason: str
    """What is wrong, without any of the row's own text."""
