"""The best round so far by its public validation score, and when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedfinlora.config.schema import Config
from fedfinlora.run.records import RoundLine


@dataclass(frozen=True)
class Selection:
    """What the validations of a run up to some round say."""

    best_round: int | None = None
    """The first round with the highest score; None before any was measured."""
    best_score: float | None = None
    since: int = 0
    """Validations in a row, up to now, without a strictly better score."""

    def improves(self, score: float | None) -> bool:
        """Whether a score is strictly better than all before it."""
        return score is not None and (self.best_score is None or score > self.best_score)

    def after(self, line: RoundLine) -> Selection:
        """The state after one more round."""
        if line.validation is None:
            return self
        if self.improves(line.validation.score):
            return Selection(line.round, line.validation.score, 0)
        return replace(self, since=self.since + 1)

    def stops(self, patience: int) -> bool:
        """Whether evaluation.patience is used up."""
        return 0 < patience <= self.since


def selection_of(lines: Iterable[RoundLine]) -> Selection:
    """The state after all of these lines."""
    selection = Selection()
    for line in lines:
        selection = selection.after(line)
    return selection


@dataclass(frozen=True)
class Choice:
    """Which adapter became the final one, and why."""

    best_round: int | None
    validation_score: float | None
    """Of the best round."""
    final_round: int | None
    """The round of adapters/final."""
    stopped_early_after_round: int | None


def choice(lines: Sequence[RoundLine], config: Config) -> Choice:
    """What result.json says about it."""
    selection = selection_of(lines)
    last = lines[-1].round if lines else None
    early = selection.stops(config.evaluation.patience) and last is not None and last < config.num_server_rounds
    final = kept_round(selection, config) or last
    return Choice(selection.best_round, selection.best_score, final, last if early else None)


def kept_round(selection: Selection, config: Config) -> int | None:
    """The round whose adapter is to be the final one by evaluation.keep; None = the last."""
    return selection.best_round if config.evaluation.keep == "best" else None
