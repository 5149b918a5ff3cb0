"""Which systems the report compares, and the arithmetic of its score tables; nothing here knows of HTML.

A system is a column: the base model (from whichever run has it), a federated, centralized or evaluated adapter, another model, or
the mean of the banks that trained alone. Families of figures stay apart: accuracy on parsed answers, FinLoRA's own rules, and
log-probability scoring of labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedfinlora.report.reading import Run, best_round
from fedfinlora.run.evaluation import BenchmarkMetrics, RowRecord

GROUPS = {
    "general": "General financial tasks",
    "certificate": "Financial certificates",
    "reporting": "Financial reporting",
    "analysis": "Financial statement analysis",
    "other": "Other benchmarks",
}
MODES = {"federated": "Federated", "centralized": "Centralized", "local": "Local", "evaluate": "Adapter"}
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class BenchmarkInfo:
    """What the report must know of a benchmark; the caller takes it from the catalogue of benchmarks."""

    key: str
    title: str
    group: str
    """general, certificate, reporting or analysis."""
    published: Mapping[str, tuple[float | None, float | None]]
    """Column heading -> (accuracy in percent, F1 or BERTScore F1 as a fraction), None where nothing was published."""
    published_models: Mapping[str, str] = field(default_factory=dict)
    """Column heading -> whose figure it is, where that differs from row to row."""
    notes: str = ""
    """Known flaws of the data."""


@dataclass(frozen=True)
class Published:
    """What the columns of `BenchmarkInfo.published` are."""

    titles: Mapping[str, str] = field(default_factory=dict)
    """Heading -> what it stands for."""
    band: Sequence[str] = ()
    """Headings whose range the figures show in grey."""
    pin: str = ""
    """Heading that the figures show as a stroke."""
    federated_keys: Sequence[str] = ()
    """The benchmarks of the published federated run."""
    federated_means: Mapping[str, float] = field(default_factory=dict)
    """System -> the published mean over these benchmarks, percent."""


@dataclass(frozen=True)
class Source:
    """Where a system's figures come from: one evaluation of one run."""

    run: Run
    label: str

    def records(self, key: str) -> Iterator[RowRecord]:
        """The evaluated rows of a benchmark."""
        return self.run.records(self.label, key)


@dataclass(frozen=True)
class Score:
    """One system on one benchmark. Fractions from 0 to 1; None where undefined."""

    n: int
    value: float | None
    """Accuracy on parsed answers, or BERTScore F1 where `bertscore`."""
    low: float | None
    high: float | None
    """The 95 % interval of `value`; for the mean of several banks, the lowest and the highest of them."""
    unparsed_share: float | None
    finlora_accuracy: float | None
    finlora_f1: float | None
    """FinLoRA's weighted F1, or BERTScore F1."""
    ambiguous: int
    bertscore: bool
    encoder: str
    """BERTScore's encoder and layer."""
    spread_of_banks: bool = False
    """`low` and `high` are the worst and the best bank, not a 95 % interval."""
    finlora_bounds: Bounds = (None, None)
    """The 95 % interval of `finlora_accuracy`, or of BERTScore F1."""
    labels_accuracy: float | None = None
    """Log-probability scoring: the share of rows whose most probable label is right. Never mixed with generated answers."""
    labels_bounds: Bounds = (None, None)
    parts: tuple[tuple[Source, BenchmarkMetrics], ...] = ()
    """Where the figures come from and all of them; several for the mean of several banks."""

    @property
    def finlora_points(self) -> float | None:
        """What enters FinLoRA's averages, as a fraction: accuracy, or BERTScore F1 where there is no accuracy."""
        return self.finlora_f1 if self.bertscore else self.finlora_accuracy


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


