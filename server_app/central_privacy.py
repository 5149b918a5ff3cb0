"""Bank-level central privacy: the trusted server hides whether a bank took part (McMahan, Ramage, Talwar and Zhang 2018, DP-FedAvg).

Each round every connected bank is drawn with probability q, secretly; the whole delta of each is clipped to norm S, the clipped deltas are
summed with equal weights, N(0, (z S)^2 I) is added to the sum, and the sum is divided by the expected number of banks q K, whatever came.
A bank that is there or not moves the sum by at most S, so a round is one step of the Poisson-subsampled Gaussian mechanism.

S is fixed, or follows a quantile of the norms (Andrew, Thakkar, McMahan and Ramaswamy 2021, algorithm 1): the number of deltas within S is
counted with its own noise, and S is multiplied by exp(-eta (share within S - quantile)). Both noises together cost what z alone would cost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfinlora.adapter import Vector, blocks, norm
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for
from fedfinlora.privacy.ledger import Spending, ledger_root, spend
from fedfinlora.privacy.noise import gaussian, poisson_sample, reproducible_generator, secret_generator

if TYPE_CHECKING:
    from fedfinlora.runs import OpenRun

log = logging.getLogger("fedfinlora.server")
CLIP_NORM = "bank_clip_norm"
"""Name under which an adaptive clip norm, shape (1,), passes from round to round with the server's other vectors."""
LARGEST_DELTA = 1e-5
"""The default delta is at most so much: with few banks one over their number would be no promise."""


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
    """For tests: draws and noise from this seed, which voids the promise."""

    @property
    def expected_banks(self) -> float:
        """q K."""
        return self.sampling_rate * self.banks

    @property
    def count_deviation(self) -> float:
        """Standard deviation of the noise on the number of deltas within S (Andrew et al. 2021, section 3: a twentieth of the banks of a round)."""
        return max(1.0, self.expected_banks / 20)

    @property
    def delta_noise_multiplier(self) -> float:
        """Of the noise on the deltas alone: (z^-2 - (2 sigma_b)^-2)^(-1/2) where the norms are counted too (Andrew et al. 2021, theorem 1)."""
        if not self.adaptive_quantile:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.count_deviation) ** -2) ** -0.5)

    def draws(self, purpose: str, round_number: int) -> np.random.Generator:
        """The generator of one round's sampling, or of its noise."""
        if self.reproducible_seed is None:
            return secret_generator()
        return reproducible_generator(self.reproducible_seed, purpose, round_number)

    def spends(self, rounds: int) -> Steps:
        """What `rounds` rounds are to the accountant."""
        return Steps(self.sampling_rate, self.noise_multiplier, rounds)

    def drawn(self, banks: Sequence[str], round_number: int) -> list[str]:
        """The banks of a round, sorted; may be empty."""
        names = sorted(banks)
        draw = self.draws("sampling", round_number)
        return [names[place] for place in poisson_sample(len(names), self.sampling_rate, draw)]


