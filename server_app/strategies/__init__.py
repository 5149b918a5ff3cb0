"""Server rules by name, and what privacy puts around them; docs/extending.md walks through adding one.

A rule is one file with a `Strategy` (`server_app.strategies.strategy`), listed here and in
`fedfinlora.config.schema.STRATEGIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedfinlora.config.schema import Config, StrategyConfig
from server_app.central_privacy import make_mechanism
from server_app.strategies.fedadam import FedAdam
from server_app.strategies.fedavg import FedAvg
from server_app.strategies.fedavgm import FedAvgM
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.strategy import Strategy

RULES: dict[str, Callable[[StrategyConfig, int], Strategy]] = {"fedavg": FedAvg, "fedavgm": FedAvgM, "fedadam": FedAdam}


def rule_of(config: StrategyConfig, rounds: int) -> Strategy:
    """The rule strategy.name of a run of `rounds` rounds."""
    return RULES[config.name](config, rounds)


def strategy_of(config: Config, banks: Sequence[str], size: int) -> Strategy:
    """The rule of a run with these banks and an adapter of `size` numbers, inside what privacy.mode puts around it at
    the server.
    """
    rule = rule_of(config.strategy, config.num_server_rounds)
    return PrivateMean.around(rule, make_mechanism(config, banks, size)) if config.privacy.mode == "bank" else rule
