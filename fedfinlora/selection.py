"""Which round is the best so far by its public validation score, and when to stop: all of it follows from the lines of rounds.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedfinlora.config import Config


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

    def after(self, line: Mapping[str, Any]) -> Selection:
        """The state after one more line of rounds.jsonl."""
        validation = line.get("validation")
        if validation is None:
            return self
        if self.improves(validation["score"]):
            return Selection(int(line["round"]), float(validation["score"]), 0)
        return replace(self, since=self.since + 1)

    def stops(self, patience: int) -> bool:
        """Whether evaluation.patience is used up."""
        return 0 < patience <= self.since


def selection_of(lines: Iterable[Mapping[str, Any]]) -> Selection:
    """The state after all of these lines."""
    selection = Selection()
    for line in lines:
        selection = selection.after(line)
    return selection


def choice(lines: Iterable[Mapping[str, Any]], config: Config) -> dict[str, Any]:
    """What result.json says about it: the best round and its score, the round of adapters/final, and where the run stopped early."""
    listed = list(lines)
    selection = selection_of(listed)
    last = int(listed[-1]["round"]) if listed else None
    early = selection.stops(config.evaluation.patience) and last is not None and last < config.num_server_rounds
    return {
        "best_round": selection.best_round,
        "validation_score": selection.best_score,
        "final_round": kept_round(selection, config) or last,
        "stopped_early_after_round": last if early else None,
    }


def kept_round(selection: Selection, config: Config) -> int | None:
    """The round whose adapter is to be the final one where evaluation.keep says so; None = the last."""
    return selection.best_round if config.evaluation.keep == "best" else None
