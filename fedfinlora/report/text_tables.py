"""The score table for papers and issues: Markdown, and LaTeX (booktabs)."""

from __future__ import annotations

import re

from fedfinlora.report.benchmarks import BenchmarkInfo
from fedfinlora.report.content import Content
from fedfinlora.report.formats import DASH, fraction, interval, percent
from fedfinlora.report.means import accuracy_row
from fedfinlora.report.score import Score
from fedfinlora.report.scores import common_accuracy_keys
from fedfinlora.report.verdict import is_synthetic

SYNTHETIC = "Scores of the bundled synthetic sample: no measure of quality."


Row = tuple[BenchmarkInfo, str, list[str]]
"""(benchmark, number of answers, cells)."""


def _headings(content: Content) -> list[str]:
    """The systems' own columns, then those of label scoring, which are another task."""
    labels = [f"{system.heading}, most probable label" for system in content.label_systems]
    return [*(system.heading for system in content.systems), *labels]


def _groups(content: Content) -> dict[str, list[Row]]:
    found = {}
    for title, benchmarks in content.groups.items():
        rows = []
        for item in benchmarks:
            cells = [_figure(system.scores.get(item.key)) for system in content.systems]
            cells += [_figure(system.scores.get(item.key), "labels_accuracy") for system in content.label_systems]
            rows.append((item, DASH.join(map(str, content.ns(item.key))), cells))
        found[title] = [row for row in rows if row[1]]
    return {title: rows for title, rows in found.items() if rows}


def _reading(content: Content) -> str:
    spread = "; worst and best bank in parentheses" if any(score.of_banks for score in content.scores) else ""
    synthetic = f" {SYNTHETIC}" if any(map(is_synthetic, content.runs)) else ""
    return f"Accuracy in percent, 95 % interval in brackets{spread}; BERTScore F1 as a fraction.{synthetic}"


def _figure(score: Score | None, key: str = "") -> str:
    """ "45.7 [32.1, 60.0]", or "45.7 (32.1 to 60.0)" of several banks."""
    if score is None:
        return DASH
    show = percent if key else score.shown
    value, low, high = map(show, (score.value_of(key or score.key), *score.bounds_of(key or score.key)))
    if DASH in (value, low, high):
        return value
    return f"{value} ({low} to {high})" if score.of_banks else f"{value} [{low}, {high}]"


def _means(content: Content) -> tuple[int, list[str]]:
    """(number of benchmarks, their mean for each system)."""
    row = accuracy_row(content, "", content.catalogue)
    cells = []
    for mean in row.means if row else ():
        limits = interval(mean.bounds).replace(" to ", ", ")
        cells.append(percent(mean.value) + (f" [{limits}]" if limits else ""))
    return (len(common_accuracy_keys(content.systems, content.titles)), cells)


def scores_markdown(content: Content) -> str:
    """One row a benchmark, accuracy in percent with its 95 % interval in brackets."""
    headings, (sets, means) = _headings(content), _means(content)
    width = len(headings)
    lines = [f"| Benchmark | n | {' | '.join(map(_markdown, headings))} |", "|---|---:|" + "---:|" * width]
    for title, rows in _groups(content).items():
        lines.append(f"| **{_markdown(title)}** | |" + " |" * width)
        lines += [f"| {_markdown(item.title)} | {n} | {' | '.join(cells)} |" for item, n, cells in rows]
    if means:
        lines.append(f"| **Mean of {sets}** | | {' | '.join(means)} |" + " |" * (width - len(means)))
    return "\n".join([*lines, "", _reading(content), ""])


def _markdown(words: str) -> str:
    return " ".join(re.sub(r"([\\`*_|<>\[\]])", r"\\\1", words).split())


def scores_latex(content: Content) -> str:
    """The same in booktabs, with the published base and first adapter (of other rows) at the right."""
    headings, (sets, means), published = _headings(content), _means(content), content.published
    columns = [column for column in (published.pin, *published.band[:1]) if column]
    own = len(headings)
    width = 2 + own + len(columns)
    rules = [rf"\cmidrule(lr){{3-{2 + own}}}"] if own else []
    spans = rf" & & \multicolumn{{{own}}}{{c}}{{This report}}" if own else " & "
    if columns:
        rules.append(rf"\cmidrule(lr){{{3 + own}-{width}}}")
        spans += rf" & \multicolumn{{{len(columns)}}}{{c}}{{Published}}"
    heads = "".join(f" & {latex(heading)}" for heading in (*headings, *columns))
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{latex(_reading(content))}}}",
        rf"\begin{{tabular}}{{@{{}}lr{'r' * (own + len(columns))}@{{}}}}",
        r"\toprule",
        rf"{spans} \\",
        "".join(rules),
        rf"Benchmark & $n${heads} \\",
    ]
    for title, rows in _groups(content).items():
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{@{{}}l}}{{\itshape {latex(title)}}} \\"]
        for item, n, cells in rows:
            shown = [latex(item.title), latex(n), *map(_latex_figure, cells)]
            lines.append(" & ".join([*shown, *(_published_cell(item, column) for column in columns)]) + r" \\")
    if means:
        joined = " & ".join(map(_latex_figure, means))
        lines += [r"\midrule", rf"Mean of {sets} & & {joined}{' &' * (width - 2 - len(means))} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _published_cell(item: BenchmarkInfo, column: str) -> str:
    accuracy, f1 = item.published.get(column, (None, None))
    return "--" if accuracy is None and f1 is None else fraction(f1) if accuracy is None else f"{accuracy:.1f}"


def _latex_figure(words: str) -> str:
    """The interval small and after a thin space."""
    if words == DASH:
        return "--"
    value, _, interval = words.partition(" ")
    return value + (rf"\,{{\scriptsize {interval}}}" if interval else "")


LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "ε": r"$\varepsilon$",
}


def latex(words: str) -> str:
    """The words with what LaTeX would take for commands escaped; line breaks and control characters become blanks."""
    plain = "".join(char if char.isprintable() else " " for char in words)
    return "".join(LATEX_SIGNS.get(char, char) for char in plain)
