"""FedRot-LoRA (Zhang, Kim, Cha, Vikalo 2026, arXiv 2602.23638): each bank's factors are turned towards the last
global ones before A and B are averaged.

(B Q^T)(Q A) is the same product for every orthogonal Q, so two banks that learnt the same may cancel in the mean. Q is
the rotation that brings a bank's A nearest to the global A in odd rounds, its B to the global B in even ones
(orthogonal Procrustes: Schönemann 1966; without reflections: Kabsch 1976). After a single local step from a shared
start there is nothing to turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server_app.replies import Replies
from server_app.strategies.product import shares_of
from server_app.strategies.strategy import ServerState, Strategy


class FedRot(Strategy):
    """Costs no bytes. Differences: the server turns, so that banks need not know of it; the rotation is taken whole,
    without the paper's strength lambda. Cost and memory are linear in the banks.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        rate = self.learning_rate(state)
        step = rate * replies.mean(slice(0, state.adapter.size))
        for layer in replies.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            step_a, step_b = layer.of(step)
            step_a[:], step_b[:] = 0.0, 0.0
            for share, (da, db) in zip(shares_of(replies), replies.factors(layer), strict=True):
                own_a, own_b = a + da, b + db
                turn = rotation(a @ own_a.T) if state.round % 2 == 0 else rotation(b.T @ own_b)
                step_a += rate * share * (turn @ own_a - a)
                step_b += rate * share * (own_b @ turn.T - b)
        return state.moved(step.__getitem__)


def rotation(cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation Q, (r, r), of determinant 1, with the largest tr(Q^T cross): for cross = X Y^T that with the least
    |Q Y - X|. Where the best orthogonal matrix is a reflection, the direction that matters least is turned back. The
    identity for zeros.
    """
    if not cross.any():
        return np.eye(len(cross))
    left, _, right = np.linalg.svd(cross)
    left[:, -1] *= np.sign(np.linalg.det(left) * np.linalg.det(right))
    return np.asarray(left @ right)
