"""The checks of an audit and what they say together: a claim holds, is refuted, or is not decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HOLDS, REFUTED, INCONCLUSIVE, NO_CLAIM = "stands", "REFUTED", "inconclusive", "nothing is claimed"
SENSITIVITY, NOISE, CANARIES, LEDGER = "sensitivity", "noise", "canaries", "ledger"
CHECKS = {
    SENSITIVITY: "the same step with and without a unit",
    NOISE: "two runs of the same step, and how many units are drawn",
    CANARIES: "what attackers guess of canaries",
    LEDGER: "the booked epsilon against another library, a changed row, the delta of the budget",
}
"""Name -> what it does."""
EXIT_STATUS = {REFUTED: 1, INCONCLUSIVE: 3, NO_CLAIM: 3, HOLDS: 0}
"""Of the worst verdict, in this order. Where nothing is claimed nothing was shown to stand."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    verdict: str
    found: str
    """In words, one clause."""
    at_most: str
    """What it could have found at most, or the smallest fault that it sees."""
    needed: str = ""
    """What would decide, where this did not."""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """For the terminal."""
        needed = f" {self.needed}" if self.needed else ""
        return f"{self.name}: {self.verdict}. {self.found} ({self.at_most}).{needed}"

    def as_json(self) -> dict[str, Any]:
        """For audit.json."""
        return asdict(self) | {"figures": dict(self.figures)}


def together(checks: Sequence[Check]) -> str:
    """The verdict of all: the worst.

    >>> together([Check("noise", HOLDS, "", ""), Check("ledger", INCONCLUSIVE, "", "")])
    'inconclusive'
    """
    found = {check.verdict for check in checks}
    return next((verdict for verdict in EXIT_STATUS if verdict in found), INCONCLUSIVE)


def sentence(checks: Sequence[Check]) -> str:
    """The result in words, for the privacy card."""
    verdict = together(checks)
    by = [check.name for check in checks if check.verdict == verdict]
    said = "; ".join(f"{check.name}: {check.found} ({check.at_most})" for check in checks)
    return f"{verdict}{'' if verdict == HOLDS else ' by ' + ' and '.join(by)}: {said}"
