"""`audit` under privacy=bank: the checks of the server's own step. What a bank computes is the attacker's to choose."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.privacy.audit import CANARIES, LEDGER, NOISE, SENSITIVITY, Check
from fedfinlora.privacy.canary_audit import Claim, View, canary_check
from fedfinlora.privacy.ledger import Rows, Spending, book
from fedfinlora.privacy.ledger_audit import Probe, arithmetic, ledger_check, pld_available
from fedfinlora.privacy.noise_audit import Draws, NoiseTest, measured_again, noise_check, noise_tests
from fedfinlora.privacy.randomness import noise_is_reproducible
from fedfinlora.privacy.sensitivity_audit import Replay, sensitivity_check
from fedfinlora.seeds import generator
from fedfinlora.wire.messages import Figures, Reply
from server_app.central_privacy import CentralMechanism, make_mechanism
from server_app.replies import replies_of
from server_app.strategies.fedavg import FedAvg
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.strategy import ServerState, take_step

READER = "who reads the global adapter of each round"
NUMBERS = 200_000
"""Of the adapter of the replay and of the noise test."""
LARGE_EVERY, LARGE_ROWS = 50, 1000
"""Every fiftieth canary bank says that it has a thousand times the rows of the others: a server that weighs by rows
shows it.
"""
OTHERS = 6
"""Banks in the replay besides the one that is there or not."""
DRAW_TRIALS = 4000


def bank_checks(config: Config, chosen: Sequence[str], canaries: int, confidence: float) -> Iterator[Check]:
    """The chosen checks, in this order, one at a time."""
    config = replace(config, privacy=replace(config.privacy, accept_noise=True))
    make = {
        SENSITIVITY: lambda: sensitivity_check(replays(config)),
        NOISE: lambda: measured_again(lambda: noise_check(*noise_of_the_step(config))),
        CANARIES: lambda: canary_check(*canary_views(config, canaries), confidence),
        LEDGER: lambda: ledger_check(ledger_probes(config)),
    }
    for name in chosen:
        yield make[name]()


def replays(config: Config) -> list[Replay]:
    """The server's step with and without one bank, its noise the same both times."""
    draw = np.random.default_rng(config.seed)
    names = [f"other-{index}" for index in range(OTHERS)] + ["unit"]
    mechanism = replace(make_mechanism(config, names, NUMBERS), reproducible_seed=config.seed, adaptive_quantile=0.0)
    others = [_reply(name, _direction(draw) * draw.uniform(0.1, 3.0) * mechanism.clip_norm) for name in names[:-1]]
    tried = {
        "a delta ten times the clip norm": (10.0, 1),
        "one of half of it": (0.5, 1),
        "one a billion times": (1e9, 1),
        f"one of the clip norm with {LARGE_ROWS} times the rows": (1.0, LARGE_ROWS),
    }
    found = []
    for unit, (length, rows) in tried.items():
        reply = _reply("unit", _direction(draw) * length * mechanism.clip_norm, rows)
        moved = _step([*others, reply], config, mechanism) - _step(others, config, mechanism)
        share = float(np.linalg.norm(moved)) * mechanism.expected_banks / mechanism.clip_norm
        found.append(Replay(unit, share, _rounding(mechanism)))
    return found


def noise_of_the_step(config: Config) -> tuple[tuple[NoiseTest, ...], Draws | None]:
    """Two steps without any bank: noise alone, and its difference."""
    names = [f"bank-{index}" for index in range(DRAW_TRIALS)]
    mechanism = replace(make_mechanism(config, names, NUMBERS), adaptive_quantile=0.0)
    difference = _step([], config, mechanism) - _step([], config, mechanism)
    noise_std = mechanism.noise_multiplier * mechanism.clip_norm / mechanism.expected_banks
    draws = None
    if mechanism.sampling_rate < 1:
        draws = Draws(len(mechanism.drawn(names, 1)), len(names), mechanism.sampling_rate)
    return noise_tests(difference, noise_std, {}), draws


