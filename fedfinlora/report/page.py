"""The whole page: verdict, warnings, scores, one section for each run, all in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora.report.charts import Series, line_chart
from fedfinlora.report.markup import count, number, percent, plain_table, plural, points, seconds, size, text
from fedfinlora.report.reading import Run
from fedfinlora.report.run_section import key_figures, run_section
from fedfinlora.report.scores import MODES, BenchmarkInfo, System, base_of, common_accuracy_keys, mean_accuracy, systems_of
from fedfinlora.report.style import SCRIPT, STYLE
from fedfinlora.report.table import score_table

TITLES = {
    "federated": "Federated fine-tuning",
    "centralized": "Centralized baseline",
    "local": "A bank training alone",
    "evaluate": "Evaluation",
}


def page(runs: Sequence[Run], catalogue: Sequence[BenchmarkInfo], defaults: Mapping[str, Any]) -> str:
    """The report as one HTML text."""
    systems = systems_of(runs)
    title = TITLES.get(runs[0].mode, "Run report") if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    subtitle = ", ".join(run.name for run in runs)
    style, script = STYLE, SCRIPT
    body = [
        f'<header><p class="kicker">fedfinlora report</p><h1>{text(title)}</h1><p class="subtitle">{text(subtitle)}</p>'
        f'<p class="verdict">{text(verdict(runs, systems))}</p></header>',
        *_warnings(runs),
        key_figures(runs[0]) if len(runs) == 1 else _runs_table(runs),
        _scores(runs, systems, catalogue),
        _loss_comparison(runs) if len(runs) > 1 else "",
        *_sections(runs, catalogue, defaults),
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


def verdict(runs: Sequence[Run], systems: Sequence[System]) -> str:
    """One or two sentences with what the runs show, computed from their figures."""
    failures = [_failure(run, alone=len(runs) == 1) for run in runs if run.status != "completed"]
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    setting = _setting(runs[0]) if len(runs) == 1 else ", ".join(dict.fromkeys(run.model for run in runs))
    if not keys:
        return " ".join([*failures, f"{setting}: no accuracy to compare."])
    means = [(system, mean_accuracy(system, keys) or 0.0) for system in systems]
    over = f"over {plural(len(keys), 'benchmark')}"
    if len(systems) == 2 and systems[0].kind == "base":
        figures = f"mean accuracy {percent(means[0][1], 0)} % → {percent(means[1][1], 0)} % {over}"
    else:
        listed = ", ".join(f"{system.heading.lower()} {percent(value, 0)} %" for system, value in means)
        figures = f"mean accuracy {over}: {listed}"
    return " ".join([*failures, f"{setting}: {figures}.", *_gap(means)])


def _gap(means: Sequence[tuple[System, float]]) -> list[str]:
    """How far the federated adapter is from the one trained on all rows pooled."""
    by_kind = {system.kind: value for system, value in means}
    if "federated" not in by_kind or "centralized" not in by_kind:
        return []
    gap = by_kind["federated"] - by_kind["centralized"]
    side = "ahead of" if gap > 0 else "behind"
    return [f"Federated is {abs(100 * gap):.1f} points {side} centralized."]


def _setting(run: Run) -> str:
    rounds = int(number(run.result.get("rounds")) or len(run.rounds))
    banks = int(number(run.result.get("banks")) or len(run.banks))
    peft = str(run.result.get("peft") or "")
    model = " ".join(filter(None, (run.model, peft)))
    counts = f"{plural(banks, 'bank')}, {plural(rounds, 'round')}, " if run.mode == "federated" else ""
    return counts + model


def _failure(run: Run, alone: bool) -> str:
    after = f" after {plural(len(run.rounds), 'round')}" if run.rounds else ""
    reason = f": {run.reason.rstrip('.')}" if run.reason else ""
    name = "The run" if alone else f"Run {run.name}"
    ended = {"failed": "failed", "stopped": "was stopped"}.get(run.status, "has not finished")
    return f"{name} {ended}{after}{reason}."


def _warnings(runs: Sequence[Run]) -> list[str]:
    banners = []
    synthetic = [run for run in runs if run.result.get("synthetic")]
    if synthetic:
        which = "Scores" if len(synthetic) == len(runs) else f"Scores of {', '.join(run.name for run in synthetic)}"
        banners.append(
            _banner(
                "Synthetic data",
                f"{which} come from the bundled synthetic sample: they show that the machinery works, not quality.",
                "warning",
            )
        )
    for run in runs:
        if run.status != "completed":
            left = "What follows is what it left behind, and may be partial."
            banners.append(_banner("Not completed", f"{_failure(run, alone=len(runs) == 1)} {left}", "failure"))
    trained = {run.mode: run.result.get("rows_trained") for run in runs if run.mode in ("federated", "centralized")}
    if len(set(trained.values())) > 1:
        amounts = ", ".join(f"{MODES[mode].lower()} {count(rows)}" for mode, rows in trained.items())
        banners.append(_banner("Unequal budgets", f"The runs did not train on the same number of rows: {amounts}.", "warning"))
    missing = [(run, sentence) for run in runs for sentence in run.missing]
    if missing:
        prefix = len(runs) > 1
        items = "".join(f"<li>{text(f'{run.name}: ' if prefix else '')}{text(sentence)}</li>" for run, sentence in missing)
        banners.append(f'<aside class="banner"><b>Missing from this report</b><ul>{items}</ul></aside>')
    return banners


def _banner(title: str, sentence: str, css_class: str) -> str:
    return f'<aside class="banner {css_class}" role="note"><b>{text(title)}</b><p>{text(sentence)}</p></aside>'


def _runs_table(runs: Sequence[Run]) -> str:
    words = ("Run", "Mode", "Status", "Model", "Adapter")
    numbers = ("Banks", "Rounds", "Rows trained", "Tokens", "Seed", "Sent by banks", "Wall time")
    rows = []
    for run in runs:
        wall_s = run.result.get("wall_s")
        described = [run.mode, run.status, run.model, str(run.result.get("peft") or "")]
        figures = [
            count(run.result.get("banks")),
            count(run.result.get("rounds")),
            count(run.result.get("rows_trained")),
            count(run.result.get("tokens_trained")),
            count(run.result.get("seed")),
            size(run.result.get("bytes_up")),
            seconds(wall_s.get("total") if isinstance(wall_s, Mapping) else None),
        ]
        cells = "".join(f"<td>{text(word)}</td>" for word in described) + "".join(
            f'<td class="number">{text(figure)}</td>' for figure in figures
        )
        rows.append(f'<tr><th scope="row">{text(run.name)}</th>{cells}</tr>')
    return f"<section><h2>Runs</h2>{plain_table('Runs', (*words, *numbers), ''.join(rows), words)}</section>"


def _scores(runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> str:
    skipped: dict[str, str] = {}
    for run in runs:
        for key, reason in run.skipped.items():
            skipped.setdefault(key, reason)
    if not systems:
        return "<section><h2>Scores</h2><p>No model was scored.</p></section>"
    gains = []
    for system in systems:
        base = base_of(system, systems)
        if system.kind != "base" and base is not None:
            keys = common_accuracy_keys([base, system], base.scores)
            gain = (mean_accuracy(system, keys) or 0.0) - (mean_accuracy(base, keys) or 0.0)
            if keys:
                gains.append(f"{system.heading} gains {points(gain)} points on the mean of {plural(len(keys), 'benchmark')}")
    summary = f"<p>{text('; '.join(gains))}.</p>" if gains else ""
    return f"<section><h2>Scores</h2>{summary}{score_table(systems, catalogue, skipped)}</section>"


def _loss_comparison(runs: Sequence[Run]) -> str:
    """The global loss curves of all runs on one axis."""
    with_rounds = [run for run in runs if run.rounds]
    figures = []
    for title, name in (("Train loss", "train_loss"), ("Held-out loss", "holdout_loss")):
        places = sorted({_round_number(record) for run in with_rounds for record in run.rounds})
        lines = []
        for index, run in enumerate(with_rounds):
            by_round = {_round_number(record): number(record.get(name)) for record in run.rounds}
            lines.append(Series(run.name, tuple(by_round.get(place) for place in places), slot=index % 8))
        if places:
            figures.append(line_chart(title, places, lines, "mean over answer tokens", lambda v: f"{v:.2f}"))
    drawn = "".join(filter(None, figures))
    return f'<section><h2>Curves side by side</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _round_number(record: Mapping[str, Any]) -> int:
    return int(number(record.get("round")) or 0)


def _sections(runs: Sequence[Run], catalogue: Sequence[BenchmarkInfo], defaults: Mapping[str, Any]) -> list[str]:
    """One section for a lone run; several runs fold away, each under its name."""
    if len(runs) == 1:
        content = run_section(runs[0], catalogue, defaults)
        return [f"<section><h2>The run</h2>{content}</section>" if content else ""]
    return [
        f'<section><details class="run"><summary><b>{text(MODES.get(run.mode, run.mode))}</b> <span>{text(run.name)}</span></summary>'
        f"{key_figures(run)}{run_section(run, catalogue, defaults)}</details></section>"
        for run in runs
    ]
