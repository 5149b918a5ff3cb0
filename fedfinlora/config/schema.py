"""The configuration schema: frozen dataclasses, the only home of every default and of its meaning.

Each group of settings has a file of its own next to this one; here is the whole, with what groups demand of each
other. `fedfinlora.config.values` builds a `Config` from plain values, and gives them again. Nothing here imports torch
or Hydra, so a bank can validate what it was sent before it loads anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedfinlora.config.checks import folder_name_fault, require
from fedfinlora.config.dataset import DatasetConfig, PartitionConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.frozen_ranks import MIXING_RULES, check_frozen_ranks
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import WITHOUT_FACTORS, WITHOUT_ROW_GRADIENTS, PeftConfig
from fedfinlora.config.privacy import PRIVACY_IN_THE_BANK, PRIVACY_MODES, PrivacyConfig
from fedfinlora.config.strategy import REPORTED_WEIGHTS, StrategyConfig
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import choose

MOST_ROUNDS = 100_000
"""Of a run: what an accountant adds up within seconds."""
LOGGERS = ("mlflow", "trackio", "wandb")
"""What `loggers` may name."""


@dataclass(frozen=True)
class Config:
    """One run."""

    num_server_rounds: int = 3
    """Rounds of the run."""
    banks: int = 2
    """Simulated banks. A deployment takes the banks that are connected."""
    workers: int = 0
    """Simulated banks that train at the same time, each with its own copy of the base model; 0 = one a core, or one a
    GPU.
    """
    seed: int = 0
    """Decides every draw: partition, sampling, row order, dropout, the adapter's start."""
    output_dir: str = "~/.fedfinlora/runs"
    """Where the folders of runs are made."""
    run_name: str = ""
    """The run's folder below output_dir; empty = date, time, model and strategy."""
    resume: str = ""
    """A run's folder to resume."""
    resume_anyway: bool = False
    """Resume although data, code, base model or packages are not those that the run began with; what differs is kept in
    resumed.jsonl.
    """
    overwrite: bool = False
    """Replace an earlier run of the same name."""
    keep_rounds: int = 20
    """Of how many of the last rounds the adapter and the scored rows stay in the run's folder, next to the best and the
    final adapter; 0 = of all. With strategy.keep_deltas all adapters stay.
    """
    start_adapter: str = ""
    """A PEFT folder whose adapter the run starts from; empty = A drawn from the seed, B zero. A private run does not
    protect the rows that it was trained on.
    """
    loggers: tuple[str, ...] = ()
    """Experiment trackers that get the figures by round, next to TensorBoard: mlflow, trackio, wandb. They write into
    the run's folder and send nothing.
    """
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require(self.num_server_rounds >= 1, f"num_server_rounds must be 1 or more, not {self.num_server_rounds}.")
        require(
            self.num_server_rounds <= MOST_ROUNDS,
            f"num_server_rounds must be {MOST_ROUNDS:,} or fewer, not {self.num_server_rounds}.",
        )
        require(
            not self.run_name or not folder_name_fault(self.run_name),
            f"run_name={self.run_name!r} must be a plain folder name: {folder_name_fault(self.run_name)}.",
        )
        require(self.banks >= 1, f"banks must be 1 or more, not {self.banks}.")
        require(self.keep_rounds >= 0, f"keep_rounds must be 0 (all) or more, not {self.keep_rounds}.")
        require(self.workers >= 0, f"workers must be 0 (one a core or GPU) or more, not {self.workers}.")
        for logger in self.loggers:
            choose(logger, LOGGERS, "logger")
        require(self.seed >= 0, f"seed must be 0 or more, not {self.seed}.")
        require(
            self.peft.method != "qlora" or self.model.quantization == "nf4",
            (
                f"peft=qlora is LoRA on a 4-bit base: set model.quantization=nf4 (now {self.model.quantization}) or "
                "peft=lora."
            ),
        )
        require(
            self.peft.method != "loftq" or self.model.quantization != "none",
            "peft=loftq starts from what quantizing the base loses, and model.quantization=none loses nothing. Set nf4 "
            "or int8, or peft=lora.",
        )
        require(
            not 0 < self.train.max_steps < self.num_server_rounds,
            (
                f"train.max_steps={self.train.max_steps} is fewer than the {self.num_server_rounds} rounds. Lower "
                "num_server_rounds or raise it."
            ),
        )
        if self.privacy.mode != "none":
            self._check_private()
        require(
            self.train.processes == 1 or not self.model.device_map,
            f"train.processes={self.train.processes} does not go with model.device_map: each process holds the whole "
            "model on one GPU. Set one of them only.",
        )
        self._check_rule()
        if self.strategy.residual_rank or self.strategy.ranks:
            self._check_ranks()
        if self.peft.frozen_rank:
            check_frozen_ranks(self)
        require(
            self.strategy.quorum <= self.banks,
            f"strategy.quorum={self.strategy.quorum} can never be reached with banks={self.banks}.",
        )

    @property
    def trained_rank(self) -> int:
        """Ranks that a bank of the run's rank trains."""
        return self.peft.rank - self.strategy.residual_rank - self.peft.frozen_rank

    def rank_of(self, bank: str) -> int:
        """Ranks that a bank trains: those of strategy.ranks, else all that are trained."""
        return self.strategy.declared_ranks().get(bank, self.trained_rank)

    def _check_ranks(self) -> None:
        """Each line: whether the setting is wrong, the setting, why."""
        strategy, peft = self.strategy, self.peft
        what = f"strategy={strategy.name}"
        too_high = [bank for bank, rank in strategy.declared_ranks().items() if rank > self.trained_rank]
        plain = peft.method in ("lora", "qlora", "rslora") and not peft.freeze_a
        for wrong, key, why in (
            (strategy.residual_rank >= peft.rank, f"strategy.residual_rank={strategy.residual_rank}",
            f"at least one of peft.rank={peft.rank} is trained. Raise peft.rank"),
            (bool(too_high), f"strategy.ranks of {', '.join(too_high)}",
            f"banks train {self.trained_rank} ranks at most. Lower it"),
            (not plain, f"peft={peft.method}" + (" peft.freeze_a=true" if peft.freeze_a else ""),
            "it works on A and B of plain LoRA. Set peft=lora or rslora, peft.freeze_a=false"),
            (strategy.residual_rank > 0 and self.train.weight_decay > 0,
            f"train.weight_decay={self.train.weight_decay:g}",
            "it would shrink ranks that no bank trains. Set train.weight_decay=0"),
            (self.privacy.mode != "none", f"privacy={self.privacy.mode}",
            "noise would fall on ranks that a bank does not train. Set privacy=none"),
        ):  # fmt: skip
            require(not wrong, f"{what} does not go with {key}: {why}.")

    def _check_rule(self) -> None:
        """What the bank's side of a rule rests on."""
        rule, train, peft = self.strategy.name, self.train, self.peft
        steps_by_rows = train.epochs > 0 and train.batch_rows > 0
        for of, wrong, why in (
            ("scaffold", train.optimizer != "sgd", "corrects SGD steps at the banks: set train.optimizer=sgd."),
            ("scaffold", steps_by_rows,
            "needs equal steps at all banks: set train.steps_per_round, and train.epochs or train.batch_rows to 0."),
            ("scaffold", self.privacy.in_the_bank,
            f"corrects gradients after the noise of privacy={self.privacy.mode}. Choose strategy=fedavg or fedadam."),
            ("scaffold", peft.loraplus_ratio != 1,
            "computes its control variates from one learning rate. Set peft.loraplus_ratio=1."),
            ("fedadamw_local", train.optimizer != "adamw", "starts AdamW at the banks: set train.optimizer=adamw."),
            ("fedadamw_local", self.privacy.mode != "none",
            f"sends means of squared gradients, which privacy={self.privacy.mode} neither clips nor hides: they tell "
            "of the rows. Choose strategy=fedavg or fedadam."),
            ("fedadamw_local", peft.frozen_rank > 0,
            "averages second moments over whole tensors, and ranks of an earlier stage have none. Choose "
            "strategy=fedavg."),
            *((of, peft.method in WITHOUT_FACTORS[1:],
            f"works on A and B, which peft={peft.method} does not train. Choose strategy=fedavg or fedadam, or "
            "peft=lora.") for of in MIXING_RULES),
            ("rolora", peft.freeze_a or peft.method in ("dora", "lora_xs"),
            f"trains A and B in turn, and peft={peft.method} with peft.freeze_a={peft.freeze_a} does not train just "
            "these two. Choose peft=lora, qlora or rslora."),
            ("rolora", train.proximal_mu > 0, "does not go with train.proximal_mu. Set it to 0."),
            ("rolora", self.privacy.mode != "none",
            f"sends half of an update, and privacy={self.privacy.mode} accounts for whole ones. Choose another "
            "strategy, or peft.freeze_a=true, whose mean is exact too."),
        ):  # fmt: skip
            require(rule != of or not wrong, f"strategy={rule} {why}")
        for wrong, key, why in (
            (self.privacy.mode != "none", f"privacy={self.privacy.mode}",
            "the distance that a bank reports follows from its rows without noise. Set strategy.sync=round"),
            (train.proximal_mu > 0, f"train.proximal_mu={train.proximal_mu:g}",
            "it would pull to the adapter that a round begins with, which is then the bank's own. Set it to 0"),
        ):  # fmt: skip
            require(self.strategy.sync == "round" or not wrong, f"strategy.sync=drift does not go with {key}: {why}.")

    def _check_private(self) -> None:
        """What would break the guarantee, or reveal more of the rows than the update, is refused before any row is
        read.

        Each line: modes, whether the setting is wrong, the setting, what to set instead, why.
        """
        train, mode = self.train, self.privacy.mode
        example, in_the_bank, every = ("example",), PRIVACY_IN_THE_BANK, PRIVACY_MODES
        int8_mixes = self.model.quantization == "int8" and self.model.int8_threshold > 0
        steps_by_rows = train.epochs > 0 and train.batch_rows > 0
        for modes, wrong, key, instead, why in (
            (example, train.share_prefix, "train.share_prefix=true", "false",
            "rows that share tokens have no gradient of their own"),
            (example, train.gradient_checkpointing, "train.gradient_checkpointing=true", "false",
            "the layers' inputs would be seen twice"),
            (example, self.dataset.equalize_tasks, "dataset.equalize_tasks=true", "false",
            "a row would be there several times"),
            (example, int8_mixes, f"model.int8_threshold={self.model.int8_threshold:g}", "0",
            "on a GPU int8 would compute a row with its neighbours' outliers"),
            (example, self.privacy.augmentations > 1 and not self.peft.dropout,
            f"privacy.augmentations={self.privacy.augmentations}", "1",
            "without peft.dropout all copies of a row are the same"),
            (example, self.peft.method in WITHOUT_ROW_GRADIENTS, f"peft={self.peft.method}", "lora",
            WITHOUT_ROW_GRADIENTS.get(self.peft.method, "")),
            (("dp_lora",), self.peft.method in (*WITHOUT_ROW_GRADIENTS, "miss"), f"peft={self.peft.method}", "lora",
            "the published algorithm clips A and B, and knows no "
            + ("magnitudes" if self.peft.method == "dora" else "other parameters")),
            (in_the_bank, train.holdout_max_rows > 0, f"train.holdout_max_rows={train.holdout_max_rows}", "0",
            "the loss of held-out rows would leave"),
            (every, self.strategy.weighting in REPORTED_WEIGHTS, f"strategy.weighting={self.strategy.weighting}",
            "equal",
            "a bank's row count would leave"
                if mode != "bank" else "the noise hides a bank only if all banks weigh the same"),
            (("bank",), self.strategy.keep_deltas, "strategy.keep_deltas=true", "false",
            "the aggregator's noise is secret, so no round can be computed again"),
            (("bank",), self.strategy.weighting == "declared", "strategy.weighting=declared", "equal",
            "the noise hides a bank only if all banks weigh the same"),
            (in_the_bank, train.processes > 1, f"train.processes={train.processes}", "1",
            "clipping and noise are steps of one process"),
            (in_the_bank, steps_by_rows, f"train.batch_rows={train.batch_rows} with train.epochs={train.epochs:g}",
                "0 (steps_per_round steps that spread the epochs), or train.epochs=0",
                "the number of steps would reveal the row count"),
        ):  # fmt: skip
            require(
                mode not in modes or not wrong,
                f"privacy={mode} does not go with {key}: {why}. Set {key.split('=')[0]}={instead}.",
            )
