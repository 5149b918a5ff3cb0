"""A bank's settings and policy, `bank.yaml`: what may run on its rows, decided by the bank and checked at the bank
before a model is loaded.

Each rule has a name. A request that breaks one is refused with that name; the server learns the name and nothing else.
The hash of the file goes with every reply, so that both sides can say later which policy was in force.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml

from fedfinlora.config.dataset import ColumnsConfig
from fedfinlora.config.peft import PEFT_METHODS
from fedfinlora.config.privacy import PRIVACY_MODES
from fedfinlora.config.schema import Config
from fedfinlora.config.train import OPTIMIZERS, TrainConfig
from fedfinlora.config.values import build_group, to_plain_group
from fedfinlora.deployment.hand_written import read_yaml, yaml_text
from fedfinlora.errors import ConfigError, UserError, choose
from fedfinlora.privacy.head import SHA256
from fedfinlora.train.trainer_names import checked_name
from fedfinlora.wire.messages import BANK_NAME, REVEALABLE

SETTINGS = "bank.yaml"
"""In the bank's folder."""
MODEL = re.compile(r"((?:(?! sha256:).)+)(?: sha256:([0-9a-f]{64}))?")
NEVER_WITH_A_BUDGET = ("none", "bank")
"""Privacy modes in which a bank's reply leaves it without the bank's own noise: what it would spend has no limit."""
LARGEST_DELTA = 1e-5
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of attention and MLP. An update of lm_head or of the embeddings names the tokens of the rows that
it was trained on.
"""
EVERY_DATASET = "all"
FEWEST = 20
"""Default of min_units and min_rows: twice the ten persons below which statistical offices publish no figure, and fewer
than any task of the bundled sample has, so that every documented command runs. The guarantee does not rest on it."""
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
    train.clip_norm below 1e-4, train.learning_rate above 0.1 or train.proximal_mu above 10. Rounds with the bank's own
    noise may use either.
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
class BankSettings:
    """bank.yaml."""

    version: int = 1
    name: str = ""
    """How the bank is called in rounds and reports."""
    data: str = ""
    """Folder of its rows: FinLoRA's layout, or any files of rows (docs/data.md lists the forms)."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """How the columns (or keys) of these files are called. No request can name others."""
    coordinator: str = ""
    """HOST:PORT of the aggregator."""
    declared_rows: tuple[str, ...] = ()
    """How many rows of each task the bank has, as TASK:ROWS, and how many customers, as customers:NUMBER, rounded, so
    that they may be known: noise and sampling rate of private rounds follow from these numbers and not from the exact
    ones, which a server could else read off the noise. Change them when the data has grown by half; a change does not
    touch what was spent."""
    budget_epsilon: float = 8.0
    """The most that may be spent on any row (or customer), over all runs and for ever. A row that has spent it is
    excluded from later rounds. With a budget every round that would leave without the bank's own noise is refused. 0 =
    no limit: rounds without noise may run, and are booked as infinite."""
    delta: float = 0.0
    """Probability with which the guarantee may fail; 0 = min(1e-5, N^-1.2) with N all declared rows. A smaller one,
    here or in the request, is used; a larger one in the request is not."""
    min_units: int = FEWEST
    """Fewest units, rows or customers as privacy.unit says, on which a private round may be trained; with fewer it is
    refused."""
    min_rows: int = FEWEST
    """Fewest rows on which any round may be trained, private or not: a request may name single tasks and
    train.max_rows. In a round without the bank's own noise the steps themselves must take as many: from a step on one
    row, that row can be read. 0 = no limit."""
    trainer: str = ""
    """The bank's own training script in the place of the built-in loop, as MODULE:FUNCTION: a module in the folder of
    this file, or an installed one (docs/running.md). It is not used in rounds under privacy=example or dp_lora, which
    are then refused. No request can name one. Its code is not part of this file's hash; restart the bank when it has
    changed."""
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ConfigError(f"bank.yaml has version {self.version}; this code reads version 1.")
        if not BANK_NAME.fullmatch(self.name):
            raise ConfigError(f"name: {self.name!r} is not a plain name of letters, digits, '.', '_' and '-'.")
        if not Path(self.data).is_absolute():
            raise ConfigError(f"data: {self.data!r} must be an absolute path.")
        if not 0 <= self.budget_epsilon < math.inf:
            raise ConfigError(f"budget_epsilon must be 0 (no limit) or a number above it, not {self.budget_epsilon}.")
        if not 0 <= self.delta <= LARGEST_DELTA:
            raise ConfigError(
                f"delta must be 0 (min(1e-5, N^-1.2)) or a number above it, at most {LARGEST_DELTA:g}, not "
                f"{self.delta}."
            )
        for name in ("min_units", "min_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (no limit) or more, not {getattr(self, name)}.")
        declared_sizes(self.declared_rows)
        if self.trainer:
            checked_name(self.trainer)


