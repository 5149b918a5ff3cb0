"""A command that scores says at once where there is nothing to score."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.rows import require_rows
from fedfinlora.cli import main
from fedfinlora.config.schema import Config
from fedfinlora.config.values import build
from fedfinlora.errors import UserError
from fedfinlora.run.folder import write_config

NOTHING = {"source": "finlora", "root": "/nope"}


def test_rows_that_are_there_pass() -> None:
    require_rows(Config())


def test_no_benchmark_and_no_file_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.benchmarks names none"):
        require_rows(build({"evaluation": {"benchmarks": ["none"]}}))
    with pytest.raises(UserError, match=r"There is nothing to score: dataset\.root '/nope' does not exist"):
        require_rows(build({"dataset": NOTHING}))


@pytest.mark.parametrize("command", [["evaluate", "dataset=finlora", "dataset.root=/nope", "model=tiny-random"], []])
def test_no_model_is_loaded_for_nothing(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfinlora.model.loading.load_base", None)
    if not command:
        write_config(tmp_path, build({"dataset": NOTHING}))
        command = ["contributions", str(tmp_path)]
    else:
        command = [*command, f"output_dir={tmp_path}"]
    assert main(command) == 1
    assert "There is nothing to score: dataset.root '/nope' does not exist" in capsys.readouterr().err
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]
