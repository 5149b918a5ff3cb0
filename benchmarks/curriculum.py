"""A curriculum against its controls, on the same rows and with as many row visits: in the given order, reversed, mixed.

    python -m benchmarks.curriculum --data /data/finlora --work /tmp/curriculum [--out DIR] [key=value …]

runs `centralized experiment=curriculum` three times, resuming what was begun, and writes DIR/ORDER.json
(docs/results/curriculum): scores with their intervals, command, commit, load of the machine; no row. `python -m
benchmarks.results` shows them. Keys that stages set are given for each: stages.complex.num_server_rounds=4.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import shown_command
from eval.metrics.averages import headline_name, mean_of
from eval.metrics.intervals import mean_interval
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.config.stages import MIXED, ORDERS
from fedfinlora.files import read_json, write_json
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.origin import git_commit
from fedfinlora.run.records import read_result
from fedfinlora.run.stages import PLAN_FILE, SUMMARY_FILE, read_plan

FIGURES = PROJECT_ROOT / "docs" / "results" / "curriculum"
TITLES = {"given": "complex, then simple", "reversed": "simple, then complex", "mixed": "mixed, one stage"}


def main() -> None:
    """Run the three orders and write their figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="FinLoRA's folder, with FLARE's files in it")
    options.add_argument("--work", type=Path, required=True, help="where the runs are put")
    options.add_argument("--out", type=Path, default=FIGURES, help="default: docs/results/curriculum")
    options.add_argument("words", nargs="*", metavar="key=value")
    chosen = options.parse_args()
    for order in ORDERS:
        run, started, load = chosen.work.absolute() / order, time.monotonic(), os.getloadavg()[0]
        words = [f"dataset.root={chosen.data.absolute()}", *chosen.words, f"stages_order={order}"]
        if order != MIXED:  # the base model is the same for all
            words.append("evaluation.base=false")
        places = [f"output_dir={run.parent}", f"run_name={order}"]
        begun = (run / PLAN_FILE).is_file()
        asked = [f"resume={run}"] if begun else ["experiment=curriculum", "dataset=finlora", *words, *places]
        subprocess.run([sys.executable, "-m", "fedfinlora", "centralized", *asked], check=True)
        write_json(chosen.out / f"{order}.json", figures(run, time.monotonic() - started, (load, os.getloadavg()[0])))


def figures(run: Path, seconds: float, load: Sequence[float]) -> dict[str, Any]:
    """What is committed of a run in stages."""
    plan, summary = read_plan(run), read_json(run / SUMMARY_FILE)
    stages = [run / stage.folder for stage in plan.stages]
    manifest = read_json(stages[0] / "manifest.json")
    results = [read_result(stage) for stage in stages]
    labels = {"base": results[0].scores.get("base", {}), "final": results[-1].scores.get("final", {})}
    return {
        "order": plan.order,
        "command": shown_command(manifest["command"]),
        "git_commit": git_commit(),
        "cpus": manifest["cpus"],
        "load": [round(value, 2) for value in load],
        "wall_s": round(seconds, 1),
        "stages": [
            {"name": stage["name"], "rows_trained": stage["rows_trained"], "steps_trained": stage["steps_trained"]}
            for stage in summary["stages"]
        ],
        "scores": {label: _scores(scores) for label, scores in labels.items() if scores},
    }


def _scores(scores: Scores) -> dict[str, Any]:
    """Benchmark -> its headline figure and 95 % interval, and the mean of them all."""
    found: dict[str, Any] = {}
    pairs = []
    for key, metrics in scores.items():
        name = headline_name(metrics, "strict")
        estimate = metrics.estimates[name]
        found[key] = {"n": metrics.n, "name": name, "value": estimate.value, "low": estimate.low, "high": estimate.high}
        if estimate.value is not None and estimate.low is not None and estimate.high is not None:
            pairs.append((estimate.value, (estimate.low, estimate.high)))
    interval = mean_interval(pairs)
    low, high = interval if interval else (None, None)
    return {**found, "mean": {"value": mean_of(pairs), "low": low, "high": high}}


def section(at: Path) -> str:
    """The table of docs/results.md, from the figures in a folder."""
    runs = {order: read_json(at / f"{order}.json") for order in ORDERS if (at / f"{order}.json").is_file()}
    keys = [key for key in next(iter(runs.values()))["scores"]["final"] if key != "mean"]
    lines = [
        f"| | row visits | {' | '.join(keys)} | mean |",
        f"|---|---|{'---|' * len(keys)}---|",
    ]
    base = next((run["scores"]["base"] for run in runs.values() if "base" in run["scores"]), None)
    if base:
        lines.append(_line("base model", "", base, keys))
    for order, run in runs.items():
        visits = " + ".join(f"{stage['rows_trained']:,}" for stage in run["stages"])
        lines.append(_line(TITLES[order], visits, run["scores"]["final"], keys))
    said = [
        f"- {TITLES[order]}: `{run['command']}`, commit `{run['git_commit'] or 'unknown'}`, {run['wall_s'] / 60:.1f} "
        f"minutes on {run['cpus']} CPUs, load {run['load'][0]:g} to {run['load'][1]:g}."
        for order, run in runs.items()
    ]
    return "\n".join([*lines, "", worth(runs), "", *said])


def _line(name: str, visits: str, scores: Mapping[str, Any], keys: Sequence[str]) -> str:
    cells = [_cell(scores.get(key)) for key in (*keys, "mean")]
    return f"| {name} | {visits} | {' | '.join(cells)} |"


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    interval = f" ({100 * figure['low']:.0f} to {100 * figure['high']:.0f})" if figure["low"] is not None else ""
    return f"{100 * figure['value']:.1f}{interval}"


def worth(runs: Mapping[str, Any]) -> str:
    """In a sentence whether the order was worth anything, by the intervals of the means."""
    given = runs["given"]["scores"]["final"]["mean"]
    rows = sum(figure["n"] for key, figure in runs["given"]["scores"]["final"].items() if key != "mean")
    said = []
    for order in ("reversed", "mixed"):
        if order not in runs:
            continue
        other = runs[order]["scores"]["final"]["mean"]
        apart = given["low"] > other["high"] or other["low"] > given["high"]
        points = 100 * (given["value"] - other["value"])
        what = "more than chance of the rows" if apart else "within both intervals: no difference is shown"
        said.append(f"{points:+.1f} points against {TITLES[order]} ({what})")
    return (
        f"Complex tasks first: {'; '.join(said)}. Scores are of {rows} rows and one seed, in percent, with 95 % "
        "intervals over rows."
    )


if __name__ == "__main__":
    main()
