"""One run below the scores: curves, tables, privacy, configuration, manifest, command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora.report.benchmarks import BenchmarkInfo
from fedfinlora.report.contributions import contributions_view
from fedfinlora.report.curves import run_charts
from fedfinlora.report.load import load_table
from fedfinlora.report.reading import Run, of_a_round
from fedfinlora.report.reproduce import command_line
from fedfinlora.report.run_tables import banks_table, evaluations_table, key_figures, privacy_table, rounds_table
from fedfinlora.report.values import Values, shown
from fedfinlora.run.far_factors import furthest
from fedfinlora.run.folder import flatten
from fedfinlora.run.records import PrivacyCard
from fedfinlora.run.typed import to_json

MODEL_FACTS = ("model", "mode", "shots", "shortages", "tokens")
"""What is shown of an evaluation's model."""
CARD_FACTS = (
    "unit", "adjacency", "trusted", "mechanism", "formula", "sampling", "accountant", "composition",
    "audit", "clip_norm", "noise_multiplier",
)  # fmt: skip
"""What is shown of a privacy card."""


def run_view(run: Run, catalogue: Sequence[BenchmarkInfo], defaults: Values) -> dict[str, Any]:
    """What the template `run` shows; settings are marked where they differ from `defaults`."""
    titles = {benchmark.key: benchmark.title for benchmark in catalogue}
    settings = [
        (key, shown(value), shown(defaults[key]) if key in defaults and defaults[key] != value else "")
        for key, value in run.config.items()
    ]
    stamps = {"config_sha256": run.result.config_sha256, "finished_at": run.result.finished_at}
    return {
        "run": run,
        "figures": key_figures(run),
        "charts": run_charts(run, catalogue),
        "banks": banks_table(run),
        "contributions": contributions_view(run.folder),
        "rounds": rounds_table(run),
        "furthest": furthest(run.rounds, str(run.config.get("strategy.name", run.result.strategy))),
        "evaluations": evaluations_table(run),
        "load": load_table(run.folder),
        "models": _models(run),
        "skipped": [(titles.get(key, key), reason) for key, reason in run.skipped.items()],
        "card": run.privacy,
        **(_privacy(run.privacy) if run.privacy else {}),
        "settings": settings,
        "changed": sum(bool(default) for _, _, default in settings) if defaults else None,
        "manifest": _pairs({**run.manifest, **{name: value for name, value in stamps.items() if value}}),
        "command": command_line(run, defaults) if run.config or run.manifest.get("command") else "",
    }


def _models(run: Run) -> list[tuple[str, str]]:
    found = {}
    for label, evaluation in run.evaluations.items():
        if not of_a_round(label):
            values = to_json(evaluation)
            found[label] = {name: values[name] for name in MODEL_FACTS if values[name] not in (None, {}, "")}
    return _pairs(found) if any(found.values()) else []


def _privacy(card: PrivacyCard) -> dict[str, Any]:
    values = to_json(card)
    is_spent = card.epsilon is not None and card.delta is not None
    return {
        "privacy_banks": privacy_table(card),
        "facts": _pairs({key: values[key] for key in CARD_FACTS if values[key] not in (None, "")}),
        # A guess at even odds may rise to e^epsilon / (1 + e^epsilon), percent.
        "surest": 100 / (1 + math.exp(-card.epsilon)) if is_spent and card.epsilon is not None else None,
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of nested values."""
    return [(key, shown(value)) for key, value in flatten(values).items()]
