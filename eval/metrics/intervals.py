"""95 % intervals: Wilson's for shares of rows, a seeded bootstrap over rows for every other figure, and how intervals
of means follow.

A *kind* is a set of rows that are alike in all that a figure depends on. Drawing n rows with replacement and counting
the kinds is one multinomial draw, so a figure is written once, as a function of how often each kind occurs, and is
computed for the sample and for all resamples together: counts (1 + RESAMPLES, kinds) in, values (1 + RESAMPLES,) out,
the sample itself in the first place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from fedfinlora.seeds import generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

RESAMPLES = 1000
"""Bootstrap resamples of each benchmark's rows."""

BOOTSTRAP_SEED = 0
"""Fixed, so that the same records give the same intervals, for any run."""


def wilson_interval(hits: int, n: int, z: float = Z_95) -> tuple[float, float] | None:
    """The Wilson score interval of the share hits / n (Wilson 1927); None for n = 0.

    Unlike p ± z·sqrt(p(1-p)/n) it stays inside [0, 1] and has a width at 0 and at n hits.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not between 0 and n={n}")
    if n == 0:
        return None
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def sample_and_resamples(rows_of_kind: Sequence[int]) -> Array:
    """How often each kind of row occurs in the sample and in each resample: (1 + RESAMPLES, kinds) float64 of whole
    numbers.

    Without rows there is nothing to draw: (1, kinds) of zeros.
    """
    import numpy as np

    sample = np.asarray(rows_of_kind, dtype=np.float64)
    n = int(sample.sum())
    if n == 0:
        return np.zeros((1, len(sample)))
    drawn = generator(BOOTSTRAP_SEED, "bootstrap").multinomial(n, sample / n, size=RESAMPLES)
    return np.vstack([sample, drawn])


def estimate_of(values: Array) -> float | None:
    """The figure of the sample, the first of `values`; None where it is undefined (NaN)."""
    value = float(values[0])
    return None if math.isnan(value) else value


def bootstrap_interval(values: Array, lowest: float = 0.0, highest: float = 1.0) -> tuple[float, float] | None:
    """(2.5 %, 97.5 %) percentile of the resamples, values[1:], freed of their bias; None where the figure itself is
    undefined.

    Efron's (1979) percentile interval, moved by the figure minus the mean of its resamples, and kept within what the
    figure can be. It matters for F1 over hundreds of answers that occur once, which is higher in nearly every resample,
    because a resample repeats rows (1,200 rows with as many answers, 59 % right: 0.51, resampled 0.52 to 0.57).

    Resamples in which the figure is undefined (Matthews correlation, when one class alone was drawn) are dropped.
    Where every row counts alike, at 0, at 1 and with one row, the interval has no width.
    """
    import numpy as np

    estimate, resamples = estimate_of(values), values[1:]
    if estimate is None:
        return None
    defined = resamples[~np.isnan(resamples)]
    if not defined.size:
        return estimate, estimate
    shift = estimate - float(defined.mean())
    low, high = (float(end) + shift for end in np.percentile(defined, [2.5, 97.5]))
    return max(lowest, min(low, estimate)), min(highest, max(high, estimate))


def mean_interval(figures: Sequence[tuple[float, Sequence[float] | None]]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent figures, each given as (figure, its own interval); None if one has
    none.

    Each side adds up as standard errors do: low = mean - sqrt(Σ (figure - low)²) / k, and likewise high ("MOVER", Zou
    and Donner 2008, section 2). With symmetric intervals this is the stratified bootstrap's normal approximation;
    unlike it, benchmarks at 0 or 1 keep the width that Wilson's interval gives them.

    >>> low, high = mean_interval([(0.5, [0.3, 0.8]), (0.7, [0.3, 1.0])])
    >>> round(low, 3), round(high, 3)  # 0.6 - hypot(0.2, 0.4) / 2, 0.6 + hypot(0.3, 0.3) / 2
    (0.376, 0.812)
    """
    if not figures or any(interval is None for _, interval in figures):
        return None
    k = len(figures)
    mean = math.fsum(figure for figure, _ in figures) / k
    below = math.hypot(*(figure - interval[0] for figure, interval in figures if interval))
    above = math.hypot(*(interval[1] - figure for figure, interval in figures if interval))
    return mean - below / k, mean + above / k
