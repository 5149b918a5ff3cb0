"""A bank's settings and policy, `bank.yaml`: what may run on its rows, checked at the bank before a model is loaded.

A request that breaks a rule is refused with the rule's name, and the server learns no more. The hash of the file goes
with every reply, so that both sides can say later which policy was in force.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from fedfinlora.config.peft import PEFT_METHODS
from fedfinlora.config.privacy import PRIVACY_MODES
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MOMENT_RULES
from fedfinlora.config.train import OPTIMIZERS
from fedfinlora.errors import ConfigError, choose
from fedfinlora.privacy.head import SHA256
from fedfinlora.wire.messages import REVEALABLE

MODEL = re.compile(r"((?:(?! sha256:).)+)(?: sha256:([0-9a-f]{64}))?")
NEVER_WITH_A_BUDGET = ("none", "bank")
"""Privacy modes in which a bank's reply leaves it without the bank's own noise: what it would spend has no limit."""
LARGEST_DELTA = 1e-5
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of attention and MLP. An update of lm_head or of the embeddings names the tokens of the rows that
it was trained on.
"""
EVERY_DATASET = "all"
HOURS = re.compile(r"((?:[01][0-9]|2[0-3]):[0-5][0-9])-((?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)", re.ASCII)


@dataclass(frozen=True)
class Policy:
    """What a bank allows. Empty lists allow nothing, 0 means no limit."""

    models: tuple[str, ...] = ()
    """Base models by model.path, e.g. meta-llama/Llama-3.1-8B-Instruct; PATH@REVISION allows one revision only, and
    with " sha256:HASH" after either, as `bank init` writes it, only these very files.
    """
    peft_methods: tuple[str, ...] = ("lora", "qlora", "rslora", "dora", "lora_xs")
    """lora, qlora, dora, rslora, lora_xs."""
    max_rank: int = 64
    """Largest peft.rank."""
    target_modules: tuple[str, ...] = PROJECTIONS
    """Layers that an adapter may sit on, by name. lm_head and the embeddings are not among them: without noise their
    update shows the very tokens of the rows, so list them for private rounds alone, if ever.
    """
    optimizer: tuple[str, ...] = ("adamw",)
    """Optimisers that a round without the bank's own noise may ask for. One step of sgd is the gradient itself, from
    which rows can be computed; list sgd to allow it. Without it adamw is refused too where its settings make it that:
    train.clip_norm below 1e-4, train.learning_rate above 0.1 or train.proximal_mu above 10, and with
    strategy=fedadamw_local, whose replies hold means of squared gradients. Rounds with the bank's own noise may use
    either.
    """
    datasets: tuple[str, ...] = (EVERY_DATASET,)
    """Tasks that a round may train on, by the names of declared_rows; [all] = every one. With names here, a request
    must name its tasks. dataset.equalize_tasks is always refused: copies of rows would count as rows.
    """
    generation: str = "loss"
    """What may be computed from private rows besides training: loss, the mean loss of held-out rows on the adapter that
    was sent, or none. The bank draws these rows with a secret key, min_rows of each task that has ten times as many,
    the same in all rounds and runs; train.holdout_max_rows in a request is 0 or at least min_rows, else it is refused.
    Text is never generated from them, with any value here.
    """
    max_steps_per_round: int = 100
    """Most optimiser steps in one round."""
    max_rows_per_round: int = 0
    """Most rows in one round, repeats counted."""
    max_processes: int = 0
    """Most processes that train together, each with a model of its own (train.processes); 0 = as many as there are
    GPUs, or cores."""
    max_rounds_per_day: int = 500
    """Most rounds begun in a calendar day of the bank's clock, refused ones not counted."""
    privacy: tuple[str, ...] = ("none", "example")
    """Allowed privacy modes: none, example, dp_lora, bank. Drop none (and bank, which trusts the server) to
    require privacy; with a budget_epsilon both are always refused."""
    privacy_units: tuple[str, ...] = ("example", "customer", "bank")
    """Allowed privacy.unit; [customer] requires that a customer's rows are protected together."""
    max_epsilon: float = 8.0
    """Largest privacy.epsilon of a run; a noise multiplier given instead is refused. With privacy=none it has no
    meaning. It binds one run; what binds all of them together is budget_epsilon."""
    max_delta: float = LARGEST_DELTA
    """Largest privacy.delta, the probability with which its guarantee may fail, that a private request may name. A
    larger one was never used, and is now refused.
    """
    code: tuple[str, ...] = ()
    """App bundles that may run, by the hash of all their files, which `bank status` and `coordinator status` show of
    the code next to them; empty = the code that is installed here and no other. Checked before anything of a bundle is
    unpacked; a change holds from the next run on.
    """
    reveal: tuple[str, ...] = REVEALABLE
    """Figures that may leave with a delta. Steps and what privacy has spent always leave; without rows,
    strategy.weighting=rows is refused.
    """
    hours: str = "00:00-24:00"
    """When rounds may begin, by the bank's clock; 20:00-06:00 goes over midnight."""

    def __post_init__(self) -> None:
        for method in self.peft_methods:
            choose(method, PEFT_METHODS, "policy.peft_methods")
        for mode in self.privacy:
            choose(mode, PRIVACY_MODES, "policy.privacy")
        for figure in self.reveal:
            choose(figure, REVEALABLE, "policy.reveal")
        for optimizer in self.optimizer:
            choose(optimizer, OPTIMIZERS, "policy.optimizer")
        choose(self.generation, ("loss", "none"), "policy.generation")
        for model in self.models:
            if not MODEL.fullmatch(model):
                raise ConfigError(
                    f"policy.models: {model!r} must be PATH, PATH@REVISION, or either with ' sha256:' and 64 digits "
                    "after it."
                )
        for code in self.code:
            if not SHA256.fullmatch(code):
                raise ConfigError(f"policy.code: {code!r} is not a hash of 64 digits, as `bank status` shows it.")
        for unit in self.privacy_units:
            choose(unit, ("example", "customer", "bank"), "policy.privacy_units")
        for name in (
            "max_rank",
            "max_steps_per_round",
            "max_rows_per_round",
            "max_processes",
            "max_rounds_per_day",
            "max_epsilon",
            "max_delta",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"policy.{name} must be 0 (no limit) or more, not {getattr(self, name)}.")
        if not (found := HOURS.fullmatch(self.hours)):
            raise ConfigError(
                "policy.hours must look like 08:00-18:00, from 00:00 to 24:00, each with two digits, not "
                f"{self.hours!r}."
            )
        if found[1] == found[2]:
            raise ConfigError(
                f"policy.hours: {self.hours!r} begins when it ends. Write 00:00-24:00 for always; to allow nothing, "
                "write privacy: []."
            )


