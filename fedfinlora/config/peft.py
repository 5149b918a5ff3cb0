"""The settings of the adapter: `peft.*`."""

from __future__ import annotations

from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

PEFT_METHODS = ("lora", "qlora", "dora", "rslora", "lora_xs")


@dataclass(frozen=True)
class PeftConfig:
    """The trainable adapter. Defaults are FinLoRA's for an 8-bit base (r 8, alpha 16, dropout 0.05, q, k, v)."""

    method: str = "lora"
    """lora (Hu et al. 2021), qlora (the same on an nf4 base; Dettmers et al. 2023), dora (Liu et al. 2024), rslora
    (Kalajdzievski 2023), lora_xs (Bałazy et al. 2024): A and B are singular vectors of the base, and a rank x rank
    matrix between them is trained and sent.
    """
    rank: int = 8
    """Rows of A and columns of B; lora_xs sends rank² numbers a layer."""
    alpha: int = 16
    """Scaling numerator: s = alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: float = 0.05
    """Share of the adapter's inputs dropped in training."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Always named: PEFT's own default for Llama is q and v only."""
    freeze_a: bool = False
    """FFA-LoRA (Sun et al. 2024): A stays as drawn from the run's seed, only B is trained and sent. The mean of the
    banks' B times A is then exactly the mean of their updates.
    """

    def __post_init__(self) -> None:
        choose(self.method, PEFT_METHODS, "peft.method")
        require(self.rank > 0, f"peft.rank must be above 0, not {self.rank}.")
        require(self.alpha > 0, f"peft.alpha must be above 0, not {self.alpha}.")
        require(0 <= self.dropout < 1, f"peft.dropout must be in [0, 1), not {self.dropout}.")
        require(
            len(self.target_modules) > 0,
            ("peft.target_modules is empty. Name the layers, e.g. [q_proj,k_proj,v_proj]."),
        )
        require(
            not (self.freeze_a and self.method == "dora"),
            "peft.freeze_a=true goes with lora, qlora and rslora: DoRA's magnitudes depend on A and B together.",
        )
        require(
            not (self.freeze_a and self.method == "lora_xs"),
            (
                "peft.freeze_a=true goes with lora, qlora and rslora: peft=lora_xs trains neither A nor B. Set "
                "peft.freeze_a=false."
            ),
        )
