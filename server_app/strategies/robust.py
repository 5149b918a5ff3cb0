"""What the robust rules have in common: a share for each bank's update, and a step along the products B A.

A bank may write its update in many ways: (B Q)(Q^-1 A) is the same product for every invertible Q. So updates are
compared as (B + dB)(A + dA) - B A (`server_app.strategies.product`), and the step is taken on the same products: B A
plus the sum of the updates with their shares, cut to the adapter's rank. Were A and B averaged apart, factors of an
honest product could spoil the mean. Shares do not follow reported rows, since a bank could report any.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfinlora.wire.messages import Reply
from server_app.replies import Replies
from server_app.strategies.product import MOST_BANKS, Matrix, Product, gram, outside_layers, summed, truncated
from server_app.strategies.strategy import ServerState, Strategy, Vector64

LEAST_LENGTH = 1e-3
"""Smallest singular value of A, as a part of its largest, with which `near` writes a product: B is divided by it."""


class RobustStrategy(Strategy):
    """A rule that decides from the geometry of the updates how much of each is taken."""

    def weights(self, replies: Sequence[Reply]) -> list[float]:
        """Each bank the same; strategy.weighting is not used."""
        return [1.0] * len(replies)

    @abstractmethod
    def shares(self, inner: NDArray[np.float64], banks: Sequence[str]) -> NDArray[np.float64]:
        """(banks,) factors of the updates in the step, from their inner products (banks, banks)."""

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        shares = self.shares(gram(state.adapter, replies), replies.banks)
        return along_products(state, replies, self.learning_rate(state) * shares)


def along_products(state: ServerState, replies: Replies, shares: NDArray[np.float64]) -> ServerState:
    """The state after a step of sum_k share_k ((B + dB_k)(A + dA_k) - B A) in each layer, of which the adapter's rank r
    holds the best approximation; of sum_k share_k update_k where numbers belong to no layer. Shares: (banks,).

    With T the exact sum and T_r what is kept, |T_r - X| <= 2 |T - X| for every X of rank r: what a share bounds in T it
    bounds in the adapter too. The factors are those of `near`. An update of share 0 is not read.
    """
    step = np.zeros(state.adapter.size)
    for block in outside_layers(replies.layers, step.size):
        step[block] = combined(replies.updates(block), shares)
    for layer in replies.layers:
        a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
        moved = moved_product(a, b, replies.factors(layer), shares)
        if moved.inner_size == len(a):
            continue  # no bank moved it
        new = near(truncated(moved, len(a)).product, a)
        step_a, step_b = layer.of(step)
        step_a[:], step_b[:] = new.right - a, new.left - b
    return state.moved(step.__getitem__)


def moved_product(
    a: Matrix,
    b: Matrix,
    changes: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]],
    shares: NDArray[np.float64],
) -> Product:
    """B A + sum_k s_k ((B + dB_k)(A + dA_k) - B A) = B (A + sum_k s_k dA_k) + sum_k s_k dB_k (A + dA_k), of inner size
    rank (banks + 1), those left out that have no share or no change. A: (rank, d_in), B: (d_out, rank), `changes`
    (dA_k, dB_k) of these shapes.

    After every MOST_BANKS banks the sum is cut to half as many ranks, so that memory does not grow with their number.
    """
    moved, parts, weights = a.copy(), [Product(b, a)], [1.0]
    for share, (da, db) in zip(shares, changes, strict=True):
        if not share or not (da.any() or db.any()):
            continue
        if len(parts) > MOST_BANKS:
            rest = truncated(summed(parts[1:], weights[1:]), len(a) * MOST_BANKS // 2).product
            parts[1:], weights[1:] = [rest], [1.0]
        own = da.astype(np.float64)
        moved += share * own
        parts.append(Product(db.astype(np.float64), a + own))
        weights.append(float(share))
    return summed([Product(b, moved), *parts[1:]], weights)


def near(product: Product, a: Matrix) -> Product:
    """The same product as (d_out, rank) times (rank, d_in), the right factor A' with the Gram matrix of `a`, (rank,
    d_in), and as near to it as the product's rows allow.

    A' = P Q V^T, where a = P O is the polar decomposition, V^T the orthonormal rows of `product.right`, and Q the
    orthogonal matrix with the least |Q V^T - O| (Procrustes: Schönemann 1966). So A' = a where the product has the rows
    of a; the length of A' is that of a; banks can go on with the moments of their optimizers. Where the product has
    fewer directions than the rank, those of a that are orthogonal to them are added, with zeros in B.
    """
    out_of, lengths, rows = np.linalg.svd(a, full_matrices=False)
    lengths = np.maximum(lengths, LEAST_LENGTH * lengths.max(initial=0.0)) if lengths.any() else np.ones(len(lengths))
    missing = len(lengths) - product.inner_size
    others = np.linalg.svd(rows - rows @ product.right.T @ product.right, full_matrices=False)[2][:missing]
    right = np.vstack([product.right, others])
    one, _, other = np.linalg.svd(rows @ right.T)
    turn = one @ other
    left = np.hstack([product.left, np.zeros((len(product.left), missing))])
    return Product((left @ turn.T / lengths) @ out_of.T, (out_of * lengths) @ turn @ right)


def combined(updates: Iterable[NDArray[np.float32]], shares: NDArray[np.float64]) -> Vector64:
    """sum_k share_k update_k in float64; updates (n,) each, as many as shares. One of share 0 is not read."""
    total: Vector64 | None = None
    for update, share in zip(updates, shares, strict=True):
        if total is None:
            total = np.zeros(update.shape, np.float64)
        if share:
            total += share * update.astype(np.float64)
    assert total is not None
    return total
