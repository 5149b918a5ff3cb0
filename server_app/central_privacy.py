"""What bank-level central privacy draws and costs: the mechanism of a run, and its rounds in the server's ledger.

The arithmetic and the papers are in `server_app.strategies.private_mean`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, plural
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.ledger import Rows, Spending, Version1, book, ledger_root
from fedfinlora.privacy.randomness import (
    Keys,
    Stream,
    noise_is_reproducible,
    poisson_sample,
    reproducible_keys,
    secret_keys,
)
from fedfinlora.run.records import RoundPrivacy

if TYPE_CHECKING:
    from fedfinlora.run.opening import OpenRun

log = logging.getLogger("fedfinlora.server")
LEAST_NOISE_MULTIPLIER = 1e-3
"""Epsilon is beyond 500,000 there, and the sums of a million banks are still far within 64 bits."""


@dataclass(frozen=True)
class CentralMechanism:
    """What the server does to the sum of the deltas in a run."""

    clip_norm: float
    """S, of the first round if it is adaptive."""
    noise_multiplier: float
    """z, for the sum and the count together."""
    sampling_rate: float
    """q."""
    banks: int
    """K."""
    delta: float
    epsilon_planned: float
    adaptive_quantile: float = 0.0
    adaptive_rate: float = 0.2
    reproducible_seed: int | None = None
    """For tests, and only where the server's own environment says so: draws and noise from this seed, which voids the
    guarantee."""

    @property
    def expected_banks(self) -> float:
        """q K."""
        return self.sampling_rate * self.banks

    @property
    def count_noise_std(self) -> float:
        """Standard deviation of the noise on the number of deltas within S (Andrew et al. 2021, section 3: a twentieth
        of the banks of a round).
        """
        return max(1.0, self.expected_banks / 20)

    @property
    def delta_noise_multiplier(self) -> float:
        """Of the noise on the deltas alone: (z^-2 - (2 sigma_b)^-2)^(-1/2) where the norms are counted too (Andrew et
        al. 2021, theorem 1).
        """
        if not self.adaptive_quantile:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.count_noise_std) ** -2) ** -0.5)

    def keys(self, round_number: int) -> Keys:
        """The keys of one round's sampling and noise."""
        if self.reproducible_seed is None:
            return secret_keys()
        return reproducible_keys(self.reproducible_seed, "server", round_number)

    def spends(self, rounds: int) -> Steps:
        """What `rounds` rounds are to the accountant."""
        return Steps(self.sampling_rate, self.noise_multiplier, rounds)

    def drawn(self, banks: Sequence[str], round_number: int) -> list[str]:
        """The banks of a round, sorted; may be empty."""
        names = sorted(banks)
        return [
            names[place]
            for place in poisson_sample(len(names), self.sampling_rate, Stream(self.keys(round_number).draws))
        ]


def noise_of(config: Config, banks: int) -> tuple[float, float]:
    """(noise multiplier, delta) of a run with privacy=bank and so many banks."""
    privacy = config.privacy
    delta = privacy.delta or default_delta(banks)
    rate, rounds = config.strategy.fraction_train, config.num_server_rounds
    return privacy.noise_multiplier or noise_multiplier_for(privacy.epsilon, delta, rate, rounds), delta


