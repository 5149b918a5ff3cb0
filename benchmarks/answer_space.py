"""What dataset.answer_space changes: two `evaluate` runs of the same rows, without and with it, and their difference
row by row.

    python -m benchmarks.answer_space OFF ON --json FILE
    python -m benchmarks.results --keep answer-space figures=FILE

OFF and ON are folders or names of runs. The setting moves the last space of a prompt to the answer, so the prompts'
hashes differ; rows are paired by their id and target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.provenance import shown_command
from data.catalog import BENCHMARKS
from eval.metrics.compare import compare_records
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json
from fedfinlora.run.evaluation import read_records
from fedfinlora.run.typed import to_json
from fedfinlora.run.which_run import folder_or_run

LABEL = "base"
FIGURES = {"accuracy": "answers in text", "labels_accuracy": "most probable label"}


def figures_of(off: Path, on: Path) -> dict[str, Any]:
    """Benchmark -> figure -> both values, their difference and its interval; no row and no answer among them."""
    found: dict[str, Any] = {}
    for file in sorted((off / "eval" / LABEL).glob("*.jsonl")):
        pairs = [
            [replace(record, prompt_sha256="") for record in read_records(run / "eval" / LABEL / file.name)]
            for run in (off, on)
        ]
        compared = compare_records(BENCHMARKS[file.stem], *pairs)
        known = {name: to_json(compared.figures[name]) for name in FIGURES if name in compared.figures}
        found[file.stem] = {"rows": compared.rows, **known}
    if not found:
        raise UserError(f"{off} has no answers of the base model. Make it with `evaluate --base`.")
    return found


def section(figures: Mapping[str, Any]) -> str:
    """The section of docs/results.md."""
    lines = [
        "| benchmark | read from | off | on | difference, points | McNemar's p | rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, one in figures["benchmarks"].items():
        for name, title in FIGURES.items():
            if name in one:
                lines.append(f"| {BENCHMARKS[key].title} | {title} | {_cells(one[name])} | {one['rows']} |")
    words = (
        "The untouched base model, asked with `dataset.answer_space` off (FinLoRA's way: the prompt ends in a space, "
        "the answer begins with `positive`) and on (the answer begins with ` positive`). In brackets the difference's "
        "95 % interval, by a paired bootstrap over rows."
    )
    origins = [f"- {side}: `{one['command']}`, commit `{one['git_commit']}`." for side, one in figures["runs"].items()]
    return "\n".join([*lines, "", words, "", *origins])


def _cells(figure: Mapping[str, Any]) -> str:
    low, high = figure["difference_ci95"]
    sides = [f"{100 * figure[side]:.1f}" for side in ("one", "other")]
    p = figure.get("mcnemar_p")
    difference = f"{100 * figure['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return " | ".join([*sides, difference, "–" if p is None else f"{p:.2g}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.answer_space", description="What dataset.answer_space changes."
    )
    parser.add_argument("off", metavar="OFF", help="a run of `evaluate --base` without it")
    parser.add_argument("on", metavar="ON", help="the same with dataset.answer_space=true")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    asked = parser.parse_args(arguments)
    try:
        runs = {side: folder_or_run(given) for side, given in (("off", asked.off), ("on", asked.on))}
        manifests = {side: read_json(run / "manifest.json") for side, run in runs.items()}
        origins = {
            side: {"command": shown_command(one["command"]), "git_commit": one["git_commit"] or "unknown"}
            for side, one in manifests.items()
        }
        command = "python -m benchmarks.answer_space OFF ON"
        write_json(asked.json, {"command": command, "runs": origins, "benchmarks": figures_of(runs["off"], runs["on"])})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
