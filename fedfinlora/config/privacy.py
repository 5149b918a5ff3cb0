"""The settings of differential privacy: `privacy.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

PRIVACY_MODES = ("none", "example", "dp_lora", "bank")
PRIVACY_IN_THE_BANK = ("example", "dp_lora")
"""Those with which each bank makes its own reply private."""


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy. With `none` the deltas leave the banks as they are."""

    mode: str = "none"
    """none; example: DP-SGD on the adapter inside each bank (Abadi et al. 2016), with a ledger on the bank's disk;
    dp_lora: the published algorithm (Liu et al. 2023), for comparison; bank: the server, which is trusted, hides
    whether a bank took part (McMahan et al. 2018).
    """
    unit: str = "example"
    """Who is protected: example (one row), customer (all rows with the same `issuer`, clipped together), or, with
    privacy=bank, bank.
    """
    epsilon: float = 0.0
    """Wanted at the end of the run; the noise multiplier is found for the planned steps. 0 = privacy.noise_multiplier
    is given instead.
    """
    delta: float = 0.0
    """Probability with which the guarantee may fail; 0 = min(1e-5, N^-1.2), with N the declared rows of a bank's whole
    data set (with privacy=bank the number of banks). A bank takes this one only where it is smaller than its own.
    """
    noise_multiplier: float = 0.0
    """Standard deviation of the noise over clip_norm; 0 = found from privacy.epsilon."""
    clip_norm: float = 1.0
    """Largest L2 norm over all trainable tensors together of one unit's gradient; with privacy=bank of a bank's delta;
    with privacy=dp_lora of a minibatch's gradient of A, and of B.
    """
    adaptive_quantile: float = 0.0
    """privacy=bank: clip_norm is only the first, and then follows this quantile of the deltas' norms (Andrew et al.
    2021); 0 = fixed.
    """
    adaptive_rate: float = 0.2
    """privacy=bank: how fast the clip norm follows, the eta of Andrew et al.'s equation 1."""
    accept_noise: bool = False
    """privacy=bank: continue although the noise on a round's mean is longer than a delta can be, as it is with few
    banks.
    """
    budget_epsilon: float = 0.0
    """A bank refuses a round that would bring its data's epsilon over all runs above this; 0 = no limit. A bank's own,
    lower limit wins.
    """
    augmentations: int = 1
    """privacy=example: each unit's gradient is the mean over so many copies of it with dropout masks of their own,
    before the clip (De et al. 2022).
    """

    def __post_init__(self) -> None:
        choose(self.mode, PRIVACY_MODES, "privacy")
        choose(self.unit, ("example", "customer", "bank"), "privacy.unit")
        for name in ("epsilon", "noise_multiplier", "budget_epsilon"):
            require(
                getattr(self, name) >= 0, f"privacy.{name} must be 0 (not given) or more, not {getattr(self, name)}."
            )
            require(
                math.isfinite(getattr(self, name)),
                f"privacy.{name} must be a finite number, not {getattr(self, name)}.",
            )
        require(0 <= self.delta < 1, f"privacy.delta must be in (0, 1), far below 1, not {self.delta}.")
        require(self.clip_norm > 0, f"privacy.clip_norm must be above 0, not {self.clip_norm}.")
        require(math.isfinite(self.clip_norm), f"privacy.clip_norm must be a finite number, not {self.clip_norm}.")
        if self.mode == "none":
            given = [name for name in ("epsilon", "noise_multiplier", "budget_epsilon") if getattr(self, name)]
            require(not given, f"privacy.{given[0] if given else ''} needs privacy=example, dp_lora or bank.")
            return
        require(
            (self.mode == "bank") == (self.unit == "bank"),
            f"privacy.unit={self.unit} does not go with privacy={self.mode}: privacy=bank protects a bank, the "
            "others a row or a customer.",
        )
        require(
            0 <= self.adaptive_quantile < 1,
            f"privacy.adaptive_quantile must be in [0, 1), 0 for a fixed clip norm, not {self.adaptive_quantile}.",
        )
        require(self.adaptive_rate > 0, f"privacy.adaptive_rate must be above 0, not {self.adaptive_rate}.")
        require(self.augmentations >= 1, f"privacy.augmentations must be 1 or more, not {self.augmentations}.")
        require(self.augmentations == 1 or self.mode == "example", "privacy.augmentations belongs to privacy=example.")
        bank_only = [
            name for name in ("adaptive_quantile", "accept_noise") if getattr(self, name) and self.mode != "bank"
        ]
        require(not bank_only, f"privacy.{bank_only[0] if bank_only else ''} belongs to privacy=bank.")
        both = self.epsilon > 0 and self.noise_multiplier > 0
        require(
            not both,
            "privacy.epsilon and privacy.noise_multiplier are both given: one follows from the other. Set one of "
            "them to 0.",
        )
        neither = not self.epsilon and not self.noise_multiplier
        require(not neither, f"privacy={self.mode} needs privacy.epsilon or privacy.noise_multiplier above 0.")

    @property
    def in_the_bank(self) -> bool:
        """Whether each bank makes its own reply private, and therefore withholds what its rows would decide."""
        return self.mode in PRIVACY_IN_THE_BANK
