"""Everything that the report shows, read once: the runs, the systems in them, and what is known of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedfinlora.report.benchmarks import BenchmarkInfo, Published, by_group, with_unlisted
from fedfinlora.report.reading import Run, read_runs
from fedfinlora.report.score import Score
from fedfinlora.report.systems import System, systems_of


@dataclass(frozen=True)
class Content:
    """What every section of the report chooses from."""

    runs: Sequence[Run]
    systems: Sequence[System]
    catalogue: Sequence[BenchmarkInfo]
    """With the benchmarks that were scored but are not in the caller's."""
    published: Published

    @cached_property
    def groups(self) -> Mapping[str, Sequence[BenchmarkInfo]]:
        return by_group(self.catalogue)

    @cached_property
    def titles(self) -> Mapping[str, str]:
        return {item.key: item.title for item in self.catalogue}

    @cached_property
    def label_systems(self) -> Sequence[System]:
        """The systems that were scored by the log-probabilities of labels."""
        return [one for one in self.systems if any(one.labels_accuracy(key) is not None for key in one.scores)]

    @cached_property
    def scores(self) -> Sequence[Score]:
        return [score for system in self.systems for score in system.scores.values()]

    @cached_property
    def encoders(self) -> Sequence[str]:
        """Of the BERTScores."""
        return list(dict.fromkeys(score.encoder for score in self.scores if score.bertscore))

    def is_bertscored(self, key: str) -> bool:
        """Whether a benchmark has BERTScores instead of accuracies."""
        return any(key in system.scores and system.scores[key].bertscore for system in self.systems)

    def ns(self, key: str) -> list[int]:
        """How many answers of a benchmark were scored: the least and the most, or one number."""
        ns = sorted({system.scores[key].n for system in self.systems if key in system.scores})
        return [ns[0], *ns[1:][-1:]] if ns else []

    @cached_property
    def skipped(self) -> Mapping[str, str]:
        """Benchmark key -> why it was not scored, by the first such run."""
        return {key: reason for run in reversed(self.runs) for key, reason in run.skipped.items()}


def read_content(paths: Sequence[Path], catalogue: Sequence[BenchmarkInfo], published: Published) -> Content:
    """The content of run folders. UserError where a path is none."""
    runs = read_runs(paths)
    systems = systems_of(runs)
    return Content(runs, systems, with_unlisted(catalogue, (key for one in systems for key in one.scores)), published)