@dataclass(frozen=True)
class Work:
    """What a round would do, as far as rules speak of it."""

    config: Config
    steps: int
    rows: int
    rounds_today: int
    now: datetime
    model_sha256: Callable[[], str] = lambda: ""
    """Makes the hash of the base model's files, where a rule asks for it."""
    min_rows: int = 0
    """Of bank.yaml: fewest held-out rows that are scored."""
    bank: str = ""
    rank: int = 0
    """Of bank.yaml: ranks that the bank trains; 0 = as many as the run has."""


SMALLEST_CLIP, LARGEST_RATE, LARGEST_PULL, LARGEST_DECAY = 1e-4, 0.1, 10.0, 0.01
"""Of train.clip_norm, the learning rate of any factor, train.proximal_mu, and what weight decay takes away in one step:
far beyond what anybody trains with. Gradients below AdamW's epsilon of 1e-8 make its step the gradient itself; a large
pull to the start, or a decay near 1, undoes every row's step but the last one's.
"""


def _is_sgd(config: Config) -> bool:
    """Whether AdamW's steps would show gradients as those of sgd do, or one row's among many. With one second moment
    for a whole tensor, as fedadamw_local begins, they do, and the means of squared gradients leave as well.
    """
    train = config.train
    rate = train.learning_rate * max(1.0, config.peft.loraplus_ratio)
    return (
        0 < train.clip_norm <= SMALLEST_CLIP
        or rate > LARGEST_RATE
        or train.proximal_mu > LARGEST_PULL
        or rate * train.weight_decay > LARGEST_DECAY
        or config.strategy.name in MOMENT_RULES
    )


