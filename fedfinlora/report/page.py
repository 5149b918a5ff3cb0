"""The whole page: summary, scores, published figures, benchmarks, runs; one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora.report.benchmark_section import benchmark_sections
from fedfinlora.report.comparison import Compare, comparison_section, paired
from fedfinlora.report.curves import loss_comparison
from fedfinlora.report.drawing import figure
from fedfinlora.report.exports import score_chart, table_files, table_links
from fedfinlora.report.markup import count, plain_table, seconds, size, text
from fedfinlora.report.published import published_charts, published_section
from fedfinlora.report.reading import Run
from fedfinlora.report.run_section import key_figures, run_section
from fedfinlora.report.scores import MODES, BenchmarkInfo, Published, System, systems_of, with_unlisted
from fedfinlora.report.style import SCRIPT, STYLE
from fedfinlora.report.summary import summary_section, verdict, warnings
from fedfinlora.report.table import score_table, system_legend

TITLES = {
    "federated": "Federated fine-tuning",
    "centralized": "Centralized baseline",
    "local": "A bank training alone",
    "evaluate": "Evaluation",
}


def page(
    runs: Sequence[Run],
    catalogue: Sequence[BenchmarkInfo],
    defaults: Mapping[str, Any],
    published: Published,
    compare: Compare | None,
) -> str:
    """The report as one HTML text."""
    systems = systems_of(runs)
    catalogue = with_unlisted(catalogue, systems)
    skipped: dict[str, str] = {}
    for run in runs:
        for key, reason in run.skipped.items():
            skipped.setdefault(key, reason)
    title = TITLES.get(runs[0].mode, "Run report") if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    subtitle = ", ".join(run.name for run in runs)
    style, script = STYLE, SCRIPT
    sections = [
        summary_section(runs, systems, catalogue, skipped),
        _scores(runs, systems, catalogue, published, skipped),
        comparison_section(paired(systems, compare), catalogue),
        _published(systems, catalogue, published),
        _benchmarks(systems, catalogue),
        _loss_comparison(runs),
        *_run_sections(runs, catalogue, defaults),
    ]
    body = [
        f'<header><p class="kicker">fedfinlora report</p><h1>{text(title)}</h1><p class="subtitle">{text(subtitle)}</p>'
        f'<p class="verdict">{text(verdict(runs, systems))}</p></header>',
        warnings(runs),
        key_figures(runs[0]) if len(runs) == 1 else "",
        _contents(sections),
        *sections,
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        f'<link rel="icon" href="data:,"><title>{text(title)}: {text(subtitle)}</title>'
        f"<style>{style}</style></head>\n<body><main>{''.join(body)}</main>\n<script>{script}</script></body></html>\n"
    )


def _policy(style: str, script: str) -> str:
    """The browser runs this script and this style and loads nothing, whatever a run folder may hold."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}; base-uri 'none'; form-action 'none'"


CONTENTS = {
    "summary": "Summary",
    "scores": "Scores",
    "paired": "Paired differences",
    "published": "Beside published figures",
    "benchmarks": "Benchmark by benchmark",
    "curves": "Curves side by side",
    "runs": "Runs",
}


def _contents(sections: Sequence[str]) -> str:
    """Links to the sections that there are."""
    there = [(name, title) for name, title in CONTENTS.items() if any(f'<section id="{name}">' in part for part in sections)]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in there)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _scores(
    runs: Sequence[Run],
    systems: Sequence[System],
    catalogue: Sequence[BenchmarkInfo],
    published: Published,
    skipped: Mapping[str, str],
) -> str:
    if not systems:
        return '<section id="scores"><h2>Scores</h2><p>No model was scored.</p></section>'
    links = table_links(table_files(runs, systems, catalogue, published), score_chart(systems, catalogue))
    return f'<section id="scores"><h2>Scores</h2>{links}{score_table(systems, catalogue, skipped)}</section>'


def _published(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], published: Published) -> str:
    if all(score.finlora_points is None for system in systems for score in system.scores.values()):
        return ""
    charts = "".join(map(figure, published_charts(systems, catalogue, published)))
    return (
        f'<section id="published"><h2>Beside the published figures</h2>{system_legend(systems)}'
        f'{published_section(systems, catalogue, published)}<div class="charts">{charts}</div></section>'
    )


def _benchmarks(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> str:
    sections = benchmark_sections(systems, catalogue)
    if not sections:
        return ""
    buttons = (
        '<p class="saves"><button type="button" data-unfold="true" hidden>Open all</button> '
        '<button type="button" data-unfold="" hidden>Fold all</button></p>'
    )
    return f'<section id="benchmarks"><h2>Benchmark by benchmark</h2>{buttons}{sections}</section>'


def _loss_comparison(runs: Sequence[Run]) -> str:
    drawn = "".join(map(figure, loss_comparison(runs))) if len(runs) > 1 else ""
    return f'<section id="curves"><h2>Curves side by side</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _run_sections(runs: Sequence[Run], catalogue: Sequence[BenchmarkInfo], defaults: Mapping[str, Any]) -> list[str]:
    """One section for a lone run; several runs in a table, and each folded under its name."""
    if len(runs) == 1:
        content = run_section(runs[0], catalogue, defaults)
        return [f'<section id="runs"><h2>The run</h2>{content}</section>' if content else ""]
    folded = "".join(
        f'<details class="run"><summary><b>{text(MODES.get(run.mode, run.mode))}</b> <span>{text(run.name)}</span></summary>'
        f"{key_figures(run)}{run_section(run, catalogue, defaults)}</details>"
        for run in runs
    )
    return [f'<section id="runs"><h2>Runs</h2>{_runs_table(runs)}{folded}</section>']


def _runs_table(runs: Sequence[Run]) -> str:
    words = ("Run", "Mode", "Status", "Model", "Adapter")
    numbers = ("Banks", "Rounds", "Rows trained", "Tokens", "Seed", "Sent by banks", "Wall time")
    rows = []
    for run in runs:
        result = run.result
        described = [run.mode, run.status, run.model, result.peft]
        figures = [
            count(result.banks),
            count(result.rounds),
            count(result.rows_trained),
            count(result.tokens_trained),
            count(result.seed),
            size(result.bytes_up),
            seconds(result.wall_s.total),
        ]
        cells = "".join(f"<td>{text(word)}</td>" for word in described) + "".join(
            f'<td class="number">{text(figure)}</td>' for figure in figures
        )
        rows.append(f'<tr><th scope="row">{text(run.name)}</th>{cells}</tr>')
    return plain_table("Runs", (*words, *numbers), "".join(rows), words)
