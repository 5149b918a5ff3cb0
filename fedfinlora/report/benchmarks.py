"""What the report must know of the benchmarks and of the published figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

GROUPS = {
    "general": "General financial tasks",
    "certificate": "Financial certificates",
    "reporting": "Financial reporting",
    "analysis": "Financial statement analysis",
    "flare": "FLARE",
    "other": "Other benchmarks",
}


@dataclass(frozen=True)
class BenchmarkInfo:
    """One benchmark, from the caller's catalogue."""

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
    """Heading -> what it means."""
    band: Sequence[str] = ()
    """Headings whose range the charts show in grey."""
    pin: str = ""
    """Heading that the charts show as a stroke."""
    federated_keys: Sequence[str] = ()
    """The benchmarks of the published federated run."""
    federated_means: Mapping[str, float] = field(default_factory=dict)
    """System -> the published mean over these benchmarks, percent."""


def by_group(catalogue: Sequence[BenchmarkInfo]) -> dict[str, list[BenchmarkInfo]]:
    """Group title -> its benchmarks, without empty groups."""
    found: dict[str, list[BenchmarkInfo]] = {title: [] for title in GROUPS.values()}
    for item in catalogue:
        found[GROUPS.get(item.group, GROUPS["other"])].append(item)
    return {title: items for title, items in found.items() if items}


def with_unlisted(catalogue: Sequence[BenchmarkInfo], scored: Iterable[str]) -> list[BenchmarkInfo]:
    """The catalogue, and after it what was scored but is not in it."""
    listed = {benchmark.key for benchmark in catalogue}
    extra = dict.fromkeys(key for key in scored if key not in listed)
    return [*catalogue, *(BenchmarkInfo(key, key, "other", {}) for key in extra)]


def published_points(benchmark: BenchmarkInfo, column: str) -> float | None:
    """What a published figure adds to FinLoRA's averages, in percent: accuracy, else 100 x BERTScore F1."""
    accuracy, f1 = benchmark.published.get(column, (None, None))
    if accuracy is not None:
        return accuracy
    return None if f1 is None else 100 * f1
