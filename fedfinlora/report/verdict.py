"""The first lines of the report."""

from __future__ import annotations

from collections.abc import Sequence

from fedfinlora.report.content import Content
from fedfinlora.report.formats import count, listed, percent, plural
from fedfinlora.report.reading import Run
from fedfinlora.report.score import mean
from fedfinlora.report.scores import common_accuracy_keys
from fedfinlora.report.systems import MODES, System

ENDED = {
    "failed": "failed",
    "stopped": "was stopped",
    "unfinished": "has not finished",
    "damaged": "has a damaged result.json, which does not say how it ended",
}
"""How a run that did not complete ended."""


def verdict(content: Content) -> str:
    """One or two sentences with what the runs show."""
    runs, systems = content.runs, content.systems
    failures = [failure(run, alone=len(runs) == 1) for run in runs if run.status != "completed"]
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    what = setting(runs[0]) if len(runs) == 1 else ", ".join(dict.fromkeys(run.model for run in runs))
    if not keys:
        return " ".join([*failures, f"{what}: {_label_scores(content.label_systems) or 'no accuracy to compare'}."])
    means = [(system, system.accuracy(keys) or 0.0) for system in systems]
    over = f"over {plural(len(keys), 'benchmark')}"
    if len(systems) == 2 and systems[0].kind == "base":
        figures = f"mean accuracy {percent(means[0][1], 0)} % → {percent(means[1][1], 0)} % {over}"
    else:
        figures = f"mean accuracy {over}: " + ", ".join(
            f"{_called(system, systems)} {percent(value, 0)} %" for system, value in means
        )
    return " ".join([*failures, f"{what}: {figures}.", *_gap(means)])


def _label_scores(ranked: Sequence[System]) -> str:
    keys = [
        key
        for key in (ranked[0].scores if ranked else ())
        if all(one.labels_accuracy(key) is not None for one in ranked)
    ]
    if not keys:
        return ""
    means = [f"{system.heading.lower()} {percent(mean(map(system.labels_accuracy, keys)), 0)} %" for system in ranked]
    return f"mean accuracy of the most probable label over {plural(len(keys), 'benchmark')}: {', '.join(means)}"


def _called(system: System, systems: Sequence[System]) -> str:
    """The heading; with its run where several are of its kind."""
    several = len({other.detail for other in systems if other.kind == system.kind}) > 1 and system.kind != "base"
    return system.heading.lower() + (f" ({system.detail})" if several else "")


def _gap(means: Sequence[tuple[System, float]]) -> list[str]:
    """How far each federated run's adapter is from the one trained on all rows pooled."""
    federated = {system.detail: (system, value) for system, value in reversed(means) if system.kind == "federated"}
    pooled = [value for system, value in means if system.kind == "centralized"]
    if len(federated) > 1 and pooled:
        systems = [system for system, _ in means]
        gaps = [f"{_called(one, systems)} {100 * (value - pooled[0]):+.1f}" for one, value in federated.values()]
        return [f"Points against centralized: {', '.join(reversed(gaps))}."]
    by_kind: dict[str, float] = {}
    for system, value in means:
        by_kind.setdefault(system.kind, value)
    if "federated" not in by_kind or "centralized" not in by_kind:
        return []
    gap = by_kind["federated"] - by_kind["centralized"]
    side = "ahead of" if gap > 0 else "behind"
    return [f"Federated is {abs(100 * gap):.1f} points {side} centralized."]


def setting(run: Run) -> str:
    """Banks, rounds, model and adapter of a run."""
    rounds = run.result.rounds or len(run.rounds)
    banks = run.result.banks or len(run.banks)
    peft = "" if run.mode == "evaluate" else run.result.peft
    model = " ".join(filter(None, (run.model, peft)))
    counts = f"{plural(banks, 'bank')}, {plural(rounds, 'round')}, " if run.mode == "federated" else ""
    return counts + model


def failure(run: Run, alone: bool) -> str:
    """How a run that did not complete ended, in a sentence."""
    after = f" after {plural(len(run.rounds), 'round')}" if run.rounds else ""
    reason = f": {run.reason.rstrip('.')}" if run.reason else ""
    name = "The run" if alone else f"Run {run.name}"
    return f"{name} {ENDED[run.status]}{after}{reason}."


def banners(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(warning or failure, title, sentence)."""
    found = []
    synthetic = [run for run in runs if is_synthetic(run)]
    if synthetic:
        which = "Scores" if len(synthetic) == len(runs) else f"Scores of {listed([run.name for run in synthetic])}"
        sentence = f"{which} come from the bundled synthetic sample: they show that the machinery works, not quality."
        found.append(("warning", "Synthetic data", sentence))
    for run in runs:
        if run.status != "completed":
            left = "What follows is what it left behind, and may be partial."
            found.append(("failure", "Not completed", f"{failure(run, alone=len(runs) == 1)} {left}"))
    trained = {run.mode: run.result.rows_trained for run in runs if run.mode in ("federated", "centralized")}
    if len(set(trained.values())) > 1:
        amounts = ", ".join(f"{MODES[mode].lower()} {count(rows)}" for mode, rows in trained.items())
        sentence = f"The runs did not train on the same number of rows: {amounts}."
        found.append(("warning", "Unequal budgets", sentence))
    return found


def is_synthetic(run: Run) -> bool:
    """Whether the scores come from rows that were made up."""
    return run.result.synthetic or any(item.synthetic for item in run.evaluations.values())
