"""Multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer 2017, section 4), on the products B A: see
`server_app.strategies.krum`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server_app.strategies.krum import chosen, scores
from server_app.strategies.robust import RobustStrategy


class MultiKrum(RobustStrategy):
    """The mean of the n - strategy.liars updates with the lowest scores, of one at least."""

    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        return chosen(scores(inner, self.config.liars), max(len(inner) - self.config.liars, 1))
