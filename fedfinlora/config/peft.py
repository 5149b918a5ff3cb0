"""The settings of the adapter: `peft.*`."""

from __future__ import annotations

from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

PEFT_METHODS = (
    "lora",
    "qlora",
    "dora",
    "rslora",
    "lora_xs",
    "pissa",
    "olora",
    "eva",
    "loftq",
    "qalora",
    "ir_qlora",
    "vera",
    "miss",
    "hira",
    "shira",
)
PLAIN_METHODS = ("lora", "qlora", "rslora")
"""A and B, and nothing else."""
WITHOUT_FACTORS = ("lora_xs", "vera", "miss", "hira", "shira", "ir_qlora")
"""Methods whose change of a weight is not the product of a trained A and a trained B."""
WITHOUT_ROW_GRADIENTS = {
    "dora": "its magnitudes are no weights of linear layers",
    "vera": "its vectors are no weights of linear layers",
    "ir_qlora": "its two factors a layer are no weights of linear layers",
    "hira": "its A and B multiply the base's weights, not the layer's inputs",
    "shira": "the weights that it trains are no linear layer of their own",
}
"""Method -> why privacy=example and privacy=dp_lora cannot clip the gradient of one row."""
ALL_LINEAR = "all-linear"
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What all-linear means: every linear layer of a Llama's decoder (Qwen, Mistral and Gemma name them the same)."""


@dataclass(frozen=True)
class PeftConfig:
    """The trainable adapter. Defaults are FinLoRA's for an 8-bit base (r 8, alpha 16, dropout 0.05, q, k, v)."""

    method: str = "lora"
    """lora (Hu et al. 2021), qlora (the same on an nf4 base; Dettmers et al. 2023), dora (Liu et al. 2024), rslora
    (Kalajdzievski 2023), lora_xs (Bałazy et al. 2024): A and B are singular vectors of the base, and a rank x rank
    matrix between them is trained and sent. Other starts: pissa, olora, eva, loftq. Other forms: qalora, ir_qlora,
    vera, miss, hira, shira. docs/peft.md has the papers and what goes with what.
    """
    rank: int = 8
    """Rows of A and columns of B; lora_xs sends rank² numbers a layer, vera rank + d_out, miss rank · d_out."""
    alpha: int = 16
    """Scaling numerator: s = alpha / rank (rslora: alpha / sqrt(rank)). vera, miss, hira and shira have no scaling."""
    dropout: float = 0.05
    """Share of the adapter's inputs dropped in training."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Always named: PEFT's own default for Llama is q and v only. all-linear = the seven linear layers of a decoder."""
    freeze_a: bool = False
    """FFA-LoRA (Sun et al. 2024): A stays as drawn from the run's seed, only B is trained and sent. The mean of the
    banks' B times A is then exactly the mean of their updates.
    """
    frozen_rank: int = 0
    """So many of peft.rank's ranks hold the adapter of an earlier stage, from start_adapter: they are computed with and
    not trained. `stages` sets it.
    """
    trained_modules: tuple[str, ...] = ()
    """With frozen_rank: those of target_modules whose other ranks are trained; empty = all. `stages` sets it."""
    loraplus_ratio: float = 1.0
    """LoRA+ (Hayou, Ghosh, Yu 2024): B learns at this many times the rate of A, which is train.learning_rate. 1 = LoRA;
    the paper takes 16.
    """
    group_size: int = 32
    """qalora only: neighbouring inputs that share one column of A."""
    rows: str = ""
    """eva only: a folder of public rows, *.jsonl with the field `context`, at the coordinator. Its inputs to each layer
    give A.
    """

    def __post_init__(self) -> None:
        choose(self.method, PEFT_METHODS, "peft.method")
        require(self.rank > 0, f"peft.rank must be above 0, not {self.rank}.")
        require(self.alpha > 0, f"peft.alpha must be above 0, not {self.alpha}.")
        require(0 <= self.dropout < 1, f"peft.dropout must be in [0, 1), not {self.dropout}.")
        require(
            len(self.target_modules) > 0,
            "peft.target_modules is empty. Name the layers, e.g. [q_proj,k_proj,v_proj].",
        )
        if self.target_modules == (ALL_LINEAR,):
            object.__setattr__(self, "target_modules", LINEAR_LAYERS)
        require(
            ALL_LINEAR not in self.target_modules,
            f"peft.target_modules: {ALL_LINEAR} names every layer already. Give it alone.",
        )
        require(
            not (self.freeze_a and self.method == "dora"),
            "peft.freeze_a=true goes with lora, qlora and rslora: DoRA's magnitudes depend on A and B together.",
        )
        require(
            not self.freeze_a or self.method in PLAIN_METHODS,
            f"peft.freeze_a=true goes with lora, qlora and rslora: peft={self.method} "
            f"{'trains neither A nor B' if self.method == 'lora_xs' else 'has its own A and B'}. Set "
            "peft.freeze_a=false.",
        )
        self._check_loraplus()
        self._check_frozen()
        require(self.group_size > 1, f"peft.group_size must be 2 or more, not {self.group_size}.")
        require(
            bool(self.rows) == (self.method == "eva"),
            "peft=eva and peft.rows=FOLDER (public rows, *.jsonl) go together: give both or neither.",
        )

    def trains(self, layer: str) -> bool:
        """Whether ranks of a layer, named by its module path, are trained."""
        return not self.trained_modules or any(
            layer == name or layer.endswith(f".{name}") for name in self.trained_modules
        )

    def _check_frozen(self) -> None:
        require(
            0 <= self.frozen_rank < self.rank,
            f"peft.frozen_rank must be 0 (none) or more and below peft.rank={self.rank}, not {self.frozen_rank}.",
        )
        require(
            not self.frozen_rank or (self.method in ("lora", "qlora") and not self.freeze_a),
            f"peft.frozen_rank={self.frozen_rank} goes with peft=lora and qlora, whose A and B are both trained: not "
            f"with peft={self.method} and peft.freeze_a={str(self.freeze_a).lower()}.",
        )
        require(
            set(self.trained_modules) <= (set(self.target_modules) if self.frozen_rank else set()),
            "peft.trained_modules names some of peft.target_modules, and goes with peft.frozen_rank. Leave it empty.",
        )

    def _check_loraplus(self) -> None:
        require(
            1 <= self.loraplus_ratio < 1e6,
            f"peft.loraplus_ratio must be 1 (off) or more and below 1e6, not {self.loraplus_ratio}.",
        )
        require(
            self.loraplus_ratio == 1 or (self.method not in WITHOUT_FACTORS and not self.freeze_a),
            f"peft.loraplus_ratio={self.loraplus_ratio:g} sets the rate of B next to A's, and peft={self.method}"
            f"{' with peft.freeze_a=true' if self.freeze_a else ''} does not train both. Set it to 1 and raise "
            "train.learning_rate.",
        )