RULES: dict[str, Callable[[Policy, Work], bool]] = {
    "model": lambda policy, work: not any(_names(entry, work) for entry in policy.models),
    "peft_methods": lambda policy, work: work.config.peft.method not in policy.peft_methods,
    "max_rank": lambda policy, work: 0 < policy.max_rank < work.config.peft.rank,
    "rank": lambda policy, work: work.rank not in (0, work.config.rank_of(work.bank)),
    "target_modules": lambda policy, work: not set(work.config.peft.target_modules) <= set(policy.target_modules),
    "optimizer": lambda policy, work: (
        not work.config.privacy.in_the_bank
        and (work.config.train.optimizer not in policy.optimizer or ("sgd" not in policy.optimizer and _is_sgd(work.config)))  # noqa: E501
    ),
    "datasets": lambda policy,
    work: not _may_train_on(policy.datasets, work.config.dataset.tasks) or work.config.dataset.equalize_tasks,
    "generation": lambda policy, work: _scores_rows(policy, work.config.train.holdout_max_rows, work.min_rows),
    "max_steps_per_round": lambda policy, work: 0 < policy.max_steps_per_round < work.steps,
    "max_rows_per_round": lambda policy, work: 0 < policy.max_rows_per_round < work.rows,
    "max_processes": lambda policy, work: 0 < policy.max_processes < work.config.train.processes,
    "max_rounds_per_day": lambda policy, work: 0 < policy.max_rounds_per_day <= work.rounds_today,
    "privacy": lambda policy, work: work.config.privacy.mode not in policy.privacy,
    "privacy_units": lambda policy,
    work: work.config.privacy.mode != "none" and work.config.privacy.unit not in policy.privacy_units,
    "max_epsilon": lambda policy,
    work: work.config.privacy.mode != "none" and _too_much(policy.max_epsilon, work.config.privacy.epsilon),
    "max_delta": lambda policy,
    work: work.config.privacy.mode != "none" and 0 < policy.max_delta < work.config.privacy.delta,
    "reveal": lambda policy, work: _weighs_by_rows(work.config) and "rows" not in policy.reveal,
    "hours": lambda policy, work: not within(policy.hours, work.now),
}  # fmt: skip
"""Rule -> whether the work breaks it. A new rule needs a line here, a field of Policy, a sentence in
`fedfinlora.wire.reasons.SAFE_REASONS` and a way out in `client_app.trial`. The rule `code` is not among them: it judges
the code that would run these, and is kept by `fedfinlora.deployment.gate`.
"""


def broken_rules(policy: Policy, work: Work) -> Iterator[str]:
    """The rules that the work breaks, in the order in which they are looked at."""
    return (rule for rule, breaks in RULES.items() if breaks(policy, work))


def broken_rule(policy: Policy, work: Work) -> str:
    """The first; "" if the work may be done."""
    return next(broken_rules(policy, work), "")


def within(hours: str, now: datetime) -> bool:
    """Whether a time of day lies in hours like 08:00-18:00 or 20:00-06:00.

    >>> [within("20:00-06:00", datetime(2026, 1, 1, hour)) for hour in (19, 20, 5, 6)]
    [False, True, True, False]
    """
    found = HOURS.fullmatch(hours)
    assert found
    start, end = (60 * int(time[:2]) + int(time[3:]) for time in found.groups())
    minute = 60 * now.hour + now.minute
    return start <= minute < end if start < end else minute >= start or minute < end


def _names(entry: str, work: Work) -> bool:
    """Whether an entry of policy.models allows the model."""
    found = MODEL.fullmatch(entry)
    assert found
    name, digest = found.groups()
    model = work.config.model
    return name in (model.path, f"{model.path}@{model.revision}") and digest in (None, work.model_sha256())


def _may_train_on(allowed: tuple[str, ...], tasks: tuple[str, ...]) -> bool:
    return EVERY_DATASET in allowed or (bool(tasks) and set(tasks) <= set(allowed))


def _scores_rows(policy: Policy, asked: int, min_rows: int) -> bool:
    """Whether held-out rows would be scored though the bank scores none, or too few."""
    return asked > 0 and (policy.generation == "none" or asked < min_rows)


def _weighs_by_rows(config: Config) -> bool:
    return config.strategy.weighting == "rows" and not config.privacy.in_the_bank


def _too_much(limit: float, epsilon: float) -> bool:
    """Whether epsilon is above the limit, or not given, as with a noise multiplier."""
    return limit > 0 and (epsilon == 0 or epsilon > limit)
