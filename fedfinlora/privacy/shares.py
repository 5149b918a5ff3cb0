"""Weights of which none is more than a share of all: what one bank claims about itself must not make it the average."""

from __future__ import annotations

from collections.abc import Sequence


def capped(weights: Sequence[float], most: float) -> list[float]:
    """The weights with no share of their sum above `most`, where `most` is below 1; n weights may always have 1/n each.

    What is cut off goes to the others in proportion to their weights, capped too. Weights of which none is too large
    are given back as they are, to the bit.

    | weights | most | result, as shares |
    |---|---|---|
    | any two | at most 1/2 | 1/2 each: with two banks the cap makes them equal |
    | one of n that claims everything | m > 1/n | it has m, the others share 1 - m in proportion |
    | any | at most 1/n | 1/n each |
    | any | 1 | unchanged |

    >>> capped([1e12, 30.0, 10.0], 0.5)
    [0.5, 0.375, 0.125]
    >>> [round(share, 3) for share in capped([60.0, 30.0, 10.0], 0.4)]
    [0.4, 0.4, 0.2]
    >>> capped([3.0, 1.0], 1.0)
    [3.0, 1.0]
    """
    cap = max(most, 1 / len(weights))
    over: set[int] = set()
    while True:
        free = sum(weight for place, weight in enumerate(weights) if place not in over)
        left = 1.0 - cap * len(over)
        further = {
            place
            for place, weight in enumerate(weights)
            if place not in over and left * weight > cap * free * (1 + 1e-12)
        }
        if not further:
            break
        over |= further
    if not over:
        return list(weights)
    if len(over) == len(weights):
        return [1.0] * len(weights)
    return [cap if place in over else left * weight / free for place, weight in enumerate(weights)]