def score_of(metrics: BenchmarkMetrics, source: Source | None = None) -> Score:
    """What the tables show of one benchmark's metrics."""
    bertscore, n = metrics.is_bertscored, metrics.n
    low, high = metrics.bounds("bertscore_f1" if bertscore else "accuracy")
    share, f1 = metrics.value("unparsed_share"), metrics.value("bertscore_f1")
    layer = "" if metrics.bertscore_layer is None else f", layer {metrics.bertscore_layer}"
    return Score(
        n=n,
        value=f1 if bertscore else metrics.value("accuracy"),
        low=low,
        high=high,
        unparsed_share=metrics.unparsed / n if share is None and metrics.unparsed is not None and n else share,
        finlora_accuracy=None if bertscore else metrics.value("finlora_accuracy"),
        finlora_f1=f1 if bertscore else metrics.value("finlora_f1"),
        ambiguous=metrics.finlora_ambiguous or 0,
        bertscore=bertscore,
        encoder=(metrics.bertscore_model or "unnamed encoder") + layer,
        finlora_bounds=(low, high) if bertscore else metrics.bounds("finlora_accuracy"),
        labels_accuracy=metrics.value("labels_accuracy"),
        labels_bounds=metrics.bounds("labels_accuracy"),
        parts=() if source is None else ((source, metrics),),
    )


def mean_of_banks(scores: Sequence[Score]) -> Score:
    """The mean over banks that trained alone; `low` and `high` are the worst and the best bank."""

    def spread(values: Iterable[float | None]) -> Bounds:
        known = [value for value in values if value is not None]
        return min(known, default=None), max(known, default=None)

    low, high = spread(score.value for score in scores)
    first = scores[0]
    return Score(
        n=max(score.n for score in scores),
        value=mean(score.value for score in scores),
        low=low,
        high=high,
        unparsed_share=mean(score.unparsed_share for score in scores),
        finlora_accuracy=mean(score.finlora_accuracy for score in scores),
        finlora_f1=mean(score.finlora_f1 for score in scores),
        ambiguous=sum(score.ambiguous for score in scores),
        bertscore=first.bertscore,
        encoder=first.encoder,
        spread_of_banks=True,
        finlora_bounds=spread(score.finlora_points for score in scores),
        labels_accuracy=mean(score.labels_accuracy for score in scores),
        labels_bounds=spread(score.labels_accuracy for score in scores),
        parts=tuple(part for score in scores for part in score.parts),
    )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that there are, or None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
            scores = {key: score_of(item, Source(run, label)) for key, item in metrics.items()}
            heading = remote if remote and label in ("base", "final") else _heading(run, label)
            detail = f"{remote}, answered by a server, {run.name}" if remote else run.name
            system = System(run.mode, heading, detail, remote or run.model, scores)
            (local if run.mode == "local" else adapters).append(system)
    order = list(MODES)
    adapters.sort(key=lambda system: order.index(system.kind) if system.kind in order else len(order))
    return [*_bases(runs), *_locals(local), *_with_distinct_headings(adapters)]


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
    """One base column for each model; a benchmark's figure is the first that any run of that model has."""
    scores: dict[str, dict[str, Score]] = {}
    for run in runs:
        if remote_model(run, "base"):
            continue
        for key, metrics in run.scores.get("base", {}).items():
            scores.setdefault(run.model, {}).setdefault(key, score_of(metrics, Source(run, "base")))
    several = len(scores) > 1
    return [System("base", model if several else "Base", model, model, found) for model, found in scores.items()]


def _locals(local: Sequence[System]) -> list[System]:
    """The banks that trained alone as one column, their mean; one such bank stands for itself."""
    if len(local) < 2:
        return list(local)
    keys = dict.fromkeys(key for system in local for key in system.scores)
    # A mean over some of the banks would not be comparable with the next row's.
    scores = {
        key: mean_of_banks([system.scores[key] for system in local])
        for key in keys
        if all(key in system.scores for system in local)
    }
    return [System("local", "Local", f"mean of {len(local)} banks alone", local[0].model, scores)]


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


def system_slots(systems: Sequence[System]) -> list[int]:
    """The mark and colour of each system: hollow for base models, filled for adapters."""
    bases, adapters, slots = 0, 0, []
    for system in systems:
        if system.kind == "base":
            slots.append(BASE_SLOTS[bases % len(BASE_SLOTS)])
            bases += 1
        else:
            slots.append(ADAPTER_SLOTS[adapters % len(ADAPTER_SLOTS)])
            adapters += 1
    return slots