def make_mechanism(config: Config, banks: Sequence[str], size: int) -> CentralMechanism:
    """The mechanism of a run with privacy=bank, these banks and an adapter of `size` numbers.

    UserError where privacy.delta is larger than the default, where the noise does not fit its grid, and where the noise
    on a round's mean is longer than any delta can be and privacy.accept_noise is not set.
    """
    privacy, count = config.privacy, len(banks)
    if privacy.delta > default_delta(count):
        raise UserError(
            f"privacy.delta={privacy.delta:g} is more than {default_delta(count):.2g}, the largest that means "
            "something with "
            f"{count} banks: lower it, or leave "
            "it out."
        )
    rate, rounds = config.strategy.fraction_train, config.num_server_rounds
    noise, delta = noise_of(config, count)
    if noise < LEAST_NOISE_MULTIPLIER:
        raise UserError(
            f"privacy.noise_multiplier={noise:.3g} is too small to protect anything: take {LEAST_NOISE_MULTIPLIER:g} "
            "or more."
        )
    mechanism = CentralMechanism(
        clip_norm=privacy.clip_norm,
        noise_multiplier=noise,
        sampling_rate=rate,
        banks=count,
        delta=delta,
        epsilon_planned=epsilon([Steps(rate, noise, rounds)], delta),
        adaptive_quantile=privacy.adaptive_quantile,
        adaptive_rate=privacy.adaptive_rate,
        reproducible_seed=config.seed if noise_is_reproducible() else None,
    )
    if mechanism.adaptive_quantile and noise >= 2 * mechanism.count_noise_std:
        raise UserError(
            f"privacy.adaptive_quantile: noise multiplier {noise:.3g} leaves nothing for the clip norm with {count} "
            "banks. "
            "Set privacy.adaptive_quantile=0."
        )
    _ = Grid(privacy.clip_norm, mechanism.delta_noise_multiplier, size)  # UserError where so much noise does not fit
    ratio = mechanism.delta_noise_multiplier * math.sqrt(size) / mechanism.expected_banks
    said = (
        f"privacy=bank with {count} banks ({mechanism.expected_banks:g} a round): epsilon "
        f"{mechanism.epsilon_planned:.3g} at delta {delta:g} over "
        f"{rounds} rounds needs noise multiplier {noise:.3g}. The noise on a round's mean is then {ratio:.3g} times as "
        "long as the longest "
        f"delta can be ({size:,} numbers)"
    )
    if ratio > 1 and not privacy.accept_noise:
        raise UserError(
            f"{said}: little will be learned. Take more banks, privacy=example, a smaller adapter (peft.rank, "
            "peft.freeze_a=true), or "
            "privacy.accept_noise=true to continue."
        )
    log.info("%s.", said)
    return mechanism


@dataclass(frozen=True)
class BookedRound:
    """A round that is in the server's ledger."""

    banks: tuple[str, ...]
    """Those that may be drawn: whose budget is not spent."""
    privacy: RoundPrivacy
    """Of the round's line, still without its clip norm."""

    def __str__(self) -> str:
        privacy = self.privacy
        spent = "infinite" if privacy.epsilon_spent is None else f"{privacy.epsilon_spent:.3g}"
        left_out = f"; {plural(privacy.left_out, 'bank')} excluded: the budget is spent" if privacy.left_out else ""
        return (
            f"epsilon of every bank: {spent} spent, {privacy.epsilon_planned:.3g} planned for this run, at delta "
            f"{privacy.delta:.0e}{left_out}"
        )


def book_round(run: OpenRun, mechanism: CentralMechanism, banks: Sequence[str], round_number: int) -> BookedRound:
    """Write one round of every connected bank to the server's ledger, as one line in which the banks are the units.

    A bank whose budget is spent is excluded. UserError where privacy.budget_epsilon leaves none: the run can be resumed
    with a larger one.
    """
    names = tuple(sorted(banks))
    spending = Spending(
        run=run.run_id,
        round=round_number,
        bank="server",
        mechanism="bank-level DP-FedAvg",
        unit="bank",
        steps=mechanism.spends(1),
        reproducible_noise=mechanism.reproducible_seed is not None,
    )
    folder = ledger_root() / "server"
    booked = book(
        folder,
        Rows(prompts=names),
        spending,
        delta=mechanism.delta,
        budget_epsilon=run.config.privacy.budget_epsilon,
        version_1=Version1((folder,), lambda: _old_accounts(folder)),
    )
    spent = booked.epsilon if math.isfinite(booked.epsilon) else None
    privacy = RoundPrivacy(mechanism.epsilon_planned, spent, mechanism.delta, booked.left_out)
    return BookedRound(tuple(compress(names, booked.taking_part)), privacy)


def _old_accounts(folder: Path) -> dict[str, Rows]:
    """Account -> its bank, of the ledgers of version 1: a file `bank-NAME.jsonl` for each."""
    accounts = [file.stem for file in folder.glob("bank-*.jsonl")]
    return {account: Rows(prompts=(account.removeprefix("bank-"),)) for account in accounts}
