"""Stages of a run (`stages`): each a full run with settings of its own, on top of the adapter of the one before.

conf/experiment/curriculum.yaml trains complex tasks first, then simple ones with other ranks, layers and epochs.
Everything is checked here before a model is loaded; `fedfinlora.commands.stages` runs it, `fedfinlora.model.stacked`
joins two adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from fedfinlora.config.checks import require
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.values import build
from fedfinlora.errors import ConfigError, UserError, choose

ORDERS = ("given", "reversed", "mixed")
MIXED = "mixed"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
NOT_OF_A_STAGE = (
    "output_dir", "run_name", "resume", "resume_anyway", "overwrite", "start_adapter", "model", "banks", "seed",
    "stages", "stages_order", "stage",
)  # fmt: skip
"""What all stages have in common: where they lie, and base model and banks."""
SAME_WHEN_MIXED = ("max_rows_per_task", "equalize_tasks")
"""Settings of `dataset` that decide which rows a task has."""


@dataclass(frozen=True)
class StagesConfig:
    """The keys of a configuration that make several runs of it. `stages.NAME.GROUP.KEY` sets a value of one stage. The
    stages themselves are in a file such as experiment=curriculum (curriculum.md).
    """

    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> groups of settings, in the order in which the stages run; what a stage does not set is as in the rest of
    the configuration. `stages.NAME.train.epochs=1` changes one.
    """
    stages_order: str = "given"
    """given; reversed: the last stage first; mixed: all tasks in one stage with the last one's settings and as many row
    visits as all stages together. The two are controls.
    """
    stage: str = ""
    """One stage alone, by its name: for `flwr run` and deployments, which run one stage at a time. The second and later
    ones need start_adapter=RUN/adapters/final of the stage before.
    """

    def __post_init__(self) -> None:
        choose(self.stages_order, ORDERS, "stages_order")
        require(
            isinstance(self.stages, Mapping), "stages must be groups of settings by name, such as stages.first.train."
        )
        for name, group in self.stages.items():
            require(
                isinstance(name, str) and bool(NAME.fullmatch(name)) and name != MIXED,
                f"stages: {name!r} is no name for a stage. Use up to 40 letters, digits and _, and not {MIXED}.",
            )
            require(
                isinstance(group, Mapping), f"stage {name} must be groups of settings, such as train: {{epochs: 2}}."
            )
            wrong = [key for key in group if key in NOT_OF_A_STAGE]
            require(
                not wrong, f"stage {name}: {', '.join(wrong)} is the same for all stages. Set it outside of stages."
            )
        require(
            bool(self.stages) or self.stages_order == "given",
            f"stages_order={self.stages_order} goes with a configuration that has stages. Leave it out.",
        )
        if self.stage:
            require(bool(self.stages), f"stage={self.stage} goes with a configuration that has stages. Leave it out.")
            choose(self.stage, tuple(self.names), "stage")

    @property
    def names(self) -> list[str]:
        """The stages in the order in which they run."""
        return {"given": list(self.stages), "reversed": list(self.stages)[::-1], "mixed": [MIXED]}[self.stages_order]


@dataclass(frozen=True)
class Stage:
    """One stage, with its own settings alone: `placed` puts it on top of the one before."""

    name: str
    number: int
    """From 1."""
    config: Config
    under: PeftConfig | None = None
    """Rank and layers of the adapter that it is put on, that of all stages before it; None for the first."""
    order: str = "given"
    """Of StagesConfig."""
    mixed: tuple[Config, ...] = ()
    """Of the one stage of stages_order=mixed: the stages that are in it. Its row visits are theirs together."""

    @property
    def folder(self) -> str:
        """Of its run, below the folder of all stages."""
        return f"stage-{self.number}-{self.name}"

    @property
    def stacked(self) -> PeftConfig:
        """The adapter of this stage with those before it as its last ranks."""
        peft, under = self.config.peft, self.under
        if under is None:
            return peft
        rank = peft.rank + under.rank
        alpha = Fraction(peft.alpha, peft.rank) * rank
        require(
            alpha.denominator == 1,
            f"peft.alpha={peft.alpha} with peft.rank={peft.rank} on top of rank {under.rank} would be alpha "
            f"{float(alpha):g} of rank {rank}, and an adapter's alpha is a whole number. Choose another alpha or rank.",
        )
        require(
            peft.method in ("lora", "qlora") and not peft.freeze_a,
            f"a stage on top of another one goes with peft=lora and qlora, whose A and B are both trained, not with "
            f"peft={peft.method}{' and peft.freeze_a=true' if peft.freeze_a else ''}.",
        )
        layers = tuple(dict.fromkeys((*peft.target_modules, *under.target_modules)))
        trained = () if set(layers) == set(peft.target_modules) else peft.target_modules
        return replace(
            peft, rank=rank, alpha=int(alpha), target_modules=layers, frozen_rank=under.rank, trained_modules=trained
        )

    def placed(self, start_adapter: str) -> Config:
        """Its whole configuration, on top of the adapter in a folder; the base model is scored once, in the first."""
        if self.under is None:
            return self.config
        with named(self.name):
            require(bool(start_adapter), "it needs start_adapter=RUN/adapters/final of the stage before it.")
            evaluation = replace(self.config.evaluation, base=False)
            return replace(self.config, peft=self.stacked, start_adapter=start_adapter, evaluation=evaluation)


@contextmanager
def named(stage: str) -> Iterator[None]:
    """Puts a stage's name in front of what is wrong with its settings."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(f"stage {stage}"):
            raise
        raise type(error)(f"stage {stage}: {error}") from error


def stages_of(asked: StagesConfig, common: Mapping[str, Any], typed: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Every stage in the order in which they run, built and checked. `common`: the plain values of all that is outside
    of `stages`. ConfigError names the stage.

    A key that was `typed` and that stages set is refused: it would have no effect.
    """
    for name, group in asked.stages.items():
        for key in sorted(set(_keys(group)) & set(typed)):
            raise ConfigError(f"{key} is set by stage {name}. Type stages.{name}.{key}=… to change it.")
    each = {name: _built(name, common, group) for name, group in asked.stages.items()}
    if asked.stages_order == MIXED:
        return (Stage(MIXED, 1, _mixed(each), order=MIXED, mixed=tuple(each.values())),)
    found: list[Stage] = []
    under: PeftConfig | None = None
    for number, name in enumerate(asked.names, 1):
        stage = Stage(name, number, each[name], under, asked.stages_order)
        found.append(stage)
        stage.placed("checked before a run")
        under = stage.stacked
    return tuple(found)


def _built(name: str, common: Mapping[str, Any], group: Mapping[str, Any]) -> Config:
    with named(name):
        return build(_merged(common, group))


def _mixed(each: Mapping[str, Config]) -> Config:
    """All tasks in one stage with the settings of the last one; its epochs follow from the rows."""
    *others, last = each.items()
    for name, config in others:
        for key in SAME_WHEN_MIXED:
            require(
                getattr(config.dataset, key) == getattr(last[1].dataset, key),
                f"stages_order=mixed needs the same dataset.{key} in stages {name} and {last[0]}: it decides which "
                "rows there are.",
            )
    tasks = [config.dataset.tasks for config in each.values()]
    together = () if () in tasks else tuple(dict.fromkeys(task for own in tasks for task in own))
    return replace(
        last[1],
        dataset=replace(last[1].dataset, tasks=together),
        num_server_rounds=sum(config.num_server_rounds for config in each.values()),
    )


def _merged(common: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """`common` with the values of `group`, group by group."""
    merged = dict(common)
    for key, value in group.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _keys(group: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The full keys of nested groups."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