def make_mechanism(config: Config, banks: Sequence[str], size: int) -> CentralMechanism | None:
    """The mechanism of a run with these banks and an adapter of `size` numbers; None without privacy=bank.

    UserError where the noise on a round's mean is longer than any delta can be and privacy.accept_noise is not set.
    """
    privacy, count = config.privacy, len(banks)
    if privacy.mode != "bank":
        return None
    delta = privacy.delta or min(default_delta(count), LARGEST_DELTA)
    if delta > 1 / count:
        raise UserError(f"privacy.delta={delta:g} is more than 1 / {count} banks: lower it.")
    rate, rounds = config.strategy.fraction_train, config.num_server_rounds
    noise = privacy.noise_multiplier or noise_multiplier_for(privacy.epsilon, delta, rate, rounds)
    mechanism = CentralMechanism(
        clip_norm=privacy.clip_norm,
        noise_multiplier=noise,
        sampling_rate=rate,
        banks=count,
        delta=delta,
        epsilon_planned=epsilon([Steps(rate, noise, rounds)], delta),
        adaptive_quantile=privacy.adaptive_quantile,
        adaptive_rate=privacy.adaptive_rate,
        reproducible_seed=config.seed if privacy.reproducible_noise else None,
    )
    if mechanism.adaptive_quantile and noise >= 2 * mechanism.count_deviation:
        raise UserError(
            f"privacy.adaptive_quantile: noise multiplier {noise:.3g} leaves nothing for the clip norm with {count} banks. "
            "Set privacy.adaptive_quantile=0."
        )
    ratio = mechanism.delta_noise_multiplier * math.sqrt(size) / mechanism.expected_banks
    said = (
        f"privacy=bank with {count} banks ({mechanism.expected_banks:g} a round): epsilon {mechanism.epsilon_planned:.3g} at delta {delta:g} over "
        f"{rounds} rounds needs noise multiplier {noise:.3g}. The noise on a round's mean is then {ratio:.3g} times as long as the longest "
        f"delta can be ({size:,} numbers)"
    )
    if ratio > 1 and not privacy.accept_noise:
        raise UserError(
            f"{said}: little will be learned. Take more banks, privacy=example, a smaller adapter (peft.rank, peft.freeze_a=true), or "
            "privacy.accept_noise=true to go on."
        )
    log.info("%s.", said)
    return mechanism


def private_mean(
    deltas: Iterable[Vector], size: int, mechanism: CentralMechanism, clip_norm: float, draw: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """(noisy mean of clipped deltas, (size,) float64; the next round's clip norm). Deltas: vectors of shape (size,) of the banks that replied, one at
    a time; none gives noise alone.

    A delta of zeros stays one; one that is not finite counts as zeros. Summed in the order given, in float64.
    """
    total = np.zeros(size, np.float64)
    within = count = 0
    for delta in deltas:
        count += 1
        length = norm(delta)
        if not math.isfinite(length):
            continue
        within += length <= clip_norm
        factor = 1.0 if length <= clip_norm else clip_norm / length
        for block in blocks(size):
            total[block] += delta[block].astype(np.float64) * factor
    for block in blocks(size):
        total[block] += gaussian(total[block].size, mechanism.delta_noise_multiplier * clip_norm, draw)
    total /= mechanism.expected_banks
    return total, _next_clip_norm(within, count, mechanism, clip_norm, draw)


def _next_clip_norm(
    within: int, deltas: int, mechanism: CentralMechanism, clip_norm: float, draw: np.random.Generator
) -> float:
    """S exp(-eta (noisy share within S - quantile)); S itself where it is fixed.

    Each bank counts as +1/2 or -1/2, so that one more or less moves the sum by 1/2 and not by 1.
    """
    if not mechanism.adaptive_quantile:
        return clip_norm
    noisy = within - deltas / 2 + draw.normal(0.0, mechanism.count_deviation)
    share = noisy / mechanism.expected_banks + 0.5
    return float(clip_norm * math.exp(-mechanism.adaptive_rate * (share - mechanism.adaptive_quantile)))


def book_round(run: OpenRun, mechanism: CentralMechanism, banks: Sequence[str], round_number: int) -> Mapping[str, float]:
    """Write one round to every connected bank's account on the server's disk; returns the figures of the round's line.

    UserError where privacy.budget_epsilon would be exceeded: the run ends and can be resumed with a larger one.
    """
    spending = Spending(
        run.run_id, round_number, "server", "bank-level DP-FedAvg", "bank", mechanism.spends(1), mechanism.delta,
        mechanism.reproducible_seed is not None,
    )  # fmt: skip
    folder, budget = ledger_root() / "server", run.config.privacy.budget_epsilon
    spent = max(spend(folder, {f"bank-{bank}": bank}, spending, budget) for bank in sorted(banks))
    return {"epsilon_planned": mechanism.epsilon_planned, "epsilon_spent": spent, "delta": mechanism.delta}
