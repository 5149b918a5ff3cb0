"""Which systems the report compares, and the arithmetic of its score table; nothing here knows of HTML.

A system is a column: the base model (from whichever run has it), a federated, centralized or evaluated adapter, or the mean
of the banks that trained alone. Two families of figures stay apart: accuracy on parsed answers, and FinLoRA's own rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedfinlora.report.markup import number
from fedfinlora.report.reading import Metrics, Run

GROUPS = {
    "general": "General financial tasks",
    "certificate": "Financial certificates",
    "reporting": "Financial reporting",
    "analysis": "Financial statement analysis",
    "other": "Other benchmarks",
}
MODES = {"federated": "Federated", "centralized": "Centralized", "local": "Local", "evaluate": "Adapter"}


@dataclass(frozen=True)
class BenchmarkInfo:
    """What the report must know of a benchmark; the caller takes it from the catalogue of benchmarks."""

    key: str
    title: str
    group: str
    """general, certificate, reporting or analysis."""
    published: Mapping[str, tuple[float | None, float | None]]
    """Column heading -> (accuracy in percent, F1 or BERTScore F1 as a fraction), None where nothing was published."""


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


def score_of(metrics: Metrics) -> Score:
    """Read the metrics of one benchmark as the evaluator writes them."""
    bertscore = "bertscore_f1" in metrics
    n = int(number(metrics.get("n")) or 0)
    unparsed = number(metrics.get("unparsed"))
    share = number(metrics.get("unparsed_share"))
    interval = metrics.get("bertscore_f1_ci95" if bertscore else "accuracy_ci95")
    low, high = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (None, None)
    layer = metrics.get("bertscore_layer")
    f1 = number(metrics.get("bertscore_f1"))
    return Score(
        n=n,
        value=f1 if bertscore else number(metrics.get("accuracy")),
        low=number(low),
        high=number(high),
        unparsed_share=unparsed / n if share is None and unparsed is not None and n else share,
        finlora_accuracy=None if bertscore else number(metrics.get("finlora_accuracy")),
        finlora_f1=f1 if bertscore else number(metrics.get("finlora_f1")),
        ambiguous=int(number(metrics.get("finlora_ambiguous")) or 0),
        bertscore=bertscore,
        encoder=f"{metrics.get('bertscore_model', 'unnamed encoder')}" + ("" if layer is None else f", layer {layer}"),
    )


def mean_of_banks(scores: Sequence[Score]) -> Score:
    """The mean over banks that trained alone; `low` and `high` are the worst and the best bank."""
    values = [score.value for score in scores if score.value is not None]
    first = scores[0]
    return Score(
        n=max(score.n for score in scores),
        value=mean(values),
        low=min(values, default=None),
        high=max(values, default=None),
        unparsed_share=mean(score.unparsed_share for score in scores),
        finlora_accuracy=mean(score.finlora_accuracy for score in scores),
        finlora_f1=mean(score.finlora_f1 for score in scores),
        ambiguous=sum(score.ambiguous for score in scores),
        bertscore=first.bertscore,
        encoder=first.encoder,
        spread_of_banks=True,
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
            if label == "base" or label.startswith("round_") or not metrics:
                continue
            scores = {key: score_of(item) for key, item in metrics.items()}
            heading = MODES.get(run.mode, run.mode) if label == "final" else label
            system = System(run.mode, heading, run.name, run.model, scores)
            (local if run.mode == "local" else adapters).append(system)
    order = list(MODES)
    adapters.sort(key=lambda system: order.index(system.kind) if system.kind in order else len(order))
    return [*_bases(runs), *_locals(local), *_with_distinct_headings(adapters)]


def _bases(runs: Sequence[Run]) -> list[System]:
    """One base column for each model; a benchmark's figure is the first that any run of that model has."""
    scores: dict[str, dict[str, Score]] = {}
    for run in runs:
        for key, metrics in run.scores.get("base", {}).items():
            scores.setdefault(run.model, {}).setdefault(key, score_of(metrics))
    return [System("base", "Base", model, model, found) for model, found in scores.items()]


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
        System(system.kind, f"{system.heading} {headings[:index].count(system.heading) + 1}", *_rest(system))
        if headings.count(system.heading) > 1
        else system
        for index, system in enumerate(systems)
    ]


def _rest(system: System) -> tuple[str, str, Mapping[str, Score]]:
    return system.detail, system.model, system.scores


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
    return mean(system.scores[key].value for key in keys)


def mean_finlora(system: System, keys: Iterable[str]) -> float | None:
    return mean(system.scores[key].finlora_points for key in keys)


def published_points(benchmark: BenchmarkInfo, column: str) -> float | None:
    """What a published figure adds to FinLoRA's averages, in percent: accuracy, else 100 x BERTScore F1."""
    accuracy, f1 = benchmark.published.get(column, (None, None))
    if accuracy is not None:
        return accuracy
    return None if f1 is None else 100 * f1


def with_unlisted(catalogue: Sequence[BenchmarkInfo], systems: Sequence[System]) -> list[BenchmarkInfo]:
    """The catalogue, and after it every benchmark that was scored but is not in it."""
    listed = {benchmark.key for benchmark in catalogue}
    extra = dict.fromkeys(key for system in systems for key in system.scores if key not in listed)
    return [*catalogue, *(BenchmarkInfo(key, key, "other", {}) for key in extra)]
