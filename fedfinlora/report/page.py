"""The whole page; one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.comparison import Compare, compared_groups, paired
from fedfinlora.report.content import Content
from fedfinlora.report.curves import loss_comparison
from fedfinlora.report.details import details_by_group
from fedfinlora.report.exports import score_files
from fedfinlora.report.means import (
    accuracy_row,
    federated_note,
    finlora_row,
    mean_rows,
    published_columns,
    score_plots,
)
from fedfinlora.report.reading import Run
from fedfinlora.report.run_tables import runs_table
from fedfinlora.report.run_view import run_view
from fedfinlora.report.summary import cards
from fedfinlora.report.system_charts import overview_chart, published_charts, score_chart
from fedfinlora.report.systems import MODES
from fedfinlora.report.templates import allowed, render
from fedfinlora.report.values import Values
from fedfinlora.report.verdict import banners, verdict
from fedfinlora.run.stages import is_stages

TITLES = {
    "federated": "Federated fine-tuning",
    "centralized": "Centralized baseline",
    "local": "A bank training alone",
    "evaluate": "Evaluation",
}


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return TITLES.get(runs[0].mode, "Run report")
    folders = {run.folder.absolute().parent for run in runs}
    of_stages = len(folders) == 1 and is_stages(next(iter(folders)))
    return f"{next(iter(folders)).name}, stage by stage" if of_stages else f"Comparison of {len(runs)} runs"


def page(content: Content, defaults: Values, compare: Compare | None) -> str:
    runs = content.runs
    style, script = render("style.css"), render("report.js")
    several = len(runs) > 1
    pairs = paired(content.systems, compare)
    has_published = any(score.finlora_points is not None for score in content.scores)
    return render(
        "report.html",
        style=style,
        script=script,
        # The browser runs this script and this style and loads nothing, no matter what a run folder holds.
        policy=allowed(style, script),
        title=_title(runs),
        subtitle=", ".join(run.name for run in runs),
        verdict=verdict(content),
        banners=banners(runs),
        overview=overview_chart(content),
        cards=cards(content),
        content=content,
        files=score_files(content),
        score_chart=score_chart(content),
        score_plots=score_plots(content),
        mean_rows=mean_rows(content, accuracy_row),
        pairs=pairs,
        pair_groups=compared_groups(pairs, content.groups),
        has_published=has_published,
        published_columns=published_columns(content),
        published_means=mean_rows(content, finlora_row),
        federated=federated_note(content),
        published_charts=published_charts(content) if has_published else [],
        details=details_by_group(content),
        curves=loss_comparison(runs) if several else [],
        runs_table=runs_table(runs) if several else None,
        modes=MODES,
        views=[run_view(run, content.catalogue, defaults) for run in runs],
    )
