"""The scores for other programs: CSV in long form, a Markdown table, a LaTeX table (booktabs), and every figure as SVG."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedfinlora.report.benchmark_section import confusion_charts
from fedfinlora.report.charts import Interval, IntervalRow, interval_chart
from fedfinlora.report.curves import loss_comparison, run_charts
from fedfinlora.report.drawing import Chart, download, save_link
from fedfinlora.report.figures import COUNTS, raw_value
from fedfinlora.report.markup import DASH, fraction, number, percent
from fedfinlora.report.published import published_charts
from fedfinlora.report.reading import Run
from fedfinlora.report.scores import (
    BenchmarkInfo,
    Published,
    Score,
    Source,
    System,
    by_group,
    common_accuracy_keys,
    labels_systems,
    mean_accuracy,
    mean_accuracy_bounds,
    system_slots,
)
from fedfinlora.report.summary import is_synthetic, overview_chart
from fedfinlora.run.evaluation import BenchmarkMetrics, Evaluation, GroupMean

CSV_HEAD = ("run", "system", "benchmark", "metric", "value", "low", "high", "n")
SYNTHETIC = "Scores of the bundled synthetic sample: no measure of quality."


def table_files(
    runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published
) -> dict[str, tuple[str, str]]:
    """File name -> (MIME type, content) of the score table in three forms."""
    note = SYNTHETIC if any(map(is_synthetic, runs)) else ""
    return {
        "scores.csv": ("text/csv", scores_csv(systems, catalogue)),
        "scores.md": ("text/markdown", scores_markdown(systems, catalogue, note)),
        "scores.tex": ("application/x-tex", scores_latex(systems, catalogue, published, note)),
    }


def table_links(files: Mapping[str, tuple[str, str]], chart: Chart | None) -> str:
    """The links that save the score table."""
    names = {"scores.csv": "CSV", "scores.md": "Markdown", "scores.tex": "LaTeX"}
    links = [download(file, kind, content, names.get(file, file), f"Save {file}") for file, (kind, content) in files.items()]
    if chart is not None:
        links.append(save_link(chart))
    return f'<p class="saves"><span>Save the scores:</span> {" ".join(links)}</p>'


# --- CSV ----------------------------------------------------------------------------------------------------------------------


def scores_csv(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> str:
    """Every figure of every evaluation, one a line, as fractions; `low` and `high` are its 95 % interval, empty where there is none.

    Banks that trained alone stand one by one. The published figures are in it as run "published", without rows or intervals.
    """
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(CSV_HEAD)
    order = {item.key: index for index, item in enumerate(catalogue)}
    for source, system in _sources(systems):
        place = (_cell(source.run.name), _cell(system.heading))
        scores = source.run.scores.get(source.label, {})
        for key in sorted(scores, key=lambda key: (order.get(key, len(order)), key)):
            lines.writerows([*place, _cell(key), *figure] for figure in _figures(scores[key]))
        evaluation = source.run.evaluations.get(source.label, Evaluation())
        for group, means in evaluation.groups.items():
            lines.writerows([*place, _cell(f"group:{group}"), *figure] for figure in _means(means))
    for item in catalogue:
        for column, (accuracy, f1) in item.published.items():
            figures = {"bertscore_f1": f1} if accuracy is None else {"finlora_accuracy": accuracy / 100, "finlora_f1": f1}
            lines.writerows(
                ["published", column, item.key, name, f"{value:.6g}", "", "", ""]
                for name, value in figures.items()
                if value is not None
            )
    return written.getvalue()


Cells = tuple[str, str, str, str, str]
"""(metric, value, low, high, n)."""


def _figures(metrics: BenchmarkMetrics) -> Iterator[Cells]:
    """Each number of a benchmark's metrics."""
    for name in (*COUNTS, *metrics.estimates):
        value = raw_value(name, metrics)
        if value is not None:
            n = metrics.rows if name == "row_accuracy" else metrics.n
            low, high = metrics.bounds(name)
            yield _cell(name), _plain(value), _plain(low), _plain(high), _plain(n)