def declared_sizes(entries: Iterable[str]) -> dict[str, int]:
    """Task -> rows of a bank's declared_rows; under "customers" their number. ConfigError for an entry that is not
    TASK:ROWS, or a task that is there twice.

    >>> declared_sizes(["fpb:1200", "fiqa:400"])
    {'fpb': 1200, 'fiqa': 400}
    """
    found: dict[str, int] = {}
    for entry in entries:
        task, _, rows = entry.rpartition(":")
        if not task or "," in task or task in found or not re.fullmatch("[1-9][0-9]{0,14}", rows):
            raise ConfigError(
                f"declared_rows: {entry!r} must be TASK:ROWS, each task once, without comma, and a whole number of "
                "rows above 0."
            )
        found[task] = int(rows)
    return found


def rounded_rows(count: int) -> int:
    """A number of rows to two significant digits, halves up: what may be known of it.

    >>> [rounded_rows(count) for count in (7, 96, 104, 1672, 4846, 99500)]
    [7, 96, 100, 1700, 4800, 100000]
    """
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return (count + unit // 2) // unit * unit


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


SMALLEST_CLIP, LARGEST_RATE, LARGEST_PULL = 1e-4, 0.1, 10.0
"""Of train.clip_norm, train.learning_rate and train.proximal_mu: far beyond what anybody trains with. Gradients below
AdamW's epsilon of 1e-8 make its step the gradient itself; a large pull to the start undoes every row's step but one's.
"""


def _is_sgd(train: TrainConfig) -> bool:
    """Whether AdamW's steps would show gradients as those of sgd do, or one row's among many."""
    return 0 < train.clip_norm < SMALLEST_CLIP or train.learning_rate > LARGEST_RATE or train.proximal_mu > LARGEST_PULL


RULES: dict[str, Callable[[Policy, Work], bool]] = {
    "model": lambda policy, work: not any(_names(entry, work) for entry in policy.models),
    "peft_methods": lambda policy, work: work.config.peft.method not in policy.peft_methods,
    "max_rank": lambda policy, work: 0 < policy.max_rank < work.config.peft.rank,
    "target_modules": lambda policy, work: not set(work.config.peft.target_modules) <= set(policy.target_modules),
    "optimizer": lambda policy, work: (
        not work.config.privacy.in_the_bank
        and (work.config.train.optimizer not in policy.optimizer or ("sgd" not in policy.optimizer and _is_sgd(work.config.train)))  # noqa: E501
    ),
    "datasets": lambda policy,
    work: not _may_train_on(policy.datasets, work.config.dataset.tasks) or work.config.dataset.equalize_tasks,
    "generation": lambda policy, work: _scores_rows(policy, work.config.train.holdout_max_rows, work.min_rows),
    "max_steps_per_round": lambda policy, work: 0 < policy.max_steps_per_round < work.steps,
    "max_rows_per_round": lambda policy, work: 0 < policy.max_rows_per_round < work.rows,
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
    """The names of the rules that the work breaks, in the order in which they are looked at."""
    return (rule for rule, breaks in RULES.items() if breaks(policy, work))


def broken_rule(policy: Policy, work: Work) -> str:
    """The name of the first rule that the work breaks; "" if it may be done."""
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


def read_settings(file: Path) -> tuple[BankSettings, str]:
    """(bank.yaml, SHA-256 of the file). ConfigError that names the file and the key for anything that is not as it
    should be.
    """
    try:
        content = file.read_bytes()
        values = read_yaml(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). `bank init` writes it.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return build_group(BankSettings, values), hashlib.sha256(content).hexdigest()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def settings_text(settings: BankSettings) -> str:
    """bank.yaml with each key's meaning above it."""
    import inspect

    lines = [
        (
            "# What may run on this bank's rows. The hash of this file goes with every reply. A change holds from the "
            "next "
            "request on; one of"
        ),
        "# `coordinator` needs a restart of the bank.",
    ]
    for cls, values, indent in (
        (BankSettings, to_plain_group(settings), ""),
        (Policy, to_plain_group(settings.policy), "  "),
    ):
        meanings = dict(re.findall(r"^    (\w+): [^\n]*\n    \"\"\"(.*?)\"\"\"", inspect.getsource(cls), re.S | re.M))
        for key, value in values.items():
            if meanings.get(key):
                lines += [f"{indent}# {' '.join(part.split())}" for part in meanings[key].splitlines()]
            shown = "" if key == "policy" else f" {yaml_text(value)}"
            lines.append(f"{indent}{key}:{shown}")
    return "\n".join(lines) + "\n"


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
    """Whether held-out rows would be scored though the bank scores none, or so few that the loss of single ones could
    be read off.
    """
    return asked > 0 and (policy.generation == "none" or asked < min_rows)


def _weighs_by_rows(config: Config) -> bool:
    return config.strategy.weighting == "rows" and not config.privacy.in_the_bank


def _too_much(limit: float, epsilon: float) -> bool:
    """Whether a run's epsilon is above the limit; an epsilon that is not given (a noise multiplier is) cannot be
    compared.
    """
    return limit > 0 and (epsilon == 0 or epsilon > limit)
