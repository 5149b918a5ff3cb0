"""The settings of the server's rule: `strategy.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

REPORTED_WEIGHTS = ("rows", "answer_tokens")
"""Of strategy.weighting: figures of a bank's reply, so that a bank weighs what it claims."""
STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedadamw",
    "fedadamw_local",
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
    "rosa",
)
EXACT_RULES = ("residual", "flora", "rosa")
"""Rules that keep a product in ranks that no bank trains (strategy.residual_rank)."""
MIXED_RANK_RULES = ("hetlora", "flexlora", "flora", "residual")
"""Rules that average banks of different ranks (strategy.ranks)."""
MOMENT_RULES = ("fedadamw_local",)
"""Rules whose banks start from the mean of their second moments, which travel in both directions."""
AGGREGATIONS = ("mean",)
NOT_BY_DRIFT = {
    **dict.fromkeys(("rolora", "scaffold", "fedadamw_local"), "its banks count on an average after every round"),
    **dict.fromkeys(
        ("krum", "multi_krum", "geometric_median", "trimmed_mean", "norm_clip", "fltrust"),
        "it is for banks that may lie, and the distance that a bank reports cannot be checked before its update comes",
    ),
}
"""Rules that need single replies in each round -> why they do not go with strategy.sync=drift."""


@dataclass(frozen=True)
class StrategyConfig:
    """How the server turns the banks' deltas into the next global adapter."""

    name: str = "fedavg"
    """The mean of the updates: fedavg (McMahan et al. 2017), fedavgm (Hsu et al. 2019; Nesterov as in DiLoCo), fedadam,
    fedyogi, fedadagrad (Reddi et al. 2021), fedadamw, fedadamw_local (Liu et al. 2025), fedexp, scaffold, rolora. On
    products B A: residual (exact; Singhal et al. 2025), fedrot, flexlora, flora, hetlora. Against dishonest banks:
    krum, multi_krum, geometric_median, trimmed_mean, norm_clip, fltrust. docs/papers.md has the papers.
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
    local_correction: float = 0.5
    """fedadamw_local only: weight of the last global step in each step at the banks (the paper's alpha); 0 = none."""
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
    """residual, flora and rosa only: so many of peft.rank's ranks hold what averaging lost; banks compute with them and
    train the others.
    """
    tail_energy: float = 0.0
    """residual, flora and rosa only: directions of what is held are dropped as long as they have no more than this
    share of its squared norm.
    """
    phase_rounds: int = 2
    """rosa only: rounds after which what was trained is folded into the held ranks and A is drawn again."""
    ranks: tuple[str, ...] = ()
    """hetlora, flexlora, flora and residual only: ranks of banks that train fewer than the run's, e.g.
    [north:4,south:8]. Known to every bank; an update of another rank is rejected. The ranks that deployed banks have in
    their bank.yaml are added.
    """
    schedule: str = "constant"
    """constant or cosine: how server_learning_rate goes over the rounds."""
    warmup_rounds: int = 0
    """Linear warm-up of server_learning_rate."""
    sync: str = "round"
    """round: banks send their updates in every round. drift: they train on from their own adapters and report only how
    far these are from the last global one, until drift_limit or drift_ceiling asks for an average (Kamp et al. 2018).
    """
    drift_limit: float = 0.0
    """sync=drift: the round after the banks' root mean square distance from the last global adapter has reached this
    share of its norm ends with an average. 0 = every round does.
    """
    drift_ceiling: int = 10
    """sync=drift: at least every so many rounds end with an average."""
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
        require(0 < self.max_share <= 1, f"strategy.max_share must be in (0, 1], not {self.max_share}.")
        require(
            (self.weighting == "declared") == bool(self.sizes),
            "strategy.weighting=declared and strategy.sizes=[BANK:ROWS,…] go together: give both or neither.",
        )
        self.declared_sizes()
        choose(self.schedule, ("constant", "cosine"), "strategy.schedule")
        require(self.server_learning_rate > 0, "strategy.server_learning_rate must be above 0.")
        require(0 < self.fraction_train <= 1, f"strategy.fraction_train must be in (0, 1], not {self.fraction_train}.")
        for name in ("momentum", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"strategy.{name} must be in [0, 1), not {getattr(self, name)}.")
        require(
            0 <= self.local_correction <= 1,
            f"strategy.local_correction must be in [0, 1], not {self.local_correction}.",
        )
        require(self.tau > 0, f"strategy.tau must be above 0, not {self.tau}.")
        require(
            self.name == "fedadam" or not self.second_moments,
            f"strategy.second_moments belongs to strategy=fedadam, not {self.name}. Leave it empty.",
        )
        require(self.liars >= 0, f"strategy.liars must be 0 or more, not {self.liars}.")
        require(
            self.clip_factor > 0 and math.isfinite(self.clip_factor),
            f"strategy.clip_factor must be above 0, not {self.clip_factor}.",
        )
        require(self.phase_rounds >= 1, f"strategy.phase_rounds must be 1 or more, not {self.phase_rounds}.")
        require(0 <= self.tail_energy < 1, f"strategy.tail_energy must be in [0, 1), not {self.tail_energy}.")
        for setting, given, rules in (
            ("root_bank", bool(self.root_bank), ("fltrust",)),
            ("residual_rank", self.residual_rank > 0, EXACT_RULES),
        ):
            require(
                given == (self.name in rules),
                f"strategy.{setting} and strategy={' or '.join(rules)} go together: give both or neither.",
            )
        require(
            not self.ranks or self.name in MIXED_RANK_RULES,
            f"strategy.ranks goes with strategy={', '.join(MIXED_RANK_RULES)}, not {self.name}.",
        )
        self.declared_ranks()
        self._check_sync()
        for name in ("clip_norm", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0, f"strategy.{name} must be 0 or more, not {value}.")
            require(
                self.name == "fedadamw" or not value,
                f"strategy.{name} belongs to strategy=fedadamw, not {self.name}. Leave it 0.",
            )
        require(self.quorum >= 1, f"strategy.quorum must be 1 or more, not {self.quorum}.")
        for name in ("warmup_rounds", "min_banks", "wait_s", "deadline_s", "max_update_norm"):
            require(getattr(self, name) >= 0, f"strategy.{name} must be 0 or more, not {getattr(self, name)}.")

    def _check_sync(self) -> None:
        """Each line: whether the setting is wrong, the setting, why."""
        choose(self.sync, ("round", "drift"), "strategy.sync")
        require(
            self.drift_limit >= 0 and math.isfinite(self.drift_limit),
            f"strategy.drift_limit must be 0 or more, not {self.drift_limit}.",
        )
        require(self.drift_ceiling >= 1, f"strategy.drift_ceiling must be 1 or more, not {self.drift_ceiling}.")
        for wrong, key, why in (
            (self.name in NOT_BY_DRIFT, f"strategy={self.name}", NOT_BY_DRIFT.get(self.name, "")),
            (self.keep_deltas, "strategy.keep_deltas=true", "most rounds have no updates. Set it to false"),
            (self.fraction_train < 1, f"strategy.fraction_train={self.fraction_train:g}",
            "a bank that is not asked falls behind its own adapter. Set it to 1"),
        ):  # fmt: skip
            require(self.sync == "round" or not wrong, f"strategy.sync=drift does not go with {key}: {why}.")

    def declared_ranks(self) -> dict[str, int]:
        """Bank -> announced rank."""
        found: dict[str, int] = {}
        for entry in self.ranks:
            bank, _, rank = entry.rpartition(":")
            require(
                bank != "" and rank.isascii() and rank.isdigit() and int(rank) > 0,
                f"strategy.ranks: {entry!r} is not of the form BANK:RANK with RANK above 0, such as north:4.",
            )
            found[bank] = int(rank)
        require(len(found) == len(self.ranks), "strategy.ranks names a bank twice.")
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
            require(
                bank != "" and math.isfinite(found[bank]) and found[bank] > 0,
                f"strategy.sizes: {entry!r} is not of the form BANK:ROWS with ROWS above 0, such as north:5000.",
            )
        require(len(found) == len(self.sizes), "strategy.sizes names a bank twice.")
        return found
