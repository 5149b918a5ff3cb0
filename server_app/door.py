"""What a run would notice only after its base model was loaded, tens of seconds later: the files that its settings
name, and a rank that no layer holds. Commands look before they make a folder, the server before it loads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter_folder import check_start
from fedfinlora.model.embedded import is_embedded
from fedfinlora.model.peft_methods.eva import public_rows
from fedfinlora.model.rank_limit import check_rank_here
from server_app.strategies.fedadam import public_moments

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_settings_on_disk(config: Config) -> None:
    """UserError for a path of the configuration that does not hold what the run takes from it, and for a rank that is
    too large. Loads no model, and needs no network. Rows are not looked at: banks may have their own.
    """
    check_model_here(config)
    check_folders(config)
    check_rank_here(config.model, config.peft)
    if not config.peft.frozen_rank:  # else the stage before it makes that adapter
        check_start(config)
    if config.peft.rows:
        public_rows(Path(config.peft.rows))
    if config.strategy.second_moments:
        public_moments(Path(config.strategy.second_moments))


def check_model_here(config: Config) -> None:
    """UserError for a model.path that is no embedded model, no model's folder, and no name on the hub."""
    path = config.model.path
    if is_embedded(path):
        return
    folder = os.path.expanduser(path)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise UserError(f"model.path={path} holds no model: config.json is missing. Name the folder that has it.")
    elif os.path.exists(folder) or not HUB_NAME.fullmatch(path):
        raise UserError(
            f"model.path: {path[:200]!r} is no folder here, and no name of a model on the hub. model=smollm2-135m "
            "needs neither."
        )


def check_folders(config: Config) -> None:
    """ConfigError for a folder to write that is a file, and for a scorer's folder that is not there."""
    output, answers = Path(config.output_dir).expanduser(), Path(config.evaluation.answers_dir).expanduser()
    in_the_way = next((place for place in (answers, *answers.parents) if place.exists()), answers)
    # What is above output_dir is tried when the run's folder is made, before a model is loaded.
    for key, folder, place in (("output_dir", output, output), ("evaluation.answers_dir", answers, in_the_way)):
        if place.exists() and not place.is_dir():
            if Path.home().is_relative_to(place):
                raise ConfigError(
                    f"HOME={Path.home()}: {place} is a file, not a folder. Give evaluation.answers_dir=FOLDER and "
                    "output_dir=FOLDER, or set HOME."
                )
            raise ConfigError(f"{key}={folder}: {place} is a file, not a folder. Name another one.")
    encoder = config.evaluation.bertscore_model
    config_file = os.path.join(os.path.expanduser(encoder), "config.json")
    if encoder.startswith(("/", "~", ".")) and not os.path.isfile(config_file):
        raise ConfigError(f"evaluation.bertscore_model={encoder} is no encoder's folder: config.json is missing there.")
