"""IR-QLoRA's information calibration quantization (Qin, Ma, Zheng et al. 2024, arXiv 2402.05445, section 3.2).

It chooses for each block of weights the shift tau whose 4-bit codes have the highest entropy. No run applies it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

BLOCK_WEIGHTS = 64
SEARCH_RANGE = 0.1
"""Of tau, in standard deviations of nf4's normal distribution, whose largest code is 1: the paper's lambda."""
SEARCH_STEPS = 51
"""On either side of the median: the paper's n."""


class Calibrated(NamedTuple):
    """Blocks of weights as 4-bit codes with a shift each: w ~ largest code_value + tau."""

    tau: NDArray[np.float64]
    """(blocks,)."""
    entropy: NDArray[np.float64]
    """(blocks,) bits: of the codes of each block; 4 at most."""
    weight: NDArray[np.float64]
    """The values that the codes stand for, in the shape of the weight."""


def calibrate(weight: NDArray[np.float64], code: NDArray[np.float64], steps: int = SEARCH_STEPS) -> Calibrated:
    """Quantize blocks of 64 neighbouring weights, each with the tau around its median whose codes have most entropy.

    `code`: the 16 values of a 4-bit type from -1 to 1, ascending (nf4's). `steps` 0 = tau is the median. ValueError
    where the size of `weight` is no multiple of 64.
    """
    blocks = weight.reshape(-1, BLOCK_WEIGHTS)
    median = np.median(blocks, axis=1)
    largest = np.abs(blocks - median[:, None]).max(axis=1)
    sigma = 1 / norm.ppf(0.9677083)  # nf4's largest code is this quantile
    best = _shifted(blocks, median, code)
    for factor in np.linspace(-SEARCH_RANGE * sigma, SEARCH_RANGE * sigma, 2 * steps + 1) if steps else ():
        found = _shifted(blocks, median + factor * largest, code)
        better = found.entropy > best.entropy
        best = Calibrated(
            np.where(better, found.tau, best.tau),
            np.where(better, found.entropy, best.entropy),
            np.where(better[:, None], found.weight, best.weight),
        )
    return best._replace(weight=best.weight.reshape(weight.shape))


def _shifted(blocks: NDArray[np.float64], tau: NDArray[np.float64], code: NDArray[np.float64]) -> Calibrated:
    """Blocks (blocks, 64) with a given tau each: a weight becomes the nearest value of `code` times the largest one."""
    apart = blocks - tau[:, None]
    largest = np.abs(apart).max(axis=1, keepdims=True)
    scale = np.where(largest == 0, 1.0, largest)
    codes = np.searchsorted((code[1:] + code[:-1]) / 2, apart / scale)
    return Calibrated(tau, entropy_bits(codes), code[codes] * scale + tau[:, None])


def entropy_bits(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(blocks,): H = -sum p log2 p of the codes 0 to 15 in each block, (blocks, 64).

    >>> entropy_bits(np.array([[0, 0, 1, 1], [3, 3, 3, 3]])).tolist()
    [1.0, 0.0]
    """
    shares = np.stack([(codes == value).mean(axis=1) for value in range(16)], axis=1)
    logs = np.log2(np.where(shares == 0, 1.0, shares))
    return np.asarray(np.abs((shares * logs).sum(axis=1)), np.float64)
