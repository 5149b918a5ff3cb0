"""Which systems the report compares.

A system is a column: the base model (from the first run that has it), a federated, centralized or evaluated adapter,
another model, or the mean of the banks that trained alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedfinlora.report.reading import Run, best_round
from fedfinlora.report.score import Score, Source, mean

MODES = {"federated": "Federated", "centralized": "Centralized", "local": "Local", "evaluate": "Adapter"}


@dataclass(frozen=True)
class System:
    """One column of the score table."""

    kind: str
    """base, or a run's mode."""
    heading: str
    detail: str
    """The run or runs that it comes from."""
    model: str
    scores: Mapping[str, Score]
    slot: int = 0
    """Its mark and colour in charts: 0 to 7."""
    base: System | None = None
    """The base column that it started from, if that was scored."""

    def accuracy(self, keys: Iterable[str]) -> float | None:
        return mean(self.scores[key].value for key in keys)

    def finlora(self, keys: Iterable[str]) -> float | None:
        """The mean over `keys` as FinLoRA averages."""
        return mean(self.scores[key].finlora_points for key in keys)

    def labels_accuracy(self, key: str) -> float | None:
        """The share of rows whose most probable label is right."""
        return self.scores[key].value_of("labels_accuracy") if key in self.scores else None

    def gain(self, key: str) -> float | None:
        """The gain over base; None where one was not scored, or on another number of rows."""
        score, before = self.scores.get(key), self.base.scores.get(key) if self.base else None
        if score is None or before is None or score.value is None or before.value is None or score.n != before.n:
            return None
        return score.value - before.value

    def clearly_differs(self, key: str) -> bool:
        """Whether its 95 % interval and that of base do not overlap."""
        score, before = self.scores.get(key), self.base.scores.get(key) if self.base else None
        if score is None or before is None or score.of_banks:
            return False
        (low, high), (base_low, base_high) = score.bounds, before.bounds
        if low is None or high is None or base_low is None or base_high is None:
            return False
        return low > base_high or high < base_low


def systems_of(runs: Sequence[Run]) -> list[System]:
    """The columns: base models first, then local, federated, centralized and evaluated adapters."""
    adapters: list[System] = []
    local: list[System] = []
    for run in runs:
        for label, metrics in run.scores.items():
            remote = remote_model(run, label)
            if (label == "base" and not remote) or not metrics:
                continue
            if label == "best" and metrics == run.scores.get("final"):
                continue
            scores = {key: Score((item,), (Source(run, label),)) for key, item in metrics.items()}
            heading = remote if remote and label in ("base", "final") else _heading(run, label)
            detail = f"{remote}, answered by a server, {run.name}" if remote else run.name
            system = System(run.mode, heading, detail, remote or run.model, scores)
            (local if run.mode == "local" else adapters).append(system)
    order = list(MODES)
    adapters.sort(key=lambda system: order.index(system.kind) if system.kind in order else len(order))
    return _with_slots([*_bases(runs), *_locals(local), *_with_distinct_headings(adapters)])


def remote_model(run: Run, label: str) -> str:
    """The name of the model that a server answered for; "" for a model that ran here."""
    model = run.evaluations[label].model if label in run.evaluations else {}
    return str(model.get("model") or "a remote model") if model.get("url") else ""


def _heading(run: Run, label: str) -> str:
    mode = MODES.get(run.mode, run.mode)
    if label == "final":
        return mode
    if label == "best":
        best = best_round(run)
        return f"{mode} best" + ("" if best is None else f" (round {best})")
    return label


def _bases(runs: Sequence[Run]) -> list[System]:
    """One base column for each model; a figure is the first that any run of it has."""
    scores: dict[str, dict[str, Score]] = {}
    for run in runs:
        if remote_model(run, "base"):
            continue
        for key, metrics in run.scores.get("base", {}).items():
            scores.setdefault(run.model, {}).setdefault(key, Score((metrics,), (Source(run, "base"),)))
    several = len(scores) > 1
    return [System("base", model if several else "Base", model, model, found) for model, found in scores.items()]


def _locals(local: Sequence[System]) -> list[System]:
    """The banks that trained alone as one column, their mean."""
    if len(local) < 2:
        return list(local)
    keys = dict.fromkeys(key for system in local for key in system.scores)
    # A mean over some of the banks would not be comparable with the next row's.
    scores = {
        key: _mean_of([system.scores[key] for system in local])
        for key in keys
        if all(key in system.scores for system in local)
    }
    return [System("local", "Local", f"mean of {len(local)} banks alone", local[0].model, scores)]


def _mean_of(scores: Sequence[Score]) -> Score:
    return Score(sum((score.metrics for score in scores), ()), sum((score.sources for score in scores), ()))


def _with_distinct_headings(systems: Sequence[System]) -> list[System]:
    headings = [system.heading for system in systems]
    return [
        replace(system, heading=f"{system.heading} {headings[:index].count(system.heading) + 1}")
        if headings.count(system.heading) > 1
        else system
        for index, system in enumerate(systems)
    ]


BASE_SLOTS = (4, 7, 6)
"""Hollow marks for what was not trained; the trained systems take the filled ones."""
ADAPTER_SLOTS = (0, 1, 2, 3, 5)


def _with_slots(systems: Sequence[System]) -> list[System]:
    """The systems with their marks, and each with its base, which comes before it."""
    slots = {True: itertools.cycle(BASE_SLOTS), False: itertools.cycle(ADAPTER_SLOTS)}
    bases: dict[str, System] = {}
    found = []
    for system in systems:
        is_base = system.kind == "base"
        found.append(replace(system, slot=next(slots[is_base]), base=None if is_base else bases.get(system.model)))
        if is_base:
            bases[system.model] = found[-1]
    return found
