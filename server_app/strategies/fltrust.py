"""FLTrust (Cao, Fang, Liu, Gong 2021, algorithm 2), on the products B A.

The root update comes from strategy.root_bank, which the operator of the federation runs on public rows. Each update's
product is scaled to the root update's length and counts as much as its cosine with it, not at all where that is
negative: the step's product is never longer than the root update.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.errors import UserError
from server_app.strategies.robust import RobustStrategy

SHORTEST = 1e-5
"""Of an update that counts, over the root update's length: scaling up a shorter one scales its rounding errors."""


class FLTrust(RobustStrategy):
    """Differences: where no bank is trusted the root update itself is the step, where the paper divides by zero; an
    update below `SHORTEST` does not count, where the paper scales it up without bound.
    """

    def sampled(self, banks: Sequence[str], seed: int, round_number: int) -> list[str]:
        """The root bank in every round, with those that are drawn."""
        drawn = super().sampled(banks, seed, round_number)
        return sorted({*drawn, self.config.root_bank} & set(banks))

    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        root = self.config.root_bank
        if root not in banks:
            raise UserError(
                f"strategy=fltrust: no usable reply of strategy.root_bank={root} came, and the updates are measured by "
                f"it. Start that bank and resume; {len(banks)} others replied."
            )
        return trusted(inner, list(banks).index(root))


def trusted(inner: NDArray[np.float64], root: int) -> NDArray[np.float64]:
    """(n,) shares from inner products (n, n); `root` is the index of the update that the others are measured by."""
    lengths = np.sqrt(np.maximum(np.diag(inner), 0.0))
    long_enough = lengths > SHORTEST * lengths[root]
    scales = np.divide(lengths[root], lengths, out=np.zeros(len(inner)), where=long_enough)
    alike = inner[root] * scales  # |root| cos |root|
    trust = np.maximum(alike, 0.0)
    trust[root] = 0.0
    if not trust.sum():
        return np.asarray(np.eye(len(inner))[root])
    return np.asarray(trust / trust.sum() * scales)
