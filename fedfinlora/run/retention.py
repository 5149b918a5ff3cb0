"""What stays of a run's rounds: a thousand scored rounds of Llama 3.1 8B at rank 8 leave 19 GB of adapters.

Of old rounds the adapter goes and the scored rows; metrics, rounds.jsonl and all that `verify` reads stay.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fedfinlora.config.schema import Config
from fedfinlora.files import unwritable
from fedfinlora.system.numbered import by_number, number_of

METRICS = "metrics.json"


def first_kept(round_number: int, config: Config) -> int:
    """The first round whose adapter and scored rows are kept once `round_number` is closed."""
    return 0 if not config.keep_rounds or config.strategy.keep_deltas else max(0, round_number - config.keep_rounds + 1)


def forget_old_rounds(run: Path, round_number: int, config: Config) -> None:
    """Remove what belongs to rounds before the last `keep_rounds`."""
    first = first_kept(round_number, config)
    if first < 1:
        return
    try:
        for folder in by_number(run / "adapters", "round_*"):
            if number_of(folder) < first:
                shutil.rmtree(folder)
        for kind in (
            "round",
            "validation_round",
        ):  # only the one that is due: thousands need not be looked through after each round
            for file in (run / "eval" / f"{kind}_{first - 1:03d}").glob("*"):
                if file.name != METRICS:
                    file.unlink()
    except OSError as error:
        raise unwritable(run, error) from error
