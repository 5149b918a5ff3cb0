"""Experiment trackers: what they get, that nothing leaves the run's folder, and that none of them can end a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from report_runs import round_record

from fedfinlora.cli import main
from fedfinlora.config.schema import LOGGERS, Config
from fedfinlora.config.values import build
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.report import loggers
from fedfinlora.report.loggers import FACTS, PACKAGES, Board, mlflow_logger, require_loggers
from fedfinlora.run.records import RoundLine, round_line

SECRET = "s3cr3t-place"


def config_with(*names: str) -> Config:
    """A configuration whose path and address must not leave."""
    return build({"loggers": list(names), "output_dir": f"/{SECRET}", "dataset": {"root": f"/{SECRET}"}, "seed": 7})


def line(number: int) -> RoundLine:
    return round_line(round_record(number, banks=2), "a test")


def test_mlflow_keeps_figures_and_facts_in_the_run_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9/elsewhere")
    board = Board(tmp_path / "demo", config_with("mlflow"))
    for number in (1, 2):
        board.add_round(line(number))
    board.close()
    folder = tmp_path / "demo" / "state" / "loggers" / "mlflow"
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("fedfinlora")
    [run] = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert [(one.step, one.value) for one in history] == [(1, 2.4), (2, 1.2)]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert set(run.data.params) == set(FACTS)
    assert run.data.params["seed"] == "7"
    written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert SECRET.encode() not in written


def test_a_bank_with_any_name_is_kept_under_a_key_that_mlflow_takes(tmp_path: Path) -> None:
    logger = mlflow_logger.open_logger(tmp_path, "demo", {})
    logger.log({"train_loss/Bank d'été (2)": 1.0}, step=1)
    logger.close()
    assert list(tmp_path.glob("*/*/metrics/train_loss/Bank d_été _2_"))


class Failing:
    """A tracker whose disk is full at its second step."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.steps.append(step)
        if step == 2:
            raise OSError(28, f"No space left at /{SECRET}")

    def close(self) -> None:
        raise AssertionError("a tracker that failed is not asked again")


def test_a_logger_that_fails_is_named_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, said = Failing(), list[str]()
    monkeypatch.setattr(mlflow_logger, "open_logger", lambda *_: failing)
    with Board(tmp_path, config_with("mlflow"), said.append) as board:
        for number in (1, 2, 3):
            board.add_round(line(number))
    assert failing.steps == [1, 2]
    assert said == ["mlflow is off for the rest of this run (OSError); the run continues without it"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_logger_that_cannot_begin_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    said: list[str] = []
    with Board(tmp_path, config_with("mlflow"), said.append) as board:
        board.add_round(line(1))
    assert [words.split(" (")[0] for words in said] == ["mlflow is off for the rest of this run"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_a_line_that_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda module: None if module == PACKAGES[name] else object())
    with pytest.raises(UserError, match=rf"^loggers={name} needs a package. .*pip install 'fedfinlora\[{name}\]'$"):
        require_loggers([name])
    for other in set(LOGGERS) - {name}:
        require_loggers([other])


@pytest.mark.parametrize("command", ["simulate", "centralized"])
def test_a_run_with_a_missing_logger_is_refused_before_a_folder_is_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    words = ["model=tiny-random", "dataset=sample", f"output_dir={tmp_path / 'out'}", "loggers=[wandb]"]
    assert main([command, *words]) == 1
    assert "pip install 'fedfinlora[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_logger_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"Unknown logger 'mlfow'\. Did you mean 'mlflow'"):
        build({"loggers": ["mlfow"]})


def test_every_logger_has_its_extra_its_module_and_no_heavy_import() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(PACKAGES) == set(LOGGERS)
    for name in LOGGERS:
        assert project["optional-dependencies"][name]
        assert importlib.util.find_spec(f"fedfinlora.report.loggers.{name}_logger")
