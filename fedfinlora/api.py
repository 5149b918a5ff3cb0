"""What `import fedfinlora as ff` offers: the commands as functions with typed results.

    run = ff.simulate(banks=2, experiment="demo", settings={"train.epochs": 1})
    run.result.status, run.rounds[-1].train_loss, run.scores["final"]["fpb"].value("accuracy")
    other = ff.centralized(banks=2, experiment="demo")
    ff.compare(run, other).overall.score_difference

Settings are the configuration's keys (docs/configuration.md): those without a dot as keywords, any of them in
`settings`. What the command line refuses is a ConfigError, and a run that fails a UserError with what to do. No
terminal is needed. Events are those of progress.jsonl (`fedfinlora.run.events`); `on_event` gets each as it comes, and
nothing is printed then.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from fedfinlora.errors import ConfigError, UserError
from fedfinlora.report.reading import Run, read_run
from fedfinlora.run.comparison import Comparison
from fedfinlora.run.events import Event, RunDone
from fedfinlora.run.progress_display import listening
from fedfinlora.system.shadows import own_modules_first
from fedfinlora.system.surroundings import prepare_process
from fedfinlora.train import trainer_names, trainers

PLAIN_ITEM = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
HYDRAS_WORDS = ("null", "true", "false", "nan", "inf")
OnEvent = Callable[[Event], None]
AnyTrainer = str | trainers.Trainer
"""A function of a `trainers.LocalTask`, or its name as MODULE:FUNCTION."""
Settings = Mapping[str, object]
Route = Literal["arrow", "task", "oracle", "xlora"]
"""Of several adapters as one model: docs/evaluation.md."""


def simulate(
    *,
    settings: Settings | None = None,
    on_event: OnEvent | None = None,
    trainer: AnyTrainer | None = None,
    **named: object,
) -> Run:
    """A federated run of simulated banks (`banks=`, default 2) to its end, as `python -m fedfinlora simulate` does
    it.

    With `trainer` the banks train by it instead of our own loop (docs/running.md). They run in other processes, so it
    must be importable: a notebook's function or a lambda is refused.
    """
    words = words_of(settings, named)
    if trainer is None:
        return _runs("simulate", "simulate", words, on_event)[0]
    found = trainer_names.named(trainer)
    trainer_names.load(found)  # what cannot be imported is said here, not by each bank
    return _runs("simulate", "simulate", words, on_event, found)[0]


def centralized(
    *,
    settings: Settings | None = None,
    on_event: OnEvent | None = None,
    trainer: AnyTrainer | None = None,
    **named: object,
) -> Run:
    """The baseline with all banks' rows pooled, trained by `trainer` if one is given: here any function will do."""
    more = () if trainer is None else (trainer_names.in_process(trainer),)
    [run] = _runs("baselines", "centralized", words_of(settings, named), on_event, *more)
    return run


def local(
    *,
    settings: Settings | None = None,
    on_event: OnEvent | None = None,
    trainer: AnyTrainer | None = None,
    **named: object,
) -> list[Run]:
    """The baseline of each bank alone: a run for each, in the banks' order. `trainer` as in `centralized`."""
    more = () if trainer is None else (trainer_names.in_process(trainer),)
    return _runs("baselines", "local", words_of(settings, named), on_event, *more)


def evaluate(
    adapters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    base: bool = False,
    url: str = "",
    model_name: str = "",
    route: Route | Sequence[Route] = (),
    gate: str | os.PathLike[str] = "",
    settings: Settings | None = None,
    on_event: OnEvent | None = None,
    **named: object,
) -> Run:
    """Score an adapter or several (folders that PEFT can load), the base model (`base`, or where no adapter is named),
    or the model behind an OpenAI-like server (`url`, `model_name`). The scores are in `Run.scores`: under `final` for
    one adapter, under the folders' names for several, `base` and `remote`.

    A text in `adapters` may be NAME=DIR:TASK,TASK, as on the command line. `route`, one or several, scores the adapters
    together as one model too, under its own label (`oracle_on_test_rows` for oracle); xlora takes a trained `gate`.
    What cannot be joined is a ConfigError or UserError.
    """
    own_modules_first()
    from fedfinlora.commands.asked_models import Asked, absolute, expert_of

    if isinstance(adapters, str | os.PathLike):
        adapters = [adapters]
    routes = (route,) if isinstance(route, str) else tuple(route)
    if adapters is not None and not adapters:
        raise ConfigError(
            "The list of adapters is empty. Leave adapters out, or give base=True, to score the base model."
        )
    asked = Asked(base=base, url=url, name=model_name, routes=routes, gate=absolute(os.fspath(gate)))
    asked = asked.with_experts(expert_of(os.fspath(folder)) for folder in adapters or ())
    [run] = _runs("evaluate", "evaluate", words_of(settings, named), on_event, asked)
    return run


