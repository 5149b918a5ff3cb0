"""Server rules by name, and what privacy puts around them; docs/extending.md walks through adding one.

A rule is one file with a `Strategy` (`server_app.strategies.strategy`), listed here and in
`fedfinlora.config.strategy.STRATEGIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from server_app.central_privacy import make_mechanism
from server_app.strategies.fedadagrad import FedAdagrad
from server_app.strategies.fedadam import FedAdam
from server_app.strategies.fedadamw import FedAdamW
from server_app.strategies.fedadamw_local import FedAdamWLocal
from server_app.strategies.fedavg import FedAvg
from server_app.strategies.fedavgm import FedAvgM
from server_app.strategies.fedexp import FedExP
from server_app.strategies.fedrot import FedRot
from server_app.strategies.fedyogi import FedYogi
from server_app.strategies.flexlora import FlexLora
from server_app.strategies.flora import Flora
from server_app.strategies.fltrust import FLTrust
from server_app.strategies.geometric_median import GeometricMedian
from server_app.strategies.hetlora import HetLora
from server_app.strategies.krum import Krum
from server_app.strategies.multi_krum import MultiKrum
from server_app.strategies.norm_clip import NormClip
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.residual import Residual
from server_app.strategies.rolora import RoLora
from server_app.strategies.rosa import Rosa
from server_app.strategies.scaffold import Scaffold
from server_app.strategies.strategy import Strategy
from server_app.strategies.trimmed_mean import TrimmedMean

RULES: dict[str, Callable[[StrategyConfig, int], Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedadamw": FedAdamW,
    "fedadamw_local": FedAdamWLocal,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedexp": FedExP,
    "scaffold": Scaffold,
    "rolora": RoLora,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "geometric_median": GeometricMedian,
    "trimmed_mean": TrimmedMean,
    "norm_clip": NormClip,
    "fltrust": FLTrust,
    "residual": Residual,
    "fedrot": FedRot,
    "flexlora": FlexLora,
    "flora": Flora,
    "hetlora": HetLora,
    "rosa": Rosa,
}


def rule_of(config: StrategyConfig, rounds: int) -> Strategy:
    """The rule strategy.name of a run of `rounds` rounds."""
    return RULES[config.name](config, rounds)


def strategy_of(config: Config, banks: Sequence[str], size: int) -> Strategy:
    """The rule of a run with these banks and an adapter of `size` numbers, inside what privacy.mode puts around it at
    the server.
    """
    rule = rule_of(config.strategy, config.num_server_rounds)
    return PrivateMean.around(rule, make_mechanism(config, banks, size)) if config.privacy.mode == "bank" else rule
