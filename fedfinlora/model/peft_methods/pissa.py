"""PiSSA (Meng, Wang, Zhang 2024, arXiv 2404.02948, eq. 2 and 3): A and B start as the largest singular triplets of W.

A0 = sqrt(Sigma_r / s) V_r^T and B0 = U_r sqrt(Sigma_r / s). The paper trains them on the residual W - s B0 A0; here
that residual is computed and never stored (`difference`), so an nf4 base is not quantized a second time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfinlora.model.peft_methods.difference import Difference
from fedfinlora.model.peft_methods.lora_xs import factors


class Pissa(Difference):
    """Principal singular values and vectors."""

    def start_factors(
        self, weight: NDArray[np.float64], rank: int, scaling: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        right, left = factors(weight, rank)  # V_r^T, and U_r Sigma_r
        values = np.linalg.norm(left.astype(np.float64), axis=0)
        root = np.sqrt(values / scaling)
        a, b = root[:, None] * right, left * (root / values)
        return a.astype(np.float32), b.astype(np.float32)
