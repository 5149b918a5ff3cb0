"""The models that `evaluate` is asked for: adapters as `[NAME=]DIR[:TASK,…]`, their labels, and whether a route can
join them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.catalog import BENCHMARKS, select
from eval.routing import LABELS
from eval.xlora_gate import in_order_of, read_gate
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import ConfigError, UserError, choose
from fedfinlora.model.adapter_folder import base_name, same_base
from fedfinlora.run.folder import ROUND_LABEL, read_config

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]{0,63})=(?P<rest>.+)", re.DOTALL)
_WITH_TASKS = re.compile(r"(?P<folder>.+):(?P<tasks>[\w,]+)", re.DOTALL)


@dataclass(frozen=True)
class Expert:
    """What was typed with an adapter's folder."""

    folder: str
    """Absolute."""
    name: str = ""
    """Of its scores; "" = from its folder."""
    tasks: tuple[str, ...] = ()
    """Benchmark keys; () = those that its run trained on."""


@dataclass(frozen=True)
class Asked:
    """The models that the command line names."""

    adapters: tuple[Path, ...] = ()
    base: bool = False
    """The untouched base model too; always if nothing else is named."""
    url: str = ""
    name: str = ""
    alpha: int = 0
    """peft.alpha as typed, which then counts for all adapters instead of their folders' own; 0 = not typed."""
    routes: tuple[str, ...] = ()
    """Ways to score the adapters as one model too: `eval.routing.LABELS`."""
    experts: tuple[Expert, ...] = ()
    """Names and tasks, of the adapters that have some typed."""
    gate: str = ""
    """Folder of the gate for the route xlora, absolute."""

    def with_experts(self, typed: Iterable[Expert]) -> Asked:
        """The same with these adapters too."""
        found = tuple(typed)
        folders = tuple(Path(expert.folder) for expert in found)
        own = tuple(expert for expert in found if expert.name or expert.tasks)
        return replace(self, adapters=self.adapters + folders, experts=self.experts + own)

    def as_json(self) -> dict[str, Any]:
        """The content of a run's state/evaluate.json: routes, experts and gate only where there are some."""
        values = {**asdict(self), "adapters": [str(folder) for folder in self.adapters]}
        return {key: value for key, value in values.items() if value or key not in ("routes", "experts", "gate")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Asked:
        """From that content."""
        known = {key: value for key, value in values.items() if key != "own_peft"}  # runs before alpha could be typed
        experts = tuple(Expert(**{**each, "tasks": tuple(each["tasks"])}) for each in values.get("experts", ()))
        folders = tuple(map(Path, values["adapters"]))
        return cls(**{**known, "adapters": folders, "routes": tuple(values.get("routes", ())), "experts": experts})


def expert_of(word: str) -> Expert:
    """`DIR`, `NAME=DIR`, `DIR:TASK,TASK` or `NAME=DIR:TASK,TASK`; a folder that is there by the whole word is that
    folder. Tasks are benchmarks or groups of them.

    >>> expert_of("/no/mood=/no/final:fpb,tfns").folder
    '/no/mood=/no/final'
    >>> expert_of("mood=/no/final:fpb,tfns")
    Expert(folder='/no/final', name='mood', tasks=('fpb', 'tfns'))
    """
    if _there(word):
        return Expert(absolute(word))
    named = _NAMED.fullmatch(word)
    name, rest = (named["name"], named["rest"]) if named else ("", word)
    with_tasks = None if _there(rest) else _WITH_TASKS.fullmatch(rest)
    if with_tasks is None:
        return Expert(absolute(rest), name)
    tasks = tuple(benchmark.key for benchmark in select(with_tasks["tasks"].split(",")))
    return Expert(absolute(with_tasks["folder"]), name, tasks)


def folders_of(adapters: Sequence[Path]) -> tuple[Path, ...]:
    """The adapters' folders, absolute, each once."""
    return tuple(dict.fromkeys(folder.expanduser().absolute() for folder in adapters))


def labels_of(folders: Sequence[Path], experts: Sequence[Expert]) -> dict[str, Path]:
    """A label for each adapter folder: its typed name; `final` for one alone; else the last parts of its path that
    distinguish it from the others. ConfigError for two adapters with one name.
    """
    typed = {Path(expert.folder): expert.name for expert in experts if expert.name}
    twice = sorted({name for name in typed.values() if list(typed.values()).count(name) > 1})
    if twice:
        raise ConfigError(f"--adapter: two adapters are called {twice[0]}. Give each a name of its own.")
    reserved = {"base", "remote", *LABELS.values()}
    for name in typed.values():
        if name in reserved or ROUND_LABEL.fullmatch(name):
            raise ConfigError(f"--adapter: {name} is the name of other scores. Choose another.")
    if len(folders) == 1:
        return {typed.get(folders[0], "final"): folders[0]}
    for parts in range(1, max((len(folder.parts) for folder in folders), default=1)):
        names = [
            typed.get(folder) or "-".join(part for part in folder.parts[-parts:] if part != "adapters")
            for folder in folders
        ]
        if len(set(names)) == len(names) and not set(names) & reserved:
            return dict(zip(names, folders, strict=True))
    if not folders:
        return {}
    raise ConfigError("The --adapter folders have equal names: their paths do not distinguish them. Use NAME=DIR.")


def check_routes(
    routes: Collection[str], labels: Mapping[str, Path], settings: Mapping[str, PeftConfig], base: str, gate: str = ""
) -> None:
    """ConfigError or UserError where these adapters cannot be joined on the base model `base` (model.path), or `gate`
    (a folder) is not theirs.
    """
    if ("xlora" in routes) != bool(gate):
        raise ConfigError(
            "--gate DIR goes with --route xlora."
            if gate
            else "--route xlora needs --gate DIR. Train it with `python -m fedfinlora gate DIR --adapter …`."
        )
    for route in routes:
        choose(route, LABELS, "--route")
    if not routes:
        return
    if len(labels) < 2:
        raise ConfigError("--route joins several adapters: name two or more with --adapter.")
    check_one_base("--route", labels, base)
    if "arrow" in routes:
        _check_arrow(settings)
    if "xlora" in routes:
        check_gated("--route xlora", settings)
        found = read_gate(Path(gate))
        if not same_base(found.base, base):
            raise UserError(f"{gate} is a gate for {found.base}, the model here is {base}. Train one for it.")
        in_order_of(found, Path(gate), labels, settings)


def check_one_base(what: str, labels: Mapping[str, Path], base: str) -> None:
    """UserError for an adapter of another base model than `base` (model.path); `what` begins the message."""
    for label, folder in labels.items():
        made_for = base_name(folder)
        if made_for and not same_base(made_for, base):
            raise UserError(
                f"{what}: {label} ({folder}) was made for {made_for}, the model here is {base}. Join adapters of one "
                "base model."
            )


def check_gated(what: str, settings: Mapping[str, PeftConfig]) -> None:
    """UserError for an adapter that X-LoRA's layers do not compute; ranks and layers may differ."""
    for label, own in settings.items():
        if own.method not in ("lora", "rslora"):
            raise UserError(f"{what}: {label} is of peft={own.method}. X-LoRA weighs LoRA and rsLoRA adapters.")


def tasks_of(labels: Mapping[str, Path], experts: Sequence[Expert]) -> dict[str, tuple[str, ...]]:
    """Label -> benchmark keys that the adapter was trained on: as typed, else dataset.tasks of its run, where none
    means all. UserError for an adapter that is in no run's folder and has none typed.
    """
    typed = {Path(expert.folder): expert.tasks for expert in experts if expert.tasks}
    found: dict[str, tuple[str, ...]] = {}
    for label, folder in labels.items():
        run = folder.parent.parent
        if folder in typed:
            found[label] = typed[folder]
        elif folder.parent.name == "adapters" and (run / "config.yaml").is_file():
            found[label] = read_config(run).dataset.tasks or tuple(BENCHMARKS)
        else:
            raise UserError(
                f"--route task: {folder} is not in a run's folder, so its tasks are not known. Type them: "
                f"--adapter {label}={folder}:TASK,TASK."
            )
    return found


def _check_arrow(settings: Mapping[str, PeftConfig]) -> None:
    """Arrow stacks the adapters' factors: they need equal ranks and layers, and only A and B may count."""
    first_label, first = next(iter(settings.items()))
    for label, own in settings.items():
        if own.method not in ("lora", "rslora"):
            raise UserError(f"--route arrow: {label} is of peft={own.method}. Arrow routes LoRA and rsLoRA adapters.")
        for name in ("rank", "target_modules"):
            here, there = getattr(own, name), getattr(first, name)
            if here != there:
                raise UserError(
                    f"--route arrow: peft.{name} is {_shown(there)} for {first_label} and {_shown(here)} for {label}. "
                    "Arrow stacks adapters of equal form: use task or oracle."
                )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _there(word: str) -> bool:
    return Path(word).expanduser().is_dir()


def absolute(word: str) -> str:
    """A folder's path as typed, absolute; "" stays "".

    >>> absolute("")
    ''
    """
    return str(Path(word).expanduser().absolute()) if word else ""