def _means(means: GroupMean) -> Iterator[Cells]:
    """The two means of a group."""
    for name, value, interval in (
        ("score", means.score, means.score_ci95),
        ("finlora_score", means.finlora_score, means.finlora_score_ci95),
    ):
        if value is not None:
            low, high = interval or (None, None)
            yield name, _plain(value), _plain(low), _plain(high), ""


def _sources(systems: Sequence[System]) -> Iterator[tuple[Source, System]]:
    """Each evaluation once, with the system that it belongs to."""
    for system in systems:
        seen: list[Source] = []
        for score in system.scores.values():
            for source, _ in score.parts:
                if not any(source.run is other.run and source.label == other.label for other in seen):
                    seen.append(source)
        yield from ((source, system) for source in seen)


def _plain(value: Any) -> str:
    known = number(value)
    return "" if known is None else repr(int(known)) if known.is_integer() and abs(known) < 1e15 else repr(known)


def _cell(words: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words


# --- Markdown and LaTeX -------------------------------------------------------------------------------------------------------


def scores_markdown(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], note: str = "") -> str:
    """One row a benchmark, accuracy in percent with its 95 % interval in brackets."""
    ranked = labels_systems(systems)
    heads = [_markdown(heading) for heading in _headings(systems)]
    lines = [f"| Benchmark | n | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
    for title, benchmarks in by_group(catalogue).items():
        scored = [item for item in benchmarks if any(item.key in system.scores for system in systems)]
        if not scored:
            continue
        lines.append(f"| **{_markdown(title)}** | |" + " |" * len(heads))
        for item in scored:
            cells = [_figure(system.scores.get(item.key)) for system in systems]
            cells += [_labels_figure(system.scores.get(item.key)) for system in ranked]
            lines.append(f"| {_markdown(item.title)} | {_rows(systems, item.key)} | {' | '.join(cells)} |")
    keys = common_accuracy_keys(systems, [item.key for item in catalogue])
    if keys:
        cells = [_mean(system, keys) for system in systems]
        lines.append(f"| **Mean of {len(keys)}** | | {' | '.join(cells)} |" + " |" * len(ranked))
    said = f"{_reading(systems)} {note}".strip()
    return "\n".join([*lines, "", said, ""])


def _reading(systems: Sequence[System]) -> str:
    """How the figures are to be read."""
    banks = any(score.spread_of_banks for system in systems for score in system.scores.values())
    spread = "; worst and best bank in parentheses" if banks else ""
    return f"Accuracy in percent, 95 % interval in brackets{spread}; BERTScore F1 as a fraction."


def _markdown(words: str) -> str:
    return " ".join(re.sub(r"([\\`*_|<>\[\]])", r"\\\1", words).split())


def _rows(systems: Sequence[System], key: str) -> str:
    ns = sorted({system.scores[key].n for system in systems if key in system.scores})
    return DASH.join(map(str, dict.fromkeys((ns[0], ns[-1])))) if ns else DASH


def _figure(score: Score | None) -> str:
    """ "45.7 [32.1, 60.0]", or "45.7 (32.1 to 60.0)" where these are the worst and the best of several banks."""
    if score is None or score.value is None:
        return DASH
    show = fraction if score.bertscore else percent
    if score.low is None or score.high is None:
        return show(score.value)
    low, high = show(score.low), show(score.high)
    return f"{show(score.value)} ({low} to {high})" if score.spread_of_banks else f"{show(score.value)} [{low}, {high}]"


def _headings(systems: Sequence[System]) -> list[str]:
    """The systems' own columns, then those of label scoring, which stays apart."""
    return [
        *(system.heading for system in systems),
        *(f"{system.heading}, most probable label" for system in labels_systems(systems)),
    ]


def _labels_figure(score: Score | None) -> str:
    if score is None or score.labels_accuracy is None:
        return DASH
    low, high = score.labels_bounds
    return _figure(replace(score, value=score.labels_accuracy, low=low, high=high, bertscore=False))


def _mean(system: System, keys: Sequence[str]) -> str:
    low, high = mean_accuracy_bounds(system, keys)
    interval = "" if low is None or high is None else f" [{percent(low)}, {percent(high)}]"
    return percent(mean_accuracy(system, keys)) + interval


def scores_latex(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published, note: str = "") -> str:
    """A booktabs table of the same, with the published base and the first published adapter (of other rows) beside it."""
    columns = [column for column in (published.pin, *published.band[:1]) if column]
    ranked, headings = labels_systems(systems), _headings(systems)
    width = 2 + len(headings) + len(columns)
    own = " & ".join(map(_latex, headings))
    theirs = "".join(f" & {_latex(column)}" for column in columns)
    rules = [rf"\cmidrule(lr){{3-{2 + len(headings)}}}"] if systems else []
    spans = rf" & & \multicolumn{{{len(headings)}}}{{c}}{{This report}}" if systems else " & "
    if columns:
        rules.append(rf"\cmidrule(lr){{{3 + len(headings)}-{width}}}")
        spans += rf" & \multicolumn{{{len(columns)}}}{{c}}{{Published}}"
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_latex(f'{_reading(systems)} {note}'.strip())}}}",
        rf"\begin{{tabular}}{{@{{}}lr{'r' * (len(headings) + len(columns))}@{{}}}}",
        r"\toprule",
        rf"{spans} \\",
        "".join(rules),
        rf"Benchmark & $n$ & {own}{theirs} \\",
    ]
    for title, benchmarks in by_group(catalogue).items():
        scored = [item for item in benchmarks if any(item.key in system.scores for system in systems)]
        if scored:
            lines += [r"\midrule", rf"\multicolumn{{{width}}}{{@{{}}l}}{{\itshape {_latex(title)}}} \\"]
        for item in scored:
            cells = [_latex(item.title), _latex(_rows(systems, item.key))]
            cells += [_latex_figure(_figure(system.scores.get(item.key))) for system in systems]
            cells += [_latex_figure(_labels_figure(system.scores.get(item.key))) for system in ranked]
            cells += [_published_cell(item, column) for column in columns]
            lines.append(" & ".join(cells) + r" \\")
    keys = common_accuracy_keys(systems, [item.key for item in catalogue])
    if keys:
        means = " & ".join(_latex_figure(_mean(system, keys)) for system in systems)
        lines += [r"\midrule", rf"Mean of {len(keys)} & & {means}{' &' * (len(ranked) + len(columns))} \\"]
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


