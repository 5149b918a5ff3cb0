"""OLoRA (Büyükakyüz 2024, arXiv 2406.01775, algorithm 1): A and B start as the QR factors of W.

W = Q R; B0 = Q_r, the first r columns, which are orthonormal, and A0 = R_r, the first r rows. Only the first r columns
of W decide Q_r, so they alone are decomposed, and R_r = Q_r^T W. The diagonal of R is positive, so that signs do not
depend on LAPACK; PEFT leaves them as they come, and B0 A0 is the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.difference import Difference
from fedfinlora.model.peft_methods.lora_xs import LEAST_SINGULAR_VALUE


class Olora(Difference):
    """Orthonormal columns of W."""

    def start_factors(
        self, weight: NDArray[np.float64], rank: int, scaling: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if rank <= min(weight.shape):
            q, r = np.linalg.qr(weight[:, :rank])
            diagonal = np.diagonal(r)
            if np.abs(diagonal).min() > LEAST_SINGULAR_VALUE * np.abs(diagonal).max():
                q = q * np.sign(diagonal)
                return np.ascontiguousarray(q.T @ weight, np.float32), np.ascontiguousarray(q, np.float32)
        raise UserError(
            f"its weight of shape {weight.shape} has fewer than {rank} directions. Set a smaller peft.rank."
        )
