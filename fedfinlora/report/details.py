"""What lies behind one row of the score table, system by system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fedfinlora.report.benchmarks import BenchmarkInfo
from fedfinlora.report.confusion import MatrixCell, confusion_chart, confusion_of, edge, matrix_rows, summed, trimmed
from fedfinlora.report.content import Content
from fedfinlora.report.drawing import Chart
from fedfinlora.report.examples import Kind, choose_examples
from fedfinlora.report.figures import FAMILIES, FIGURES, interval_of, shown
from fedfinlora.report.formats import DASH, file_name, plural
from fedfinlora.report.score import Score, mean
from fedfinlora.report.systems import System
from fedfinlora.run.evaluation import ClassRow

MOST_CLASSES = 15
"""Rows of the class table; the rest are counted below it."""


class ClassMeans(NamedTuple):
    """One class, the mean over banks where there are several."""

    support: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


class Matrix(NamedTuple):
    title: str
    columns: Sequence[tuple[str, str]]
    """(answer, its class)."""
    rows: Sequence[tuple[str, Sequence[MatrixCell], int]]
    """(true class, its cells, its rows)."""
    chart: Chart


@dataclass(frozen=True)
class Scored:
    """One system that was scored on the benchmark."""

    system: System
    score: Score

    @cached_property
    def classes(self) -> dict[str, ClassMeans]:
        """Class -> its figures."""
        gathered: dict[str, list[ClassRow]] = {}
        for metrics in self.score.metrics:
            for row in metrics.classes or ():
                gathered.setdefault(row.label, []).append(row)
        names = ClassMeans._fields
        return {
            label: ClassMeans(*(mean(getattr(row, name) for row in rows) for name in names))
            for label, rows in gathered.items()
        }

    def class_of(self, label: str) -> ClassMeans:
        return self.classes.get(label, ClassMeans())


@dataclass(frozen=True)
class Details:
    """One benchmark that was scored."""

    benchmark: BenchmarkInfo
    scored: Sequence[Scored]

    @property
    def summary(self) -> str:
        """The number of rows and the best score."""
        rows = plural(max(item.score.n for item in self.scored), "row")
        known = [item for item in self.scored if item.score.value is not None]
        if not known:
            return rows
        best = max(known, key=lambda item: item.score.value or 0.0)
        sign = "" if best.score.bertscore else " %"
        return f"{rows}, best {best.score.shown(best.score.value)}{sign} ({best.system.heading})"

    @property
    def families(self) -> list[tuple[str, list[tuple[str, list[tuple[str, str]]]]]]:
        """(family, [(figure, [(value, interval) of each system])]) of every figure that a system has."""
        found: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {}
        for figure in FIGURES:
            values = [item.score.value_of(figure.key) for item in self.scored]
            if any(value is not None for value in values):
                cells = [
                    (DASH, "") if value is None else (shown(figure, value), interval_of(figure, item.score))
                    for value, item in zip(values, self.scored, strict=True)
                ]
                found.setdefault(figure.family, []).append((figure.title, cells))
        return [(title, found[family]) for family, title in FAMILIES.items() if family in found]

    @property
    def tolerance(self) -> float | None:
        """The relative error up to which numbers are right."""
        return min(
            (known for item in self.scored for metrics in item.score.metrics if (known := metrics.relative_tolerance)),
            default=None,
        )

    @property
    def with_classes(self) -> list[Scored]:
        return [item for item in self.scored if item.classes]

    @cached_property
    def support(self) -> dict[str, float]:
        """Class -> its rows."""
        found: dict[str, float] = {}
        for item in self.with_classes:
            for label, means in item.classes.items():
                found[label] = max(found.get(label, 0.0), means.support or 0.0)
        return found

    @property
    def frequent_classes(self) -> list[str]:
        """The MOST_CLASSES classes with the most rows, in the order of the labels."""
        kept = set(sorted(self.support, key=lambda label: -self.support[label])[:MOST_CLASSES])
        return [label for label in self.support if label in kept]

    @property
    def matrices(self) -> list[Matrix]:
        """The confusion matrix of each system that has one."""
        found = []
        for item in self.scored:
            whole = summed([confusion_of(metrics) for metrics in item.score.metrics])
            if whole is not None:
                heading, small = item.system.heading, trimmed(whole)
                banks = f", sum of {len(item.score.metrics)} banks" if item.score.of_banks else ""
                name = file_name(f"confusion-{self.benchmark.key}-{heading}")
                columns = [(answer, edge(small, column)) for column, answer in enumerate(small.answers)]
                chart = confusion_chart(small, name, f"{self.benchmark.title}, {heading}")
                found.append(Matrix(heading + banks, columns, matrix_rows(small), chart))
        return found

    @property
    def examples(self) -> list[tuple[str, str, list[Kind]]]:
        """(system, summary, examples) of each system; of several banks, the first's."""
        found = []
        for item in self.scored:
            for source in item.score.sources[:1]:
                kinds = choose_examples(source.records(self.benchmark.key))
                of = f" ({source.run.name})" if item.score.of_banks else ""
                summary = ", ".join(f"{len(kind.rows)} {kind.name.lower()}" for kind in kinds)
                if kinds:
                    found.append((item.system.heading + of, summary, kinds))
        return found


def details_of(benchmark: BenchmarkInfo, systems: Sequence[System]) -> Details:
    return Details(
        benchmark, [Scored(one, one.scores[benchmark.key]) for one in systems if benchmark.key in one.scores]
    )


def details_by_group(content: Content) -> list[tuple[str, list[Details]]]:
    """The benchmarks that were scored, by group."""
    grouped = [
        (title, [details_of(item, content.systems) for item in items]) for title, items in content.groups.items()
    ]
    scored = [(title, [details for details in found if details.scored]) for title, found in grouped]
    return [(title, found) for title, found in scored if found]
