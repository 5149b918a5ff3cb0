"""The ledger's arithmetic against another library: the accountant of privacy loss distributions in dp-accounting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.audit import HOLDS, INCONCLUSIVE, LEDGER, REFUTED, Check

TOLERANCE = 0.02
"""PLD rounds losses up to a grid, by about so much; a booked epsilon that is lower by more is too low."""
RELATIVE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Comparison:
    """What was booked, and what the other library says of the same steps."""

    booked: float
    theirs: float

    @property
    def too_low(self) -> bool:
        """Whether less was booked than the other library finds."""
        if math.isinf(self.booked):
            return False
        return not self.booked >= self.theirs * (1 - RELATIVE_TOLERANCE) - TOLERANCE


def pld_available() -> bool:
    """Whether dp-accounting is installed; it is a dependency of development only."""
    return find_spec("dp_accounting") is not None


def pld_epsilon(spent: Sequence[Steps], delta: float) -> float:
    """Epsilon at `delta` of Poisson-sampled Gaussian steps together, by dp-accounting's PLDAccountant; infinite where
    a step had no noise.
    """
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    if any(steps.noise_multiplier == 0 for steps in spent if steps.count):
        return math.inf
    accountant = PLDAccountant()
    for steps in spent:
        gaussian = dp_event.GaussianDpEvent(steps.noise_multiplier)
        event = dp_event.PoissonSampledDpEvent(steps.sampling_rate, gaussian) if steps.sampling_rate < 1 else gaussian
        accountant.compose(dp_event.SelfComposedDpEvent(event, steps.count))
    return float(accountant.get_epsilon(delta))


def compare(booked: float, spent: Sequence[Steps], delta: float) -> Comparison:
    """The booked epsilon next to PLD's."""
    return Comparison(booked, pld_epsilon(spent, delta))


@dataclass(frozen=True)
class Probe:
    """One question about the ledger and its answer."""

    question: str
    holds: bool
    answer: str


def arithmetic(name: str, booked: float, spent: Sequence[Steps], delta: float) -> Probe:
    """Whether `booked` is what the other library finds, or more. Needs dp-accounting."""
    found = compare(booked, spent, delta)
    return Probe(name, not found.too_low, f"{name}: {booked:.4g} booked, {found.theirs:.4g} by PLD")


def ledger_check(probes: Sequence[Probe]) -> Check:
    """Refuted where a probe's answer is no; inconclusive where dp-accounting, which makes the first of them, is
    missing.
    """
    wrong = [probe for probe in probes if not probe.holds]
    missing = not pld_available()
    return Check(
        LEDGER,
        REFUTED if wrong else INCONCLUSIVE if missing else HOLDS,
        "; ".join(probe.answer for probe in wrong or probes),
        f"an epsilon more than {TOLERANCE} + {RELATIVE_TOLERANCE:.0%} too low is seen",
        "dp-accounting is not installed, so the arithmetic was not compared: pip install dp-accounting."
        if missing
        else "",
        {"probes": [asdict(probe) for probe in probes]},
    )
