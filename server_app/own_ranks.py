"""Banks that train ranks of their own (rank in bank.yaml): what they announce before the first round becomes part of
the run's configuration, so that every bank knows it and each update is checked against it
(`fedfinlora.train.own_columns.foreign_rank`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MIXED_RANK_RULES

log = logging.getLogger("fedfinlora.server")


def with_announced(config: Config, ranks: Mapping[str, int]) -> Config:
    """The configuration with the announced `ranks` (bank -> rank) in strategy.ranks.

    A bank whose rank the run cannot give it is named in a warning: its own rule `rank` refuses each round, and an
    update of another rank is rejected. No single bank stops the others.
    """
    strategy, known = config.strategy, config.strategy.declared_ranks()
    more = {}
    for bank, rank in sorted(ranks.items()):
        if rank == config.rank_of(bank):
            continue
        own = f"{bank} trains rank {rank} (rank in its bank.yaml), and "
        if strategy.name not in MIXED_RANK_RULES:
            why = (
                f"strategy={strategy.name} gives every bank rank {config.trained_rank}. Choose strategy="
                f"{', '.join(MIXED_RANK_RULES)}, or peft.rank={rank}"
            )
        elif bank in known or config.resume:
            what = "the run began with" if config.resume else "strategy.ranks has"
            why = f"{what} {config.rank_of(bank)} for it. Change one of them"
        elif rank > config.trained_rank:
            why = f"the run's banks train {config.trained_rank} at most. Raise peft.rank"
        else:
            more[bank] = rank
            continue
        log.warning("left out: %s%s.", own, why)
    entries = (*strategy.ranks, *(f"{bank}:{rank}" for bank, rank in more.items()))
    return replace(config, strategy=replace(strategy, ranks=entries)) if more else config
