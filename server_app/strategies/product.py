"""Arithmetic on products B A that are kept as factors: inner products, norms, sums and the best approximation
of a lower rank, without a (d_out, d_in) matrix.

A product of inner size n is `left`, (d_out, n), times `right`, (n, d_in). What a bank changes in a layer is one of
inner size 2 rank: (B + dB)(A + dA) - B A = dB (A + dA) + B dA. The scale s = alpha / rank (rsLoRA: alpha / sqrt(rank))
is the same for all products of a run and does not change which of two is nearer; where adapters of several scales
meet, it is a weight of `summed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import BLOCK, Factors, blocks
from server_app.replies import Replies

Matrix = NDArray[np.float64]

MOST_BANKS = 128
"""Of a rule that compares each bank with each, layer by layer. With so many, rank 8 and 90 layers of SmolLM2-135M the
step of krum takes 16 s of one core, that of multi_krum 32 s; with 4 banks 0.3 s.
"""
LOST_DIGITS = 1e-10
"""Singular values below this part of the largest one are rounding errors of float64."""


class Product(NamedTuple):
    """left @ right, a (d_out, d_in) matrix that is never made."""

    left: Matrix
    """(d_out, n)."""
    right: Matrix
    """(n, d_in)."""

    @property
    def inner_size(self) -> int:
        return int(self.left.shape[1])


class Truncated(NamedTuple):
    """The best approximation of a product by one of a lower rank (Eckart and Young 1936)."""

    product: Product
    """(U diag(values[:rank]), V^T), as in FlexLoRA: the rows of `right` are orthonormal."""
    values: NDArray[np.float64]
    """All singular values of the product, descending, (at most n,)."""

    @property
    def lost(self) -> float:
        """Frobenius norm of what the approximation lacks."""
        return float(np.linalg.norm(self.values[self.product.inner_size :]))


def bank_update(a: Matrix, b: Matrix, change_a: Matrix, change_b: Matrix) -> Product:
    """(B + dB)(A + dA) - B A. A and dA: (rank, d_in); B and dB: (d_out, rank). Written so that nothing cancels."""
    return Product(np.hstack([change_b, b]), np.vstack([a + change_a, change_a]))


def inner(one: Product, other: Product) -> float:
    """The sum of the entries of one times those of the other, tr(one^T other), from two n x n matrices.

    >>> eye = Product(np.eye(2), np.eye(2))
    >>> inner(eye, Product(np.eye(2), 3 * np.eye(2)))
    6.0
    """
    return float(np.sum((one.left.T @ other.left) * (one.right @ other.right.T)))


def norm_of(product: Product) -> float:
    """Frobenius norm."""
    return math.sqrt(max(inner(product, product), 0.0))


def summed(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """sum_k w_k left_k right_k as one product: the factors next to each other, each with the root of its weight.
    Weights may be negative, and hold the scales of adapters that differ in them.
    """
    roots = [math.sqrt(abs(weight)) for weight in weights]
    signs = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
    return Product(
        np.hstack([sign * product.left for sign, product in zip(signs, products, strict=True)]),
        np.vstack([root * product.right for root, product in zip(roots, products, strict=True)]),
    )


def truncated(product: Product, rank: int, tail_energy: float = 0.0) -> Truncated:
    """The best approximation of at most this rank: two QRs and the SVD of an n x n matrix, O((d_out + d_in) n^2).

    Fewer directions are kept where the dropped ones hold no more than `tail_energy` of the squared norm. The largest
    absolute entry of each left vector is positive, so that signs do not depend on LAPACK.
    """
    q_left, r_left = np.linalg.qr(product.left)
    q_right, r_right = np.linalg.qr(product.right.T)
    left, values, right = np.linalg.svd(r_left @ r_right.T)
    values = np.where(values > LOST_DIGITS * values.max(initial=0.0), values, 0.0)
    kept = min(rank, energy_rank(values, tail_energy))
    left, right = q_left @ left[:, :kept], right[:kept] @ q_right.T
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(kept)])
    return Truncated(Product(left * (signs * values[:kept]), signs[:, None] * right), values)


def energy_rank(values: NDArray[np.float64], tail_energy: float) -> int:
    """How many singular values (descending) must stay so that the dropped ones hold at most `tail_energy` of the sum of
    squares.

    >>> energy_rank(np.array([3.0, 1.0, 0.1]), 0.0), energy_rank(np.array([3.0, 1.0, 0.1]), 0.01)
    (3, 2)
    """
    tails = np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)
    return int(np.argmax(tails <= tail_energy * tails[0]))


def gram(adapter: NDArray[np.float32], replies: Replies) -> Matrix:
    """(banks, banks) inner products of the banks' updates: of (B + dB)(A + dA) - B A in the layers, of the numbers
    themselves where they belong to no layer (DoRA's magnitudes; B where A is frozen).

    Holds one layer of each bank. UserError for more than MOST_BANKS of them.
    """
    check_count(replies)
    total = np.zeros((len(replies), len(replies)))
    for layer in replies.layers:
        total += _gram(list(layer_updates(adapter, replies, layer)))
    for block in outside_layers(replies.layers, adapter.size, BLOCK // len(replies)):
        numbers = np.array([update.astype(np.float64) for update in replies.updates(block)])
        total += numbers @ numbers.T
    return total


def layer_updates(adapter: NDArray[np.float32], replies: Replies, layer: Factors) -> Iterator[Product]:
    """Each bank's update of a layer, one after the other, the rows of `right` orthonormal: a bank can choose factors
    whose parts cancel, and the inner products of such parts would lose its update in their rounding errors.
    """
    a, b = (factor.astype(np.float64) for factor in layer.of(adapter))
    for change_a, change_b in replies.factors(layer):
        update = bank_update(a, b, change_a.astype(np.float64), change_b.astype(np.float64))
        q_left, r_left = np.linalg.qr(update.left)
        q_right, r_right = np.linalg.qr(update.right.T)
        yield Product(q_left @ (r_left @ r_right.T), q_right.T)


def _gram(products: Sequence[Product]) -> Matrix:
    """(K, K) inner products of K products of the same inner size."""
    count, size = len(products), products[0].inner_size
    lefts, rights = np.hstack([each.left for each in products]), np.vstack([each.right for each in products])
    found = np.zeros((count, count))
    for number, each in enumerate(products):
        start = number * size
        entries = (each.left.T @ lefts[:, start:]) * (each.right @ rights[start:].T)
        found[number, number:] = entries.reshape(size, count - number, size).sum(axis=(0, 2))
    return np.asarray(np.triu(found) + np.triu(found, 1).T)


def distances(gram_matrix: Matrix) -> Matrix:
    """(K, K) squared distances of K updates from their inner products, 0 on the diagonal."""
    lengths = np.diag(gram_matrix)
    return np.maximum(lengths[:, None] + lengths[None, :] - 2 * gram_matrix, 0.0)


def mean_product(adapter: NDArray[np.float32], replies: Replies, layer: Factors, rate: float) -> Product:
    """(1 - rate) B A + rate sum_k p_k (B + dB_k)(A + dA_k), p_k the weights over their sum: where a server of this rate
    should go in a layer, exactly. Inner size rank (banks + 1).
    """
    a, b = (factor.astype(np.float64) for factor in layer.of(adapter))
    products = [Product(b, a), *(Product(b + db, a + da) for da, db in replies.factors(layer))]
    return summed(products, [1 - rate, *(rate * share for share in shares_of(replies))])


def shares_of(replies: Replies) -> list[float]:
    """The weights over their sum."""
    return [weight / sum(replies.weights) for weight in replies.weights]


def outside_layers(layers: Sequence[Factors], size: int, most: int = BLOCK) -> Iterator[slice]:
    """The parts of a vector of `size` numbers that belong to no layer's A or B, at most `most` numbers at a time."""
    taken = sorted((part.start, part.stop) for layer in layers for part in (layer.a, layer.b))
    starts, stops = [0, *(stop for _, stop in taken)], [*(start for start, _ in taken), size]
    for start, stop in zip(starts, stops, strict=True):
        for block in blocks(stop - start, max(most, 1)):
            yield slice(start + block.start, start + block.stop)


def check_count(replies: Replies) -> None:
    """UserError where a rule whose cost grows with the square of the banks would take too long."""
    if len(replies) > MOST_BANKS:
        raise UserError(
            f"This rule holds a layer of each bank, at most {MOST_BANKS} banks a round; {len(replies)} replied. Lower "
            "strategy.fraction_train, or take strategy=fedavg, norm_clip, hetlora or fedrot, whose cost is linear."
        )
