"""The sensitivity check of an audit: by how much one unit moved the sum of a step, over what the mechanism says that
it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fedfinlora.privacy.audit import HOLDS, REFUTED, SENSITIVITY, Check


@dataclass(frozen=True)
class Replay:
    """One unit: the same step with and without it."""

    unit: str
    """In words, without a row's text."""
    moved: float
    """|sum with - sum without| over the sensitivity; at most 1 if the claim holds."""
    tolerance: float
    """What the rounding of the adapter to float32 can add."""

    @property
    def too_far(self) -> bool:
        """Whether the unit moved the sum by more than is claimed; NaN counts as too far."""
        return not self.moved <= 1 + self.tolerance


def sensitivity_check(replays: Sequence[Replay]) -> Check:
    """Refuted where any unit moved the sum by more than the sensitivity."""
    worst = max(replays, key=lambda replay: (replay.too_far, replay.moved))
    tolerance = max(replay.tolerance for replay in replays)
    return Check(
        SENSITIVITY,
        REFUTED if worst.too_far else HOLDS,
        f"a unit moved the sum of a step by up to {worst.moved:.4g} of the sensitivity ({worst.unit})",
        f"{len(replays)} replays; any move beyond {1 + tolerance:.5g} is seen, of the units that were tried",
        figures={"replays": [asdict(replay) for replay in replays]},
    )
