"""Hydra composes `conf/` and the `key=value` overrides; the schema (`fedfinlora.config.schema`) has the last word."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from fedfinlora.config.schema import Config
from fedfinlora.config.stages import MIXED, Stage, StagesConfig, stages_of
from fedfinlora.config.values import build, describe, to_plain
from fedfinlora.config.words import split_text, typed_keys
from fedfinlora.errors import ConfigError, UserError, choose, plural
from fedfinlora.run.which_run import find_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CONF_FOLDER = PROJECT_ROOT / "conf"


def compose(overrides: Sequence[str] = (), folder: Path | None = None) -> Config:
    """Compose and validate. `overrides` are Hydra's: `peft=dora`, `train.learning_rate=2e-4`, `experiment=sentiment`;
    the values of text fields are taken as they are (`fedfinlora.config.words`).

    Relative paths are made absolute against `folder` (default: the working directory). Raises ConfigError in one line.
    A configuration of stages gives the one that `stage=` names.
    """
    values, asked = composed_values(overrides)
    if not asked.stages:
        return absolute_paths(build(values), folder or Path.cwd())
    stages = {stage.name: stage for stage in stages_of(asked, values, sorted(typed_keys(overrides)))}
    if asked.stage not in stages or asked.stages_order == MIXED:
        raise ConfigError(one_at_a_time(asked))
    return absolute_paths(stages[asked.stage].placed(str(values["start_adapter"])), folder or Path.cwd())


def one_at_a_time(asked: StagesConfig) -> str:
    """What to do where a command takes one stage."""
    first, *later = list(asked.stages) if asked.stages_order == MIXED else asked.names
    return (
        f"This configuration has {plural(len(asked.stages), 'stage')} ({', '.join(asked.stages)}), which `simulate` "
        f"and `centralized` run one after the other. Here name one: stage={first}"
        + "".join(f", then stage={name} start_adapter=RUN/adapters/final of the stage before" for name in later)
        + "."
    )


def compose_stages(overrides: Sequence[str], folder: Path | None = None) -> tuple[Stage, ...]:
    """The stages that are configured, in the order in which they run; () where there are none, or `stage=` names one
    of them.
    """
    values, asked = composed_values(overrides)
    if not asked.stages or asked.stage:
        return ()
    place = folder or Path.cwd()
    return tuple(
        replace(
            stage,
            config=absolute_paths(stage.config, place),
            mixed=tuple(absolute_paths(part, place) for part in stage.mixed),
        )
        for stage in stages_of(asked, values, sorted(typed_keys(overrides)))
    )


def composed_values(overrides: Sequence[str] = ()) -> tuple[dict[str, Any], StagesConfig]:
    """(the plain values that Hydra composes, not checked by the schema yet; the stages that are asked for)."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not CONF_FOLDER.is_dir():
        raise UserError(
            f"{CONF_FOLDER} is missing. Run from a checkout of the project: configurations lie next to the code."
        )
    for each in overrides:
        _check_word(each)
    overrides = _with_typed_evaluation(_with_stage_words(overrides))
    texts, others = split_text(overrides)
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(_composed_by_hydra(others), resolve=True))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_line(error)) from error
    values.pop("experiment", None)
    for key, text in texts.items():
        *groups, name = key.split(".")
        group = values
        for step in groups:
            group = group[step]
        group[name] = text
    if (
        "model.path" in texts and "model.name" not in texts
    ):  # another model is not to be reported under the option's name
        values["model"]["name"] = Path(str(values["model"]["path"])).name
    return values, StagesConfig(**{key: values.pop(key) for key in ("stages", "stages_order", "stage")})


