"""Who a bank is and what it decides itself, from its Flower node config: it wins over what any server asks for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.config.dataset import ColumnsConfig
from fedfinlora.deployment.bank_settings import declared_sizes, read_settings
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import UserError
from fedfinlora.privacy.history import history_file
from fedfinlora.privacy.ledger import ledger_root
from fedfinlora.privacy.randomness import noise_is_reproducible
from fedfinlora.train.trainer_names import NO_TRAINER, NamedTrainer, trainer_of_environment
from fedfinlora.wire.messages import BANK_NAME, REVEALABLE, BankError


@dataclass(frozen=True)
class BankFacts:
    """What the bank itself decides, from its Flower node config; it wins over what the server asks for."""

    name: str
    index: int
    """Which part of a simulated data set is this bank's."""
    banks: int
    """In how many parts a simulated data set is divided; 0 = the bank has its own rows under `data_path`."""
    data_path: str
    state_folder: Path
    ledger_folder: Path = field(default_factory=ledger_root)
    """Where what was spent on each row is written, for all runs and all banks of this machine together."""
    budget_epsilon: float = 0.0
    """The bank's own limit on what any row may spend over all runs; 0 = that of the run, if it has one."""
    declared_rows: tuple[str, ...] = ()
    """TASK:ROWS, public and rounded: used instead of the bank's row counts in private rounds. () = its own counts,
    rounded.
    """
    delta: float = 0.0
    """0 = min(1e-5, N^-1.2) with N the declared rows; a smaller one is used, also one from the request."""
    min_units: int = 0
    """Fewest units of a private round."""
    min_rows: int = 0
    """Fewest rows of any round, and fewest that the steps of one without the bank's own noise take."""
    reproducible_noise: bool = False
    """For tests: all private draws come from the run's seed. Such rounds are booked as rounds without noise."""
    policy: Policy | None = None
    """What may run here; None = anything."""
    policy_sha256: str = ""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """How the columns of the bank's own files are called; what the server names does not count."""
    rank: int = 0
    """Ranks that the bank trains, of bank.yaml; 0 = as many as the run has."""
    trainer: NamedTrainer = NO_TRAINER
    """What trains in the place of our own loop: of bank.yaml, in a simulation of who started it; never of a request."""

    @property
    def deployed(self) -> bool:
        """Whether this is a bank with rows of its own, not a part of a simulated data set."""
        return self.policy is not None or self.banks == 0

    @property
    def reveal(self) -> tuple[str, ...]:
        """The figures that may leave with a delta, besides those that always do."""
        return self.policy.reveal if self.policy else REVEALABLE

    @property
    def history_file(self) -> Path:
        """Where a bank with a policy writes down what ran."""
        return history_file(self.state_folder, self.name)


def bank_facts(node_config: Mapping[str, Any]) -> BankFacts:
    """Read the node config: partition-id and num-partitions (Flower's simulation), or bank, data-path, state-dir,
    ledger-dir, budget-epsilon, declared-rows ("fpb:1200,fiqa:400"), delta, min-units, min-rows, rank and, for tests,
    reproducible-noise. `settings`, a bank.yaml, takes the place of all that it can say and brings the policy.
    """
    policy, policy_sha256, columns, trainer = None, "", ColumnsConfig(), NO_TRAINER
    if "settings" in node_config:
        try:
            own, policy_sha256 = read_settings(Path(str(node_config["settings"])))
        except UserError as error:
            raise BankError("config", str(error)) from error
        policy, columns = own.policy, own.columns
        if own.trainer:
            trainer = NamedTrainer(own.trainer, str(Path(str(node_config["settings"])).parent.absolute()))
        node_config = {
            **node_config, "bank": own.name, "data-path": own.data, "budget-epsilon": own.budget_epsilon,
            "delta": own.delta,
            "declared-rows": ",".join(own.declared_rows), "min-units": own.min_units, "min-rows": own.min_rows,
            "rank": own.rank,
        }  # fmt: skip
    try:
        index, parts = int(node_config.get("partition-id", 0)), int(node_config.get("num-partitions", 1))
    except (TypeError, ValueError) as error:
        raise BankError("config", "the node config's partition-id and num-partitions must be whole numbers") from error
    data_path = str(node_config.get("data-path", ""))
    name = str(node_config.get("bank", f"bank-{index}"))
    if not BANK_NAME.fullmatch(name):
        raise BankError(
            "config", f"the node config's bank={name!r} is not a plain name of letters, digits, '.', '_' and '-'"
        )
    banks = 0 if data_path else parts
    home = Path.home() / ".fedfinlora"
    state = node_config.get("state-dir", os.environ.get("FEDFINLORA_BANK_STATE") or home / "banks")
    ledger = node_config.get("ledger-dir", ledger_root())
    budget, delta = _number(node_config, "budget-epsilon"), _number(node_config, "delta")
    min_units, min_rows = int(_number(node_config, "min-units")), int(_number(node_config, "min-rows"))
    declared = tuple(entry for entry in str(node_config.get("declared-rows", "")).split(",") if entry)
    try:
        declared_sizes(declared)
    except UserError as error:
        raise BankError("config", str(error)) from error
    if delta >= 1:
        raise BankError("config", "the node config's delta must be below 1")
    reproducible = str(node_config.get("reproducible-noise", "")).lower() in ("true", "1") or noise_is_reproducible()
    if policy is None and not data_path:
        trainer = trainer_of_environment()
    state, ledger = Path(str(state)).expanduser(), Path(str(ledger)).expanduser()
    return BankFacts(
        name, index, banks, data_path, state, ledger, budget, declared, delta, min_units, min_rows, reproducible,
        policy, policy_sha256, columns, int(_number(node_config, "rank")), trainer,
    )  # fmt: skip


def _number(node_config: Mapping[str, Any], key: str) -> float:
    """A number of the node config that is 0 (none) or more. BankError for anything else."""
    try:
        value = float(node_config.get(key, 0.0))
    except (TypeError, ValueError) as error:
        raise BankError("config", f"the node config's {key} must be a number") from error
    if not (value >= 0 and math.isfinite(value)):
        raise BankError("config", f"the node config's {key} must be 0 (none) or more")
    return value
