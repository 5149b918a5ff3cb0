"""The settings of the local training loop: `train.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """The local training loop, the same for a bank, for all rows pooled and for one bank alone."""

    optimizer: str = "adamw"
    """adamw; adamw_8bit (moments of 8 bits; Dettmers et al. 2022) and paged_adamw_8bit (in the host's memory when the
    GPU's is full; CUDA alone), both by bitsandbytes; or sgd without momentum: FedAdam's bank side (Reddi et al. 2021),
    where the server does the adapting.
    """
    sgd_learning_rate: float = 1.0
    """The constant rate of optimizer=sgd: at 1.0 a delta of one step is the negative gradient."""
    learning_rate: float = 2e-3
    """Peak of AdamW's schedule, at banks with optimizer=adamw and in the baselines always. FinLoRA's 1e-4 suits 8B
    models (train=finlora); the embedded 135M model wants more.
    """
    schedule: str = "cosine"
    """cosine or constant, over the whole run: a new round does not restart it."""
    warmup_steps: int = 10
    """Linear warm-up, counted in optimiser steps of one bank over the whole run."""
    weight_decay: float = 0.0
    """Decoupled (AdamW); added to the gradient by sgd."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.999
    """Decay of AdamW's second moment."""
    clip_norm: float = 1.0
    """Largest L2 norm of a step's gradient over all trainable tensors; 0 = no clipping."""
    batch_rows: int = 16
    """Rows of one optimiser step; 0 = as many as spread `epochs` evenly over steps_per_round steps in each round."""
    batch_tokens: int = 2048
    """After its first row a forward pass takes at most so many further tokens, those that rows share counted once. A
    step of more is accumulated; its loss is the mean over all its answer tokens.
    """
    share_prefix: bool = True
    """Run the common beginning of a step's prompts once (same loss and gradients, fewer tokens)."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every layer in the backward pass: about a third slower, far less memory."""
    memory_gib: float = 0.0
    """Most memory for the activations of one forward pass, in GiB; layers are checkpointed, then passes split, to stay
    below it. 0 = half of what is free on the device when training starts.
    """
    processes: int = 1
    """Processes of one bank that train together, each with the whole model on a GPU of its own: a step's rows are
    divided among them, loss and gradients stay those of one process.
    """
    proximal_mu: float = 0.0
    """FedProx (Li et al. 2020): adds mu/2 |w - w_global|^2 to the loss; 0 = off."""
    steps_per_round: int = 3
    """Optimiser steps of each bank in each round. Not used when epochs and batch_rows are both set."""
    epochs: float = 0.0
    """Passes of each bank over its rows in the whole run, spread evenly over its rounds; 0 = use steps_per_round."""
    max_steps: int = 0
    """Most optimiser steps of one bank in the whole run; 0 = no limit."""
    max_rows: int = 0
    """Most train rows of one bank (a seeded sample); 0 = all."""
    optimizer_state: str = "keep"
    """keep: Adam's moments stay on the bank from round to round; reset: a fresh optimiser each round."""
    holdout_fraction: float = 0.02
    """Share of a bank's rows held out to measure the received global adapter."""
    holdout_max_rows: int = 16
    """At most this many held-out rows; 0 = no hold-out."""
    holdout_every: int = 1
    """Measure the held-out loss every so many rounds."""

    def __post_init__(self) -> None:
        choose(self.schedule, ("cosine", "constant"), "train.schedule")
        choose(self.optimizer_state, ("keep", "reset"), "train.optimizer_state")
        choose(self.optimizer, OPTIMIZERS, "train.optimizer")
        for name in ("learning_rate", "sgd_learning_rate", "batch_tokens", "holdout_every", "processes"):
            require(getattr(self, name) > 0, f"train.{name} must be above 0, not {getattr(self, name)}.")
        for name in ("learning_rate", "sgd_learning_rate"):
            require(
                math.isfinite(getattr(self, name)),
                f"train.{name} must be a finite number, not {getattr(self, name)}.",
            )
        for name in [
            "batch_rows",
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "proximal_mu",
            "steps_per_round",
            "epochs",
            "max_steps",
            "max_rows",
            "holdout_max_rows",
            "memory_gib",
        ]:
            require(getattr(self, name) >= 0, f"train.{name} must be 0 or more, not {getattr(self, name)}.")
        for name in ("beta1", "beta2", "holdout_fraction"):
            require(0 <= getattr(self, name) < 1, f"train.{name} must be in [0, 1), not {getattr(self, name)}.")
        require(
            self.batch_rows > 0 or (self.epochs > 0 and self.steps_per_round > 0),
            "train.batch_rows=0 spreads train.epochs over train.steps_per_round steps a round: set both above 0.",
        )
        require(
            self.steps_per_round > 0 or self.epochs > 0,
            "Nothing to train: set train.steps_per_round or train.epochs above 0.",
        )
