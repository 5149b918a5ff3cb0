"""Paired differences: two systems on the same rows, whose difference is known better than the intervals of the two suggest.

The arithmetic is the caller's (`Compare`), because it needs the benchmarks' own rules; here pairs are chosen and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.report.markup import DASH, number, points, scroll_box, text
from fedfinlora.report.reading import mapping
from fedfinlora.report.scores import BenchmarkInfo, Bounds, Source, System, base_of, by_group
from fedfinlora.report.table import group_heading, row_heading

Compare = Callable[[Path, str, Path, str], Mapping[str, Any]]
"""(run, label, other run, its label) -> {"benchmarks": {key: {"rows", "figures": {name: {"difference", "difference_ci95",
"mcnemar_p"}}}}, "overall": {"score_difference", "score_difference_ci95"}}, other minus one, as fractions. UserError where the two
have no rows in common."""

HEADLINES = ("accuracy", "bertscore_f1", "labels_accuracy")
"""The figure compared: the first of these that both have."""
MOST_PAIRS = 8


@dataclass(frozen=True)
class Difference:
    """What `other` gains over `one`; fractions."""

    value: float
    limits: Bounds
    p: float | None = None
    """McNemar's exact p-value; None where it does not apply."""
    figure: str = ""

    @property
    def settled(self) -> bool:
        """Whether the 95 % interval leaves 0 out."""
        low, high = self.limits
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True)
class Pair:
    """Two systems on the rows that both answered."""

    title: str
    differences: Mapping[str, Difference]
    """Benchmark key -> difference."""
    overall: Difference | None


def paired(systems: Sequence[System], compare: Compare | None) -> list[Pair]:
    """Each adapter against its base, and federated against centralized, where they have rows in common."""
    found = []
    for one, other in _pairs(systems)[:MOST_PAIRS]:
        first, second = _source(one), _source(other)
        if compare is None or first is None or second is None:
            continue
        try:
            result = compare(first.run.folder, first.label, second.run.folder, second.label)
        except UserError:
            continue  # no rows in common: there is nothing to pair, and the score table says what each was scored on
        differences = {
            str(key): difference
            for key, values in mapping(result.get("benchmarks")).items()
            if (difference := _headline(mapping(mapping(values).get("figures")))) is not None
        }
        overall = _difference(mapping(result.get("overall")), "score_difference", "")
        if differences:
            found.append(Pair(f"{other.heading} − {one.heading}", differences, overall))
    return found


def _pairs(systems: Sequence[System]) -> list[tuple[System, System]]:
    pairs = [(base, system) for system in systems if system.kind != "base" and (base := base_of(system, systems)) is not None]
    by_kind: dict[str, System] = {}
    for system in systems:
        by_kind.setdefault(system.kind, system)
    if "federated" in by_kind and "centralized" in by_kind:
        pairs.append((by_kind["centralized"], by_kind["federated"]))
    return pairs


def _source(system: System) -> Source | None:
    """The one evaluation behind a system; None for the mean of several banks, which has no rows of its own."""
    scores = [score for score in system.scores.values() if len(score.parts) == 1]
    return scores[0].parts[0][0] if len(scores) == len(system.scores) and scores else None


def _headline(figures: Mapping[str, Any]) -> Difference | None:
    for name in HEADLINES:
        values = mapping(figures.get(name))
        difference = _difference(values, "difference", name)
        if difference is not None:
            return difference
    return None


def _difference(values: Mapping[str, Any], name: str, figure: str) -> Difference | None:
    value = number(values.get(name))
    low, high = values.get(f"{name}_ci95") or (None, None)
    return None if value is None else Difference(value, (low, high), number(values.get("mcnemar_p")), figure)


def comparison_section(pairs: Sequence[Pair], catalogue: Sequence[BenchmarkInfo]) -> str:
    """A table of benchmarks by pairs; "" without a pair."""
    if not pairs:
        return ""
    head = "".join(f'<th scope="col" class="number start">{text(pair.title)}</th>' for pair in pairs)
    bodies = []
    for title, benchmarks in by_group(catalogue).items():
        rows = [_row(pairs, benchmark) for benchmark in benchmarks if any(benchmark.key in pair.differences for pair in pairs)]
        if rows:
            bodies.append(f"<tbody>{group_heading(title, 1 + len(pairs))}{''.join(rows)}</tbody>")
    means = "".join(_cell(pair.overall) for pair in pairs)
    mean = f'<tbody class="overall"><tr class="mean"><th scope="row">Mean</th>{means}</tr></tbody>'
    table = f'<table class="scores narrow"><thead><tr><th scope="col">Benchmark</th>{head}</tr></thead>{"".join(bodies)}{mean}</table>'
    notes = [
        "Differences in percentage points (BERTScore F1 × 100 in italics) on the rows that both systems answered, with the 95 % interval "
        "of a paired bootstrap: rows that are hard for one system are hard for the other, so it is narrower than the two systems’ own "
        "intervals suggest.",
        "<strong>Bold</strong> where the interval leaves 0 out. <b>p</b> is McNemar’s exact test on rows that are right or wrong. With "
        "many benchmarks, one in twenty looks settled by chance.",
    ]
    listed = "".join(f"<li>{note}</li>" for note in notes)
    box = scroll_box("Paired differences by benchmark", table)
    return f'<section id="paired"><h2>Paired differences</h2>{box}<ul class="notes">{listed}</ul></section>'


def _row(pairs: Sequence[Pair], benchmark: BenchmarkInfo) -> str:
    return f"<tr>{row_heading(benchmark)}{''.join(_cell(pair.differences.get(benchmark.key)) for pair in pairs)}</tr>"


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return f'<td class="number start">{DASH}</td>'
    figure = points(difference.value)
    if difference.figure == "bertscore_f1":
        figure = f"<i>{figure}</i>"
    css_class = ""
    if difference.settled:
        figure = f"<strong>{figure} <span aria-hidden=true>{'▲' if difference.value > 0 else '▼'}</span></strong>"
        css_class = " gain" if difference.value > 0 else " loss"
    low, high = difference.limits
    below = [f"{points(low)} to {points(high)}"] if low is not None and high is not None else []
    if difference.p is not None:
        below.append("p &lt; 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}")
    return f'<td class="number start{css_class}">{figure}{"".join(f"<small>{line}</small>" for line in below)}</td>'