def load_run(run: str | os.PathLike[str]) -> Run:
    """The records of a run by its folder or its name; what is damaged is in `Run.missing`."""
    from fedfinlora.run.which_run import folder_or_run

    if not isinstance(run, str | os.PathLike):
        raise ConfigError(f"A run is named by its folder or its name, not by {run!r}.")
    folder = folder_or_run(os.fspath(run))
    found = read_run(folder)
    if not found.rounds and not found.result.status and found.settings is None:
        raise UserError(
            f"{folder} is not the folder of a run: it has neither a run's config.yaml nor rounds.jsonl nor result.json."
        )
    return found


def compare(
    one: Run | str | os.PathLike[str], other: Run | str | os.PathLike[str], labels: tuple[str, str] = ("final", "final")
) -> Comparison:
    """The differences of two evaluations on the rows that both have, with paired intervals
    (`eval.metrics.compare.compare_runs`). Runs as `load_run` gives them, or by folder or name.
    """
    own_modules_first()
    from eval.metrics.compare import compare_runs

    first, second = (run if isinstance(run, Run) else load_run(run) for run in (one, other))
    return compare_runs(first.folder, labels[0], second.folder, labels[1])


def words_of(settings: Settings | None, named: Settings) -> list[str]:
    """The command line's words of settings.

    >>> words_of({"train.epochs": 2, "dataset.tasks": ["fpb", "fiqa"]},
    ... {"banks": 3, "run_name": "Lauf Ü", "overwrite": True})
    ['banks=3', 'run_name=Lauf Ü', 'overwrite=true', 'train.epochs=2', 'dataset.tasks=[fpb,fiqa]']
    """
    from fedfinlora.config.words import text_keys, word

    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping of keys to values, not {type(settings).__name__}.")
    if odd := [key for key in settings or {} if not isinstance(key, str)]:
        raise ConfigError(f"settings: {odd[0]!r} is no key of the configuration.")
    words = []
    for key, value in {**named, **(settings or {})}.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if key in text_keys():
            words.append(word(key, str(value)))
        elif isinstance(value, str):
            words.append(f"{key}={value}")
        elif isinstance(value, bool) or value is None:
            words.append(f"{key}={'null' if value is None else str(value).lower()}")
        elif isinstance(value, int | float):
            words.append(f"{key}={value}")
        elif isinstance(value, list | tuple):
            words.append(f"{key}=[{','.join(map(_item, value))}]")
        else:
            raise ConfigError(
                f"{key} must be a text, a number, true or false, or a list of names, not {type(value).__name__}."
            )
    return words


def _item(value: object) -> str:
    r"""An entry of a list, in quotes where Hydra would read its letters as something else.

    >>> _item("fpb"), _item("a, b"), _item("null"), _item("${x}"), _item(2.5)
    ('fpb', '"a, b"', '"null"', '"\\${x}"', '2.5')
    """
    if not isinstance(value, str) or (PLAIN_ITEM.fullmatch(value) and value.lower() not in HYDRAS_WORDS):
        return str(value)
    quoted = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), value)
    return '"' + quoted.replace("${", "\\${") + '"'


def _runs(module: str, name: str, words: list[str], on_event: OnEvent | None, *more: object) -> list[Run]:
    """Call a command of `fedfinlora.commands`, and read the folders of the runs that it has completed."""
    if on_event is not None and not callable(on_event):
        raise ConfigError(f"on_event must be a function of one event, not {type(on_event).__name__}.")
    own_modules_first()  # the commands import data and eval, which are not in the path of a script that lies elsewhere
    prepare_process()
    command = getattr(importlib.import_module(f"fedfinlora.commands.{module}"), name)
    folders: list[Path] = []
    stdout = sys.stdout

    def take(event: Event) -> None:
        if isinstance(event, RunDone):
            folders.append(Path(event.run_dir))
        if on_event is not None:
            with contextlib.redirect_stdout(stdout):  # what it prints is shown
                on_event(event)

    is_shown = on_event is None
    with listening(take, is_shown), contextlib.nullcontext() if is_shown else contextlib.redirect_stdout(io.StringIO()):
        status = command(words, *more)
    if status or not folders:
        raise UserError("The run has failed; its folder says why.")
    return [read_run(folder) for folder in folders]
