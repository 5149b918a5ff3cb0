"""How far a bank moves A and B for what it changes of the product B A: a warning against updates in a spoilt gauge.

(B G)(G^-1 A) is the same product for every invertible G, so under a rule that averages A and B apart one bank can send
an honest product in factors that ruin the mean. Such factors are far from the last global ones while their product is
not: the length of the update, |(dA, dB)|, is large next to that of its product, |dB (A + dA) + B dA|. Honest banks of a
round start from the same factors, and their ratios are alike; each is compared with the round's (lower) median. A bank
of a lower rank (strategy.ranks) is measured on the ranks that it trains: its update also takes the others away, and
where B is zero that moves A far and the product not at all.

Cost: each update is read once more, and a layer takes O((d_out + d_in) r^2) a bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.run.records import FactorLength
from server_app.average_loss import NO_RANKS, rounded
from server_app.strategies.product import bank_update, norm_of

Factors = Callable[[str, slice], Vector]
"""(bank, block) -> these parameters of its update."""


def factor_length(
    adapter: Vector, banks: Sequence[str], layout: Layout, read: Factors, ranks: Mapping[str, int] = NO_RANKS
) -> FactorLength | None:
    """The bank with the largest of `factor_ratios`, which has the arguments; None where there are none."""
    ratios = factor_ratios(adapter, banks, layout, read, ranks)
    if not ratios:
        return None
    bank = max(ratios, key=lambda name: (ratios[name], name))
    return FactorLength(bank, rounded(ratios[bank]))


def factor_ratios(
    adapter: Vector, banks: Sequence[str], layout: Layout, read: Factors, ranks: Mapping[str, int] = NO_RANKS
) -> dict[str, float]:
    """Bank -> its ratio over the round's median. `adapter`: the global one before the round, (size,) float32; `ranks`:
    of banks that train fewer than the others (strategy.ranks). {} where fewer than two banks have moved, or no layer
    has both factors trained.
    """
    ratios = dict(_ratios(adapter, banks, layout, read, ranks)) if len(banks) > 1 else {}
    if len(ratios) < 2:
        return {}
    median = sorted(ratios.values())[(len(ratios) - 1) // 2]
    return {bank: ratio / median for bank, ratio in ratios.items()}


def _ratios(
    adapter: Vector, banks: Sequence[str], layout: Layout, read: Factors, ranks: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """(bank, length of its update over that of its product) of each that has moved its product."""
    for bank in banks:
        length, product, rank = 0.0, 0.0, ranks.get(bank)
        for layer in layout.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(adapter))
            da = read(bank, layer.a).astype(np.float64).reshape(layer.a_shape)[:rank]
            db = read(bank, layer.b).astype(np.float64).reshape(layer.b_shape)[:, :rank]
            length += float(np.sum(da**2) + np.sum(db**2))
            product += norm_of(bank_update(a[:rank], b[:, :rank], da, db)) ** 2
        if product > 0:
            yield bank, math.sqrt(length / product)
