"""bank.yaml: a bank's settings with its policy, read and written."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fedfinlora.config.dataset import ColumnsConfig
from fedfinlora.config.values import build_group, to_plain_group
from fedfinlora.deployment.hand_written import read_yaml, yaml_text
from fedfinlora.deployment.policy import LARGEST_DELTA, Policy
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.train.trainer_names import checked_name
from fedfinlora.wire.messages import BANK_NAME

SETTINGS = "bank.yaml"
"""In the bank's folder."""
FEWEST = 20
"""Default of min_units and min_rows: twice the ten persons below which statistical offices publish no figure, and fewer
than any task of the bundled sample has, so that every documented command runs. The guarantee does not rest on it."""


@dataclass(frozen=True)
class BankSettings:
    """bank.yaml."""

    version: int = 1
    name: str = ""
    """How the bank is called in rounds and reports."""
    data: str = ""
    """Folder of its rows: FinLoRA's layout, or any files of rows (docs/data.md lists the forms)."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """How the columns (or keys) of these files are called. No request can name others."""
    coordinator: str = ""
    """HOST:PORT of the aggregator."""
    declared_rows: tuple[str, ...] = ()
    """How many rows of each task the bank has, as TASK:ROWS, and how many customers, as customers:NUMBER, rounded, so
    that they may be known: noise and sampling rate of private rounds follow from these numbers and not from the exact
    ones, which a server could else read off the noise. Change them when the data has grown by half; a change does not
    touch what was spent."""
    budget_epsilon: float = 8.0
    """The most that may be spent on any row (or customer), over all runs and for ever. A row that has spent it is
    excluded from later rounds. With a budget every round that would leave without the bank's own noise is refused. 0 =
    no limit: rounds without noise may run, and are booked as infinite."""
    delta: float = 0.0
    """Probability with which the guarantee may fail; 0 = min(1e-5, N^-1.2) with N all declared rows. A smaller one,
    here or in the request, is used; a larger one in the request is not."""
    min_units: int = FEWEST
    """Fewest units, rows or customers as privacy.unit says, on which a private round may be trained; with fewer it is
    refused."""
    min_rows: int = FEWEST
    """Fewest rows on which any round may be trained, private or not: a request may name single tasks and
    train.max_rows. In a round without the bank's own noise the steps themselves must take as many: from a step on one
    row, that row can be read. 0 = no limit."""
    rank: int = 0
    """Ranks that the bank trains where a run allows each bank its own (strategy=hetlora, flexlora or flora); it says so
    before the first round. A request for another rank is refused. 0 = as many as the run has.
    """
    trainer: str = ""
    """The bank's own training script in the place of the built-in loop, as MODULE:FUNCTION: a module in the folder of
    this file, or an installed one (docs/running.md). It is not used in rounds under privacy=example or dp_lora, which
    are then refused. No request can name one. Its code is not part of this file's hash; restart the bank when it has
    changed."""
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ConfigError(f"bank.yaml has version {self.version}; this code reads version 1.")
        if not BANK_NAME.fullmatch(self.name):
            raise ConfigError(f"name: {self.name!r} is not a plain name of letters, digits, '.', '_' and '-'.")
        if not Path(self.data).is_absolute():
            raise ConfigError(f"data: {self.data!r} must be an absolute path.")
        if not 0 <= self.budget_epsilon < math.inf:
            raise ConfigError(f"budget_epsilon must be 0 (no limit) or a number above it, not {self.budget_epsilon}.")
        if not 0 <= self.delta <= LARGEST_DELTA:
            raise ConfigError(
                f"delta must be 0 (min(1e-5, N^-1.2)) or a number above it, at most {LARGEST_DELTA:g}, not "
                f"{self.delta}."
            )
        for name in ("min_units", "min_rows", "rank"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (no limit) or more, not {getattr(self, name)}.")
        declared_sizes(self.declared_rows)
        if self.trainer:
            checked_name(self.trainer)


def declared_sizes(entries: Iterable[str]) -> dict[str, int]:
    """Task -> rows of a bank's declared_rows; under "customers" their number. ConfigError.

    >>> declared_sizes(["fpb:1200", "fiqa:400"])
    {'fpb': 1200, 'fiqa': 400}
    """
    found: dict[str, int] = {}
    for entry in entries:
        task, _, rows = entry.rpartition(":")
        if not task or "," in task or task in found or not re.fullmatch("[1-9][0-9]{0,14}", rows):
            raise ConfigError(
                f"declared_rows: {entry!r} must be TASK:ROWS, each task once, without comma, and a whole number of "
                "rows above 0."
            )
        found[task] = int(rows)
    return found


def rounded_rows(count: int) -> int:
    """A number of rows to two significant digits, halves up: what may be known of it.

    >>> [rounded_rows(count) for count in (7, 96, 104, 1672, 4846, 99500)]
    [7, 96, 100, 1700, 4800, 100000]
    """
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return (count + unit // 2) // unit * unit


def read_settings(file: Path) -> tuple[BankSettings, str]:
    """(bank.yaml, SHA-256 of the file). ConfigError that names the key."""
    try:
        content = file.read_bytes()
        values = read_yaml(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). `bank init` writes it.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return build_group(BankSettings, values), hashlib.sha256(content).hexdigest()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def settings_text(settings: BankSettings) -> str:
    """bank.yaml with each key's meaning above it."""
    import inspect

    lines = [
        (
            "# What may run on this bank's rows. The hash of this file goes with every reply. A change holds from the "
            "next request on; one of"
        ),
        "# `coordinator` needs a restart of the bank.",
    ]
    for cls, values, indent in (
        (BankSettings, to_plain_group(settings), ""),
        (Policy, to_plain_group(settings.policy), "  "),
    ):
        meanings = dict(re.findall(r"^    (\w+): [^\n]*\n    \"\"\"(.*?)\"\"\"", inspect.getsource(cls), re.S | re.M))
        for key, value in values.items():
            if meanings.get(key):
                lines += [f"{indent}# {' '.join(part.split())}" for part in meanings[key].splitlines()]
            shown = "" if key == "policy" else f" {yaml_text(value)}"
            lines.append(f"{indent}{key}:{shown}")
    return "\n".join(lines) + "\n"