def _composed_by_hydra(words: Sequence[str]) -> DictConfig:
    """What Hydra makes of words. Most of its time goes into the files, so they are composed once for each choice of
    options, and plain values are put in as Hydra does it. For all else, what is wrong included, Hydra itself is asked.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    options = tuple(word for word in words if (CONF_FOLDER / word.partition("=")[0]).is_dir())
    try:
        values = OverridesParser.create().parse_overrides([word for word in words if word not in options])
        if all(
            value.type == OverrideType.CHANGE and value.package is None and not value.is_sweep_override()
            for value in values
        ):
            composed = copy.deepcopy(_composed_options(options, CONF_FOLDER))
            for value in values:
                OmegaConf.update(composed, value.key_or_group, value.value(), merge=True)
            return composed
    except (HydraException, OmegaConfBaseException):
        pass
    return _all_by_hydra(words, CONF_FOLDER)


def _all_by_hydra(words: Sequence[str], folder: Path) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    ConfigStore.instance().store(name="schema", node=_plain_defaults())
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(folder)):
        return hydra_compose("config", overrides=list(words))


_composed_options = lru_cache(maxsize=64)(_all_by_hydra)


def absolute_paths(config: Config, folder: Path) -> Config:
    """The same configuration with every path of the user's absolute: `~` expanded, relative ones taken from
    `folder`.
    """

    def absolute(path: str) -> str:
        return str((folder / Path(path).expanduser()).absolute()) if path else ""

    model_path = config.model.path
    if ":" not in model_path and os.path.isdir(folder / Path(model_path).expanduser()):
        model_path = absolute(model_path)
    output_dir = absolute(config.output_dir)
    return replace(
        config,
        output_dir=output_dir,
        resume=_run_to_resume(config.resume, Path(output_dir), folder),
        start_adapter=absolute(config.start_adapter),
        peft=replace(config.peft, rows=absolute(config.peft.rows)),
        dataset=replace(config.dataset, root=absolute(config.dataset.root)),
        strategy=replace(config.strategy, second_moments=absolute(config.strategy.second_moments)),
        model=replace(config.model, path=model_path),
        evaluation=replace(config.evaluation, answers_dir=absolute(config.evaluation.answers_dir)),
    )


def _run_to_resume(name: str, output_dir: Path, folder: Path) -> str:
    """The folder of the run that `resume=` names: a path, or a run of `output_dir`. What is wrong with a folder that is
    there is for its reader to say.
    """
    if not name:
        return ""
    path = (folder / Path(name).expanduser()).absolute()
    if path.exists():
        return str(path)
    named = str(path) if os.sep in name else name
    return str(find_run(named, output_dir, elsewhere="resume=FOLDER, or output_dir=DIR"))


def group_options(group: str) -> list[str]:
    """The names of the YAML files of one group, e.g. `peft` -> dora, lora, qlora, rslora."""
    return sorted(file.stem for file in (CONF_FOLDER / group).glob("*.yaml"))


def _check_word(word: str) -> None:
    """ConfigError where a word is not key=value, sets Hydra itself, or names no option of a group."""
    key, equals, value = word.partition("=")
    plain = key.lstrip("+~")
    if not re.fullmatch(r"[A-Za-z_]\w*(?:[./@:][A-Za-z_]\w*)*", plain) or not (equals or key.startswith("~")):
        raise ConfigError(f"{word!r} is not of the form key=value, such as peft=dora or train.steps_per_round=20.")
    if plain == "stages":
        raise ConfigError(
            "stages is a group of a file such as experiment=curriculum, and is not set as a whole: it would be merged "
            "with what is there. Change a value with stages.NAME.KEY=…, or run one alone with stage=NAME."
        )
    if plain.split(".")[0] == "hydra":
        raise ConfigError(f"{plain}: Hydra itself is not configured here.")
    options = group_options(plain) if equals and (CONF_FOLDER / plain).is_dir() else []
    if options and value.strip().strip("'\"") not in options:
        raise ConfigError(f"Unknown {plain} {value!r}. Choose one of: {', '.join(options)}.")


def _with_stage_words(overrides: Sequence[str]) -> list[str]:
    """The words with those for a stage as additions: a stage need not have the key yet, but must be there itself."""
    own = [word for word in overrides if word.startswith("stages.")]
    if own:
        named = composed_values([word for word in overrides if word not in own])[1].stages
        for word in own:
            choose(word.split("=")[0].split(".")[1], named, "stage")
    return [f"++{word}" if word in own else word for word in overrides]


def _with_typed_evaluation(overrides: Sequence[str]) -> list[str]:
    """A typed `evaluation=OPTION` wins over the values of an experiment, as any typed word does: those of its file
    follow it, of the last one only. In Hydra an experiment's values come after all options.
    """
    words = list(overrides)
    places = [place for place, word in enumerate(words) if word.startswith("evaluation=")]
    if not places or not any(word.startswith("experiment=") for word in words):
        return words
    option = CONF_FOLDER / "evaluation" / f"{words[places[-1]].removeprefix('evaluation=')}.yaml"
    values = (yaml.safe_load(option.read_text("utf-8")) if option.is_file() else None) or {}
    words[places[-1] + 1 : places[-1] + 1] = [
        f"evaluation.{key}={json.dumps(item, allow_nan=False)}" for key, item in values.items()
    ]
    return words


def _plain_defaults() -> dict[str, Any]:
    """Every key with its default, as the bottom layer of the composition, so that Hydra knows which keys exist."""
    return {**to_plain(Config()), **dataclasses.asdict(StagesConfig())}


def _one_line(error: Exception) -> str:
    """Hydra's message without its search path and hints, with the valid keys or options of the place."""
    text = str(error).strip()
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    typed = re.search(r"[\w.]+=.*", first)
    key, _, value = (typed[0] if typed else "").rstrip("'").partition("=")
    if "Ambiguous value" in text or "--multirun" in text:
        return f"{key} takes one value, not {value}. A list is written {key}=[a,b]; a fraction has a point."
    if "Error merging override" in text:
        return f"{key} does not take {value}: docs/configuration.md says what each key takes."
    if "Could not override '" in text:
        key = text.split("Could not override '")[1].split("'")[0]
        if within := [name.removeprefix(f"{key}.") for name, _ in describe() if name.startswith(f"{key}.")]:
            return f"Unknown configuration key in {key}={{…}}. Valid in {key}.: {', '.join(within)}."
        prefix = key.rpartition(".")[0]
        names = [name for name, _ in describe() if name.rpartition(".")[0] == prefix]
        place = f"{prefix}." if prefix else "the top level"
        if not prefix:
            names += sorted(folder.name for folder in CONF_FOLDER.iterdir() if folder.is_dir())
        if names:
            return (
                f"Unknown configuration key {key}. Valid in {place}: "
                f"{', '.join(name.split('.')[-1] for name in names)}."
            )
        return f"Unknown configuration key {key}. There is no group {prefix!r}."
    if (
        "mismatched input" in text
        or "no viable alternative" in text
        or "extraneous input" in text
        or "token recognition" in text
        or "LexerNoViableAlt" in text
    ):
        return (
            f"Not of the form key=value: {first.split('Exception: ')[-1]} Quote values with blanks or commas, e.g. "
            "'run_name=\"my run\"'."
        )
    return first
