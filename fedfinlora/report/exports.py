"""What the report gives to other programs."""

from __future__ import annotations

from dataclasses import replace

from fedfinlora.report.content import Content
from fedfinlora.report.csv_scores import scores_csv
from fedfinlora.report.curves import loss_comparison, run_charts
from fedfinlora.report.details import details_of
from fedfinlora.report.drawing import Chart
from fedfinlora.report.system_charts import overview_chart, published_charts, score_chart
from fedfinlora.report.text_tables import scores_latex, scores_markdown


def score_files(content: Content) -> list[tuple[str, str, str, str]]:
    """(file name, title, MIME type, content) of the score table in three forms."""
    return [
        ("scores.csv", "CSV", "text/csv", scores_csv(content)),
        ("scores.md", "Markdown", "text/markdown", scores_markdown(content)),
        ("scores.tex", "LaTeX", "application/x-tex", scores_latex(content)),
    ]


def all_charts(content: Content) -> list[Chart]:
    """Every chart of the report, each under a name of its own."""
    found = [overview_chart(content), score_chart(content), *published_charts(content)]
    for item in content.catalogue:
        found += [matrix.chart for matrix in details_of(item, content.systems).matrices]
    if len(content.runs) > 1:
        found += loss_comparison(content.runs)
    for run in content.runs:
        found += run_charts(run, content.catalogue)
    charts = [chart for chart in found if chart is not None]
    names = [chart.name for chart in charts]
    return [
        replace(chart, name=f"{chart.name}-{names[:index].count(chart.name) + 1}")
        if chart.name in names[:index]
        else chart
        for index, chart in enumerate(charts)
    ]
