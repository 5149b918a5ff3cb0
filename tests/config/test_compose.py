"""Every file under conf/ composes and does what it says; mistakes on the command line become one line with the way
out.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import fedfinlora.compose as composing
from fedfinlora.cli import main
from fedfinlora.compose import CONF_FOLDER, absolute_paths, compose, compose_stages, group_options
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_plain
from fedfinlora.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(CONF_FOLDER.rglob("*.yaml"))
GROUP_FILES = [file for file in FILES if file.parent not in (CONF_FOLDER, CONF_FOLDER / "experiment")]
EXPERIMENTS = [file.stem for file in FILES if file.parent.name == "experiment"]
COMMANDS = ("simulate", "centralized", "local", "evaluate", "report", "bench", "data", "data check", "doctor")


def root_where_needed(file: Path, given: list[str]) -> list[str]:
    """dataset.root=… or peft.rows=… for files that leave it to the user and for those that are made of them."""
    text = file.read_text()
    if "rows: ???" in text:
        return ["peft.rows=rows"]
    needs = any(word in text for word in ("root: ???", "override /dataset: finlora", "- sentiment\n"))
    return [] if not needs or any(word.startswith("dataset.root=") for word in given) else ["dataset.root=rows"]


def stated_values(file: Path, values: dict[str, Any], group: str) -> None:
    """Each key that a file states has that value in the composed configuration."""
    for key, value in (yaml.safe_load(file.read_text()) or {}).items():
        if key == "defaults" or value == "???":
            continue
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                found = values[key][inner]
                assert found == (float(inner_value) if isinstance(found, float) else inner_value), f"{key}.{inner}"
        else:
            place = values[group] if group else values
            expected = float(value) if isinstance(place[key], float) else value
            assert place[key] == expected or str(place[key]).endswith(str(value)), key


def test_no_override_gives_the_main_job() -> None:
    config = compose()
    assert (config.model.quantization, config.peft.method, config.dataset.source) == ("nf4", "qlora", "sample")
    assert (config.strategy.name, config.num_server_rounds, config.banks) == ("fedavg", 3, 2)


@pytest.mark.parametrize("file", GROUP_FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_group_option_composes_and_takes_effect(file: Path) -> None:
    group = file.parent.name
    config = compose([f"{group}={file.stem}", *root_where_needed(file, [])])
    stated_values(file, to_plain(config), group)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "curriculum"])  # test_stage_settings.py
def test_every_experiment_composes_and_takes_effect(name: str) -> None:
    file = CONF_FOLDER / "experiment" / f"{name}.yaml"
    config = compose([f"experiment={name}", *root_where_needed(file, [])])
    stated_values(file, to_plain(config), "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF_FOLDER)))
def test_the_commands_in_a_files_header_compose(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert lines[0] != ""
    commands = [line.lstrip("# ") for line in lines if "python -m fedfinlora" in line]
    assert commands, "the header names no command"
    for command in commands:
        words = shlex.split(command.split("   ")[0])
        overrides = [word for word in words[4:] if "=" in word]
        words = [*overrides, *root_where_needed(file, overrides)]
        assert compose_stages(words) or isinstance(compose(words), Config)


def test_overrides_win_and_the_last_of_them_wins() -> None:
    config = compose(
        ["peft=dora", "peft.rank=3", "train.learning_rate=2e-4", "banks=3", "banks=5", "evaluation.benchmarks=[fpb]"]
    )
    assert (config.peft.method, config.peft.rank, config.train.learning_rate, config.banks) == ("dora", 3, 2e-4, 5)
    assert config.evaluation.benchmarks == ("fpb",)


def test_a_typed_evaluation_wins_over_an_experiment() -> None:
    assert compose(["experiment=sentiment", "dataset.root=x", "evaluation=none"]).evaluation.benchmarks == ("none",)
    quick = compose(["evaluation=quick", "experiment=sentiment", "dataset.root=x", "evaluation.limit=7"]).evaluation
    assert (quick.benchmarks, quick.limit) == (("fpb", "fiqa", "headline", "ner"), 7)


def test_an_override_wins_over_an_experiment() -> None:
    config = compose(["experiment=sentiment", "dataset.root=rows", "num_server_rounds=2", "strategy=fedavgm"])
    assert (config.num_server_rounds, config.banks, config.strategy.name, config.partition.name) == (
        2,
        4,
        "fedavgm",
        "dirichlet",
    )


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["peft=adalora"], ["peft", "'adalora'", *group_options("peft")]),
        (["model=llama-2"], ["model", *group_options("model")]),
        (["strategy=fedprox"], ["fedavg", "fedadam"]),
        (["experiment=nothing"], ["experiment", *EXPERIMENTS]),
        (["train.learnig_rate=1"], ["train.learnig_rate", "learning_rate", "batch_rows"]),
        (["sed=1"], ["sed", "seed", "num_server_rounds"]),
        (["peft.method=adalora"], ["adalora", "dora", "rslora"]),
        (["model.quantization=int4"], ["int4", "int8", "nf4", "none"]),
        (["peft.rank=four"], ["peft.rank", "four", "int"]),
        (["model.quantization=none"], ["qlora", "nf4", "peft=lora"]),
    ],
)
def test_a_mistake_is_one_line_that_lists_what_is_valid(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize("override", ["peft", "=3", "peft=3", "seed=[1", "peft=lora,dora", "+seed=1", "~no_such_key"])
def test_an_override_of_the_wrong_form_is_a_configuration_error(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["finlora", "jsonl"])
def test_a_folder_source_without_a_root_says_how_to_name_it(source: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        compose([f"dataset={source}"])


def test_relative_paths_are_taken_from_where_the_command_is_typed(tmp_path: Path) -> None:
    for folder in ("llama", "old"):
        (tmp_path / folder).mkdir()
    config = compose(
        ["dataset=jsonl", "dataset.root=rows", "output_dir=runs", "resume=old", "model.path=llama"], folder=tmp_path
    )
    assert config.dataset.root == str(tmp_path / "rows")
    assert config.output_dir == str(tmp_path / "runs")
    assert config.resume == str(tmp_path / "old")
    assert config.model.path == str(tmp_path / "llama")


def test_another_path_names_the_model_unless_a_name_is_given(tmp_path: Path) -> None:
    assert compose([f"model.path={tmp_path / 'Llama-3.1-8B'}"]).model.name == "Llama-3.1-8B"
    assert compose(["model.path=8b", "model.name=ours"]).model.name == "ours"
    assert compose(["model=tiny-random"]).model.name == "tiny-random"


def test_paths_that_are_none_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = Config(
        output_dir="~/runs", model=ModelConfig(path="meta-llama/Llama-3.1-8B"), dataset=DatasetConfig(root="")
    )
    found = absolute_paths(config, tmp_path)
    assert found.output_dir == str(tmp_path / "home" / "runs")
    assert (found.model.path, found.dataset.root, found.resume) == ("meta-llama/Llama-3.1-8B", "", "")
    assert absolute_paths(found, Path("/elsewhere")) == found


def test_composing_twice_gives_the_same_and_leaves_nothing_behind() -> None:
    assert compose(["peft=dora"]) == compose(["peft=dora"])
    assert compose() == compose()


def test_without_conf_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfinlora.compose.CONF_FOLDER", tmp_path / "conf")
    with pytest.raises(UserError, match="is missing"):
        compose()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_of_28_lines_and_100_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 28, "\n".join(lines)
    assert max(map(len, lines)) <= 100


def test_the_module_runs_as_a_program() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "fedfinlora", "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert all(
        command in shown.stdout for command in ("simulate", "centralized", "local", "evaluate", "report", "data")
    )
    assert shown.stderr == ""


@pytest.mark.parametrize("words", [
    [],
    ["banks=3", "train.learning_rate=2e-4", "seed=7"],
    ["peft=dora", "peft.rank=4", "peft.target_modules=[q_proj,v_proj]"],
    ["peft.rank=4", "experiment=sentiment", "strategy=fedadam", "peft.rank=5"],
    ["experiment=curriculum", "++stages.simple.train.epochs=1"],
    ["train={batch_rows: 3, steps_per_round: 9}"],
    ["evaluation.benchmarks=[fpb,fiqa]", "model=tiny-random", "privacy=example", "privacy.epsilon=3"],
])  # fmt: skip
def test_files_that_are_composed_once_give_what_hydra_gives_alone(words: list[str]) -> None:
    alone = composing._all_by_hydra(words, CONF_FOLDER)
    for _ in range(2):
        assert composing._composed_by_hydra(words) == alone


@pytest.mark.parametrize("words", [
    ["banks=2,3"], ["peft@train=dora"], ["nonsense=1"], ["train.nonsense=1"], ["peft=nonsense"], ["train.epochs=[1"],
    ["train.epochs.x=1"], ["~nonsense"],
])  # fmt: skip
def test_what_is_wrong_is_said_as_hydra_says_it(words: list[str]) -> None:
    messages = []
    for composed in (composing._composed_by_hydra, lambda words: composing._all_by_hydra(words, CONF_FOLDER)):
        with pytest.raises((HydraException, OmegaConfBaseException)) as error:
            composed(words)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_value_does_not_stay_in_the_files_that_are_kept() -> None:
    assert compose(["peft.rank=5"]).peft.rank == 5
    assert compose([]).peft.rank != 5