def canary_views(config: Config, canaries: int) -> tuple[dict[str, View], Claim]:
    """Canary banks, each with a delta of ten times the clip norm along a direction of its own, over all rounds."""
    started = time.monotonic()
    draw = coins(config)
    included = draw.random(canaries) < 0.5
    names = [f"canary-{index:05d}" for index in range(canaries)]
    present = {name: place for place, name in enumerate(names) if included[place]}
    mechanism = make_mechanism(config, list(present), canaries)
    state, rule = ServerState(0, np.zeros(canaries, np.float32)), _rule(config, mechanism)
    scores = np.zeros(canaries)
    for number in range(1, config.num_server_rounds + 1):
        replies = []
        for name in mechanism.drawn(list(present), number):
            place = present[name]
            delta = np.zeros(canaries, np.float32)
            delta[place] = 10 * config.privacy.clip_norm
            replies.append(_reply(name, delta, LARGE_ROWS if place % LARGE_EVERY == 0 else 1))
        following = take_step(rule, state, replies_of(replies, None))
        scores += following.adapter - state.adapter
        state = following
    spent = mechanism.spends(config.num_server_rounds)
    claim = Claim((spent,), mechanism.epsilon_planned, mechanism.delta)
    return {READER: View(scores, included, time.monotonic() - started, orthogonal=True)}, claim


def ledger_probes(config: Config) -> list[Probe]:
    """The planned epsilon against another library, and a throw-away ledger after one of four banks was replaced."""
    rounds = config.num_server_rounds
    names = tuple(f"bank-{index}" for index in range(4))
    mechanism = make_mechanism(config, names, NUMBERS)
    probes = []
    if pld_available():
        spent = [mechanism.spends(rounds)]
        probes.append(arithmetic(f"epsilon of {rounds} rounds", mechanism.epsilon_planned, spent, mechanism.delta))
    with tempfile.TemporaryDirectory(prefix="fedfinlora-audit-") as place:

        def booked(banks: tuple[str, ...], number: int) -> float:
            spending = Spending("audit", number, "server", "audit", "bank", mechanism.spends(1))
            return book(Path(place), Rows(prompts=banks), spending, delta=mechanism.delta).epsilon

        first, second = booked(names, 1), booked(names, 2)
        replaced = booked((*names[:-1], "another"), 3)
        if pld_available():
            probes.append(
                arithmetic("three rounds, one bank replaced", replaced, [mechanism.spends(3)], mechanism.delta)
            )
        probes.append(
            Probe(
                "one bank replaced",
                first <= second <= replaced and replaced > first,
                f"after 1, 2 and 3 rounds {first:.4g}, {second:.4g} and {replaced:.4g}",
            )
        )
    return probes


def coins(config: Config) -> np.random.Generator:
    """The audit's own coin tosses; repeatable where this machine's noise is, for tests."""
    return generator(config.seed, "audit") if noise_is_reproducible() else np.random.default_rng()


def _rule(config: Config, mechanism: CentralMechanism) -> PrivateMean:
    """The private mean with nothing after it: all rules are post-processing."""
    return PrivateMean.around(FedAvg(StrategyConfig(), config.num_server_rounds), mechanism)


def _step(replies: Sequence[Reply], config: Config, mechanism: CentralMechanism) -> NDArray[np.float64]:
    """(NUMBERS,): what a round adds to an adapter of zeros."""
    state = ServerState(0, np.zeros(NUMBERS, np.float32))
    return take_step(_rule(config, mechanism), state, replies_of(replies, None)).adapter.astype(np.float64)


def _direction(draw: np.random.Generator) -> NDArray[np.float64]:
    vector = draw.standard_normal(NUMBERS)
    return np.asarray(vector / np.linalg.norm(vector))


def _reply(name: str, delta: NDArray[np.floating], rows: int = 1) -> Reply:
    nothing = float("nan")
    figures = replace(Figures.withheld(1, 0.0, nothing, nothing, nothing), rows=rows)
    return Reply(name, delta.astype(np.float32), figures, float(np.linalg.norm(delta)))


def _rounding(mechanism: CentralMechanism) -> float:
    """Of a replay: two adapters of float32, half a unit in the last place each, at five standard deviations."""
    return float(2 * np.sqrt(NUMBERS) * 2**-24 * (1 + 5 * mechanism.delta_noise_multiplier))
