"""What averaging A and B apart lost in a round, measured on the products B A (`AverageLoss` in rounds.jsonl).

With weights p_k that sum to 1, sum_k p_k B_k A_k - B̄ Ā = sum_k p_k (B_k - B̄)(A_k - Ā): the mean of the factors is not
the factors of the mean (docs/papers.md). Everything follows from products of factors, layer by layer
(`server_app.strategies.product`), never from a (d_out, d_in) matrix.

Two banks of different ranks (strategy.ranks) have the cosine of what they change on the ranks that both train: an
update of a lower rank takes the others away, which says nothing of the bank's rows.

Cost: each measured update is read twice more, and once more for each announced rank; a layer takes
O((d_out + d_in)(N r)^2) for N measured banks. Of more than MOST_BANKS banks so many are measured, evenly spaced by
name, so that the cost does not grow with the federation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.run.records import AverageLoss
from fedfinlora.wire.messages import Reply
from server_app.replies import Replies, replies_of
from server_app.strategies.product import Matrix, Product, gram, norm_of, summed, truncated

MOST_BANKS = 8
MOST_ROUNDS = 20
"""Of a run that are measured, evenly spaced, and the last. One took 0.6 s at four banks and 135M parameters on one core
that others used too.
"""
DIGITS = 6
"""Significant digits that are written down: the last ones depend on how a library orders its sums."""

NO_RANKS: Mapping[str, int] = MappingProxyType({})
"""All banks train the same ranks."""
ALL_RANKS = sys.maxsize
"""Of a bank that announces no rank."""
Read = Callable[[Iterable[str], slice], Iterable[Vector]]
"""(banks, block) -> these parameters of their updates, in the order of the banks."""


def average_loss(
    adapter: Vector,
    step_norm: float,
    checked: Sequence[Reply],
    weights: Sequence[float],
    layout: Layout | None,
    read: Read | None = None,
    ranks: Mapping[str, int] = NO_RANKS,
) -> AverageLoss | None:
    """What a round lost. `adapter`: the global one before the round, (size,) float32; `step_norm`: Euclidean norm of
    the server's step; `checked`: the accepted replies by name, whose updates are `read` where they do not hold them;
    `ranks`: of banks that train fewer than the others (strategy.ranks). None where nothing is weighed, or no layer has
    both factors trained.
    """
    if not checked or not weights or layout is None or not layout.layers:
        return None
    places = measured(len(checked))
    some = [checked[place] for place in places]
    names = [reply.bank for reply in some]
    replies = replies_of(
        some, [weights[place] for place in places], layout, read and (lambda block: read(names, block))
    )
    shares = np.asarray(replies.weights) / sum(replies.weights)
    pairs = gram(adapter, replies)
    bias = lost = 0.0
    for layer in layout.layers:
        a, b = (part.astype(np.float64) for part in layer.of(adapter))
        changes = [(da.astype(np.float64), db.astype(np.float64)) for da, db in replies.factors(layer)]
        bias += norm_of(_bias(changes, shares)) ** 2
        lost += truncated(summed([Product(b + db, a + da) for da, db in changes], list(shares)), len(a)).lost ** 2
    exact = math.sqrt(max(0.0, float(shares @ pairs @ shares)))
    cosines = shared_cosines(adapter, replies, ranks, pairs)[np.triu_indices(len(pairs), 1)]
    cosines = cosines[~np.isnan(cosines)]
    return AverageLoss(
        banks=len(some),
        of=len(checked),
        bias=_ratio(math.sqrt(bias), exact),
        truncation=_ratio(math.sqrt(lost), exact),
        cosine_mean=rounded(float(cosines.mean())) if cosines.size else None,
        cosine_min=rounded(float(cosines.min())) if cosines.size else None,
        cosine_max=rounded(float(cosines.max())) if cosines.size else None,
        path=_ratio(step_norm, sum(reply.delta_norm for reply in checked)),
    )


def is_measured(round_number: int, rounds: int) -> bool:
    """Whether a round (from 1) of a run of so many is measured.

    >>> [number for number in range(1, 61) if is_measured(number, 60)][:3]
    [1, 4, 7]
    """
    return (round_number - 1) % math.ceil(rounds / MOST_ROUNDS) == 0 or round_number == rounds


def measured(count: int) -> list[int]:
    """Which of `count` banks are measured.

    >>> measured(3), measured(1000)[:3], len(measured(1000))
    ([0, 1, 2], [0, 143, 285], 8)
    """
    if count <= MOST_BANKS:
        return list(range(count))
    return [round(place * (count - 1) / (MOST_BANKS - 1)) for place in range(MOST_BANKS)]


def _bias(changes: Sequence[tuple[Matrix, Matrix]], shares: Matrix) -> Product:
    """sum_k p_k (B_k - B̄)(A_k - Ā) of one layer, from each bank's (dA, dB): the common start cancels."""
    mean_a = sum(share * da for share, (da, _) in zip(shares, changes, strict=True))
    mean_b = sum(share * db for share, (_, db) in zip(shares, changes, strict=True))
    return summed([Product(db - mean_b, da - mean_a) for da, db in changes], list(shares))


def shared_cosines(
    adapter: Vector, replies: Replies, ranks: Mapping[str, int] = NO_RANKS, products: Matrix | None = None
) -> Matrix:
    """(banks, banks) cosine of what each two banks change of B A, on the ranks that both train; NaN where one of them
    moves nothing there. `products`: the updates' inner products (`gram`) where they are known.
    """
    own = np.array([ranks.get(bank, ALL_RANKS) for bank in replies.banks])
    shared = np.minimum.outer(own, own)
    found = np.full(shared.shape, np.nan)
    for rank in np.unique(shared).tolist():
        if rank < ALL_RANKS:
            pairs = gram(*_of_ranks(adapter, replies, rank))
        else:
            pairs = gram(adapter, replies) if products is None else products
        lengths = np.sqrt(np.maximum(np.diag(pairs), 0.0))
        moved = np.outer(lengths, lengths)
        known = (moved > 0) & (shared == rank)
        found[known] = np.clip(pairs[known] / moved[known], -1.0, 1.0)
    return found


def _of_ranks(adapter: Vector, replies: Replies, rank: int) -> tuple[Vector, Replies]:
    """The adapter, (size,), and the updates with zeros in the ranks from `rank` on."""
    kept = np.ones(adapter.size, np.bool_)
    for layer in replies.layers:
        a, b = layer.of(kept)
        a[rank:], b[:, rank:] = False, False
    cut = replace(replies, read=lambda block: (update * kept[block] for update in replies.updates(block)))
    return adapter * kept, cut


def _ratio(value: float, of: float) -> float | None:
    """None where nothing has moved."""
    return rounded(value / of) if of > 0 else None


def rounded(value: float) -> float:
    """To DIGITS significant digits."""
    return float(f"{value:.{DIGITS}g}")
