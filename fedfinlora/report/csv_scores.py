"""Every score in long form, as CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from fedfinlora.report.content import Content
from fedfinlora.report.formats import number
from fedfinlora.report.score import COUNTS, Source, raw_value
from fedfinlora.report.systems import System
from fedfinlora.run.evaluation import BenchmarkMetrics, Evaluation, GroupMean

CSV_HEAD = ("run", "system", "benchmark", "metric", "value", "low", "high", "n")


def scores_csv(content: Content) -> str:
    """Every figure of every evaluation, one a line, as fractions; `low` and `high` are its 95 % interval.

    Banks that trained alone are listed one by one. Published figures are run "published".
    """
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(CSV_HEAD)
    order = {item.key: index for index, item in enumerate(content.catalogue)}
    for source, system in _sources(content.systems):
        place = (_cell(source.run.name), _cell(system.heading))
        scores = source.run.scores.get(source.label, {})
        for key in sorted(scores, key=lambda key: (order.get(key, len(order)), key)):
            lines.writerows([*place, _cell(key), *figure] for figure in _figures(scores[key]))
        evaluation = source.run.evaluations.get(source.label, Evaluation())
        for group, means in evaluation.groups.items():
            lines.writerows([*place, _cell(f"group:{group}"), *figure] for figure in _means(means))
    for item in content.catalogue:
        for column, (accuracy, f1) in item.published.items():
            figures = (
                {"bertscore_f1": f1} if accuracy is None else {"finlora_accuracy": accuracy / 100, "finlora_f1": f1}
            )
            lines.writerows(
                ["published", column, item.key, name, f"{value:.6g}", "", "", ""]
                for name, value in figures.items()
                if value is not None
            )
    return written.getvalue()


Cells = tuple[str, str, str, str, str]
"""(metric, value, low, high, n)."""


def _figures(metrics: BenchmarkMetrics) -> Iterator[Cells]:
    for name in (*COUNTS, *metrics.estimates):
        value = raw_value(name, metrics)
        if value is not None:
            n = metrics.rows if name == "row_accuracy" else metrics.n
            low, high = metrics.bounds(name)
            yield _cell(name), _plain(value), _plain(low), _plain(high), _plain(n)


def _means(means: GroupMean) -> Iterator[Cells]:
    for name, value, interval in (
        ("score", means.score, means.score_ci95),
        ("finlora_score", means.finlora_score, means.finlora_score_ci95),
    ):
        if value is not None:
            low, high = interval or (None, None)
            yield name, _plain(value), _plain(low), _plain(high), ""


def _sources(systems: Sequence[System]) -> list[tuple[Source, System]]:
    """Each evaluation once, with the system that it belongs to."""
    found: dict[tuple[int, int, str], tuple[Source, System]] = {}
    for system in systems:
        for source in (source for score in system.scores.values() for source in score.sources):
            found.setdefault((id(system), id(source.run), source.label), (source, system))
    return list(found.values())


def _plain(value: Any) -> str:
    known = number(value)
    return "" if known is None else repr(int(known)) if known.is_integer() and abs(known) < 1e15 else repr(known)


def _cell(words: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words