def _latex(words: str) -> str:
    """The words with what LaTeX would take for commands escaped; line breaks and control characters become blanks."""
    plain = "".join(char if char.isprintable() else " " for char in words)
    return "".join(LATEX_SIGNS.get(char, char) for char in plain)


# --- figures ------------------------------------------------------------------------------------------------------------------


def score_chart(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> Chart | None:
    """Accuracy of every benchmark with its interval in one figure, for a paper; in the page the score table has it."""
    slots = system_slots(systems)
    rows = []
    for item in catalogue:
        scores = [(system, slot, system.scores.get(item.key)) for system, slot in zip(systems, slots, strict=True)]
        intervals = [
            Interval(system.heading, score.value, score.low, score.high, slot)
            for system, slot, score in scores
            if score is not None and score.value is not None
        ]
        bertscore = any(score is not None and score.bertscore for _, _, score in scores)
        rows.append(IntervalRow(item.title + (" (BERTScore F1)" if bertscore else ""), intervals))
    return interval_chart("scores", "Scores by benchmark", "accuracy with 95 % intervals", rows)


def all_charts(
    runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published
) -> list[Chart]:
    """Every figure of the report, in its order, under a name of its own."""
    found = [overview_chart(systems, catalogue), score_chart(systems, catalogue)]
    charts = [chart for chart in found if chart is not None]
    charts += published_charts(systems, catalogue, published)
    for item in catalogue:
        charts += [chart for _, _, chart in confusion_charts(item, systems)]
    if len(runs) > 1:
        charts += loss_comparison(runs)
    for run in runs:
        charts += run_charts(run, catalogue)
    names = [chart.name for chart in charts]
    return [
        replace(chart, name=f"{chart.name}-{names[:index].count(chart.name) + 1}") if chart.name in names[:index] else chart
        for index, chart in enumerate(charts)
    ]