def base_of(system: System, systems: Sequence[System]) -> System | None:
    """The base column that a system started from, if it was scored."""
    return next((other for other in systems if other.kind == "base" and other.model == system.model), None)


def change(score: Score | None, base: Score | None) -> float | None:
    """The gain over the base model on as many rows, or None where the two cannot be compared."""
    if score is None or base is None or score.value is None or base.value is None or score.n != base.n:
        return None
    return score.value - base.value


def intervals_apart(score: Score, base: Score) -> bool:
    """Whether the two 95 % intervals do not overlap: a cautious sign that a change is more than noise."""
    if score.low is None or score.high is None or base.low is None or base.high is None or score.spread_of_banks:
        return False
    return score.low > base.high or score.high < base.low


def common_accuracy_keys(systems: Sequence[System], keys: Iterable[str]) -> list[str]:
    """The benchmarks on which every system has an accuracy: the only ones over which their means compare."""
    return [
        key
        for key in keys
        if systems
        and all(
            key in system.scores and system.scores[key].value is not None and not system.scores[key].bertscore
            for system in systems
        )
    ]


def common_finlora_keys(systems: Sequence[System], keys: Iterable[str]) -> list[str]:
    """The benchmarks on which every system has FinLoRA's figure, the two BERTScore sets included as FinLoRA does."""
    return [
        key
        for key in keys
        if systems and all(key in system.scores and system.scores[key].finlora_points is not None for system in systems)
    ]


def mean_accuracy(system: System, keys: Iterable[str]) -> float | None:
    """The mean accuracy over the benchmarks `keys`."""
    return mean(system.scores[key].value for key in keys)


def labels_systems(systems: Sequence[System]) -> list[System]:
    """The systems that were scored by the log-probabilities of labels."""
    return [system for system in systems if any(score.labels_accuracy is not None for score in system.scores.values())]


def mean_accuracy_bounds(system: System, keys: Sequence[str]) -> Bounds:
    """The 95 % interval of `mean_accuracy`, its sets taken as independent; (None, None) if one of them has no interval.

    MOVER (Zou and Donner 2008): mean - sqrt(sum (value - low)^2) / k, and the same with high - value above.
    """
    scores = [system.scores[key] for key in keys]
    below = above = 0.0
    for score in scores:
        if score.value is None or score.low is None or score.high is None or score.spread_of_banks:
            return None, None
        below += (score.value - score.low) ** 2
        above += (score.high - score.value) ** 2
    middle = mean(score.value for score in scores)
    if middle is None:
        return None, None
    return middle - math.sqrt(below) / len(scores), middle + math.sqrt(above) / len(scores)


def mean_finlora(system: System, keys: Iterable[str]) -> float | None:
    """The mean over the benchmarks `keys` as FinLoRA averages."""
    return mean(system.scores[key].finlora_points for key in keys)


def published_points(benchmark: BenchmarkInfo, column: str) -> float | None:
    """What a published figure adds to FinLoRA's averages, in percent: accuracy, else 100 x BERTScore F1."""
    accuracy, f1 = benchmark.published.get(column, (None, None))
    if accuracy is not None:
        return accuracy
    return None if f1 is None else 100 * f1


def group_of(benchmark: BenchmarkInfo) -> str:
    """A key of GROUPS."""
    return benchmark.group if benchmark.group in GROUPS else "other"


def by_group(catalogue: Sequence[BenchmarkInfo]) -> dict[str, list[BenchmarkInfo]]:
    """Group title -> its benchmarks, without empty groups."""
    grouped = {title: [item for item in catalogue if group_of(item) == group] for group, title in GROUPS.items()}
    return {title: items for title, items in grouped.items() if items}


def with_unlisted(catalogue: Sequence[BenchmarkInfo], systems: Sequence[System]) -> list[BenchmarkInfo]:
    """The catalogue, and after it every benchmark that was scored but is not in it."""
    listed = {benchmark.key for benchmark in catalogue}
    extra = dict.fromkeys(key for system in systems for key in system.scores if key not in listed)
    return [*catalogue, *(BenchmarkInfo(key, key, "other", {}) for key in extra)]
