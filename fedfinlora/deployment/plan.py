"""A coordinator's plan: the configuration that would go with every request of a run, and the hash of the code.

`coordinator plan` writes it, `bank try` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import REPORTED_WEIGHTS
from fedfinlora.config.values import build, to_plain
from fedfinlora.config.words import typed_keys
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.head import SHA256
from fedfinlora.run.origin import source_fingerprint

VERSION = 1
MAX_SHARE = 0.5
"""strategy.max_share of a deployment where nothing else is said."""
LARGEST_BYTES = 2**20
WEIGHTING, SIZES, SHARE, HELD_OUT = (
    "strategy.weighting",
    "strategy.sizes",
    "strategy.max_share",
    "train.holdout_max_rows",
)


@dataclass(frozen=True)
class Plan:
    config: Config
    source_sha256: str
    """Of the coordinator's code, as its requests say it."""


def deployment_config(overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """(the configuration of a run with banks that are not ours, what was decided for the user in sentences).

    A bank's weight must not be what it claims: where strategy.weighting is not set, declared sizes are used, else all
    banks weigh the same. strategy.weighting=rows and train.holdout_max_rows must be typed.
    """
    typed, said = typed_keys(overrides), list[str]()
    by_size = [f"{WEIGHTING}=declared"] if SIZES in typed and WEIGHTING not in typed else []
    config = compose([*overrides, *by_size])
    strategy, train = config.strategy, config.train
    if WEIGHTING not in typed and strategy.weighting in REPORTED_WEIGHTS:
        strategy = replace(strategy, weighting="equal")
        said.append(
            f"all banks weigh the same ({WEIGHTING}=equal): declare their sizes with {SIZES}=[BANK:ROWS,…] to weigh "
            "them"
        )
    if SHARE not in typed and strategy.max_share == 1.0:
        strategy = replace(strategy, max_share=MAX_SHARE)
    if HELD_OUT not in typed and train.holdout_max_rows:
        train = replace(train, holdout_max_rows=0)
        said.append(
            f"no held-out rows are scored ({HELD_OUT}=0): a bank refuses fewer than its min_rows, so ask for 64, say, "
            "if it allows them"
        )
    return replace(config, strategy=strategy, train=train), said


def plan_text(overrides: Sequence[str], banks: int) -> tuple[str, list[str]]:
    """(the plan of `coordinator run` with these words, what was decided for the user). `banks` 0 = as the words say."""
    config, said = deployment_config(overrides)
    config = replace(config, banks=banks or config.banks)
    values = {"version": VERSION, "source_sha256": source_fingerprint(), "config": to_plain(config)}
    return json.dumps(values, indent=2, allow_nan=False) + "\n", said


def read_plan(file: Path) -> Plan:
    """ConfigError for a file that is no plan."""
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise ConfigError(f"{file} is larger than a plan can be.")
        values: Any = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). `coordinator plan` writes it.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} is not the JSON of a plan ({type(error).__name__}). `coordinator plan` writes it."
        ) from error
    if (
        not isinstance(values, dict)
        or set(values) != {"version", "source_sha256", "config"}
        or values["version"] != VERSION
    ):
        raise ConfigError(f"{file} is no plan of version {VERSION}. `coordinator plan` writes it.")
    source = values["source_sha256"]
    if not isinstance(source, str) or not SHA256.fullmatch(source):
        raise ConfigError(f"{file}: source_sha256 is no hash of 64 digits.")
    try:
        return Plan(build(values["config"]), source)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
