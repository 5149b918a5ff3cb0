"""The ServerApp. Our own commands hand over the resolved configuration; only under plain `flwr run` is it composed
here.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.values import build
from fedfinlora.config.words import word
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.logs import about, show_logs
from fedfinlora.run.opening import asked_otherwise, configuration_of
from server_app.guarded_grid import guarded
from server_app.plain_run import asked_groups, say_first

log = logging.getLogger("fedfinlora.server")
app = ServerApp()

KEYS = {"dataset-root": "dataset.root", "output-dir": "output_dir"}


def overrides_of(run_config: Mapping[str, Any]) -> list[str]:
    """Hydra overrides from Flower's run config: empty texts and zeros mean "as in conf/"; `overrides` comes last and
    wins.
    """
    try:
        words = shlex.split(str(run_config.get("overrides", "")))
    except ValueError as error:
        raise ConfigError(f"overrides={run_config['overrides']!r} cannot be split into words: {error}.") from error
    overrides = [f"{group}={option}" for group, option in asked_groups(run_config, words).items()]
    for key, target in KEYS.items():
        value = str(run_config.get(key, ""))
        if not value:
            continue
        if not Path(value).expanduser().is_absolute():
            raise ConfigError(
                f"{key}={value!r} must be an absolute path: the server does not run where you typed the command."
            )
        overrides.append(word(target, value))
    if int(run_config.get("num-server-rounds", 0)):
        overrides.append(f"num_server_rounds={run_config['num-server-rounds']}")
    if int(run_config.get("seed", 0)):
        overrides.append(f"seed={run_config['seed']}")
    return overrides + words


def config_of(run_config: Mapping[str, Any]) -> Config:
    """The resolved configuration where it is given, else composed. A resumed run takes its own, unless something else
    is asked for.
    """
    if resolved := str(run_config.get("config", "")):
        try:
            return build(json.loads(resolved))
        except ValueError as error:
            raise ConfigError(
                f"config= must be a whole configuration as JSON, as our own commands hand it over: {error}"
            ) from error
    overrides = overrides_of(run_config)
    if not (resume := str(run_config.get("resume", ""))):
        return compose(overrides)
    anyway = compose([each for each in overrides if each.startswith("resume_anyway=")]).resume_anyway
    asked = asked_otherwise(overrides)
    return configuration_of(Path(resume), compose(asked) if asked else None, anyway)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run to the end. An error is raised as one line, so that Flower marks the run as failed."""
    show_logs()
    say_first(context.run_id, context.run_config)
    with about():
        try:
            from server_app.federated import run_federated  # takes seconds

            run_federated(guarded(grid), config_of(context.run_config))
        except UserError as error:
            log.error("%s", error)
            raise RuntimeError(f"fedfinlora: {error}") from None
