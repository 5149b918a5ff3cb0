"""Trimmed mean (after Yin, Chen, Ramchandran, Bartlett 2018, definition 2), on the products B A.

Difference: theirs sorts each number by itself, which is not defined on a product that is never made. Here the
strategy.liars updates farthest from the geometric median of all are dropped, whole, and the others averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server_app.strategies.geometric_median import to_mean, weiszfeld
from server_app.strategies.krum import chosen
from server_app.strategies.robust import RobustStrategy


class TrimmedMean(RobustStrategy):
    """Drops fewer than half of the banks, however large strategy.liars is."""

    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        cut = min(self.config.liars, (len(inner) - 1) // 2)
        return chosen(to_mean(inner, weiszfeld(inner)), len(inner) - cut)
