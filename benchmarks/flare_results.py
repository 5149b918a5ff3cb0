"""FLARE's benchmarks on real rows: aggregate figures of finished `evaluate` runs, next to PIXIU's published ones.

    python -m benchmarks.flare_results RUN … --trained RUN --loads FILE --json FILE
    python -m benchmarks.results --keep flare figures=FILE

Each RUN scored the base model and one adapter (`evaluate --base --adapter DIR`); --trained is the run that made the
adapter; FILE of --loads has lines of /proc/loadavg, written while they ran. No row and no answer is among the
figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.flare_published import FLARE_MODELS, FLARE_PUBLISHED
from benchmarks.provenance import shown_command
from data.catalog import BENCHMARKS, select
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, read_evaluation
from fedfinlora.run.which_run import folder_or_run

FIGURES = {
    "accuracy": "accuracy",
    "weighted F1": "f1_weighted",
    "entity F1": "entity_f1",
    "exact match": "accuracy",
    "Matthews": "matthews",
}
"""Metric of the published table -> ours."""
SHOWN = tuple(FLARE_MODELS.index(name) for name in ("GPT-4", "FinMA 7B-full"))
"""Published columns next to ours."""


def figures_of(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Benchmark -> model (base or adapter) -> rows, missing answers and figures with their intervals."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for file in sorted((run / "eval").glob(f"*/{METRICS_FILE}")):
            label = file.parent.name
            for key, metrics in read_evaluation(run, label).scores.items():
                found.setdefault(key, {})["base" if label == "base" else "adapter"] = _figures(metrics)
    if not found:
        raise UserError(f"{runs[0]} has no scores. Make them with `evaluate --base --adapter DIR`.")
    return {key: found[key] for key in BENCHMARKS if key in found}


def _figures(metrics: BenchmarkMetrics) -> dict[str, Any]:
    known = {name: [metrics.value(name), *metrics.bounds(name)] for name in dict.fromkeys(FIGURES.values())}
    shown = {name: cells for name, cells in known.items() if cells[0] is not None}
    return {"rows": metrics.n, "missing": metrics.value("unparsed_share"), **shown}


def section(figures: Mapping[str, Any]) -> str:
    """The section of docs/results.md."""
    lines = [
        f"| benchmark (rows) | metric | base | adapter | missing: base, adapter | {', '.join(_shown_models())} |",
        "|---|---|---|---|---|---|",
    ]
    for (key, metric), published in FLARE_PUBLISHED.items():
        one = figures["benchmarks"].get(key)
        if one is None:
            continue
        cells = [_cell(one.get(model, {}).get(FIGURES[metric])) for model in ("base", "adapter")]
        missing = ", ".join(_share(one.get(model, {}).get("missing")) for model in ("base", "adapter"))
        others = ", ".join("–" if published[place] is None else f"{published[place]:g}" for place in SHOWN)
        rows = next(iter(one.values()))["rows"]
        lines.append(f"| {BENCHMARKS[key].title} ({rows}) | {metric} | {' | '.join(cells)} | {missing} | {others} |")
    trained = ", ".join(BENCHMARKS[task].title for task in figures["trained_on"])
    words = (
        "Fractions from 0 to 1, 95 % intervals in brackets; seeded rows, so few that they show that the parts work "
        f"together and hardly more. The adapter was trained on {trained}. The published figures "
        f"({' and '.join(_shown_models())}) are of other models, all rows, and PIXIU's own rules."
    )
    unscored = [entry.title for entry in select(["flare"]) if entry.key not in figures["benchmarks"]]
    words += f" Not scored: {', '.join(unscored)}." if unscored else ""
    load = f"Load of the machine (1, 5 and 15 minutes), while they ran: {'; '.join(figures['loads'])}."
    origins = [
        f"- {run['name']}: `{run['command']}`, commit `{run['commit']}`, {run['minutes']:.1f} minutes on "
        f"{run['cpus']} CPUs."
        for run in figures["runs"]
    ]
    lines += ["", words, "", load, "", *origins]
    return "\n".join(lines)


def _shown_models() -> list[str]:
    return [FLARE_MODELS[place] for place in SHOWN]


def _cell(figure: Sequence[float | None] | None) -> str:
    if figure is None:
        return "–"
    value, low, high = figure
    interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{value:.3f}{interval}"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _origin(name: str, run: Path) -> dict[str, Any]:
    manifest, result = read_json(run / "manifest.json"), read_json(run / "result.json")
    return {
        "name": name,
        "command": shown_command(manifest["command"]),
        "commit": manifest["git_commit"] or "unknown",
        "minutes": result["wall_s"]["total"] / 60,
        "cpus": manifest["cpus"],
    }


def main(words: Sequence[str] | None = None) -> None:
    """Read the runs and write the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", help="folders or names of `evaluate` runs")
    options.add_argument("--trained", required=True, metavar="RUN", help="the run that made the adapter")
    options.add_argument("--loads", required=True, type=Path, metavar="FILE", help="lines of /proc/loadavg")
    options.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the figures go")
    chosen = options.parse_args(words)
    runs, trained = [folder_or_run(run) for run in chosen.runs], folder_or_run(chosen.trained)
    tasks = yaml.safe_load((trained / "config.yaml").read_text("utf-8"))["dataset"]["tasks"]
    scored = [_origin(f"scored {', '.join(figures_of([run]))}", run) for run in runs]
    figures = {
        "command": "python -m benchmarks.flare_results RUN …",
        "benchmarks": figures_of(runs),
        "trained_on": tasks,
        "loads": [" ".join(line.split()[:3]) for line in chosen.loads.read_text().splitlines() if line.strip()],
        "runs": [_origin("trained", trained), *scored],
    }
    write_json(chosen.json, figures)
    print(section(figures))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
