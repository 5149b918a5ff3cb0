"""`import fedfinlora as ff`: the commands as functions, without a terminal, with typed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import adapter_bytes, overrides, write_rows

import fedfinlora as ff
from fedfinlora.commands.baselines import centralized
from fedfinlora.errors import ConfigError, UserError

TINY: dict[str, object] = {"train.steps_per_round": 2, "train.batch_rows": 4, "model.threads": 1}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def named(rows: Path, output: Path, name: str, **more: object) -> dict[str, Any]:
    settings = {**TINY, "dataset.root": rows, "evaluation.benchmarks": ["fpb"], "evaluation.limit": 2}
    values = {
        "dataset": "finlora",
        "model": "tiny-random",
        "banks": 2,
        "num_server_rounds": 2,
        "output_dir": output,
        "run_name": name,
    }
    return {"settings": settings, **values, **more}


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, fedfinlora; print(sorted({'torch', 'flwr', 'numpy', 'rich'} & set(sys.modules)), "
        "fedfinlora.__version__)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("[] ")


def test_a_baseline_gives_its_typed_run_and_its_events(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []
    run = ff.centralized(
        **named(rows, tmp_path, "Lauf Ü [1]"), on_event=lambda event: events.append(str(event["event"]))
    )
    assert run.folder == tmp_path / "Lauf Ü [1]"
    assert (run.result.status, run.result.rounds, [line.round for line in run.rounds]) == ("completed", 2, [1, 2])
    assert run.rounds[0].banks[0].is_ok
    assert run.scores["final"]["fpb"].n == 2
    assert (events[0], events[-1], events.count("round_done")) == ("run_start", "run_done", 2)
    assert capsys.readouterr().out == ""
    assert ff.load_run(run.folder).result == run.result
    compared = ff.compare(run, run, ("base", "final"))
    assert compared.benchmarks["fpb"].rows == 2


def test_it_is_the_commands_own_run(rows: Path, tmp_path: Path) -> None:
    run = ff.centralized(**named(rows, tmp_path, "api", evaluation="none"))
    assert centralized(overrides(rows, tmp_path, name="command")) == 0
    assert adapter_bytes(run.folder) == adapter_bytes(tmp_path / "command")


def test_each_bank_alone_and_an_evaluation_of_their_adapters(rows: Path, tmp_path: Path) -> None:
    alone = ff.local(**named(rows, tmp_path, "alone", evaluation="none"))
    assert [run.folder.name for run in alone] == ["alone-bank-0", "alone-bank-1"]
    adapters = [run.folder / "adapters" / "final" for run in alone]
    scored = ff.evaluate(adapters, base=True, **named(rows, tmp_path, "scored"))
    assert sorted(scored.scores) == ["alone-bank-0-final", "alone-bank-1-final", "base"]


@pytest.mark.slow
def test_a_federated_run_from_a_script(rows: Path, tmp_path: Path) -> None:
    run = ff.simulate(**named(rows, tmp_path, "federated", evaluation="none"))
    assert [[entry.bank for entry in line.banks] for line in run.rounds] == [["bank-0", "bank-1"]] * 2
    assert run.result.mode == "federated"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.epoch": 1}, "Unknown configuration key train.epoch"),
        ({"banks": {}}, "banks must be a text, a number"),
        ({"peft": "lorra"}, "lorra"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ff.centralized(settings=settings)


def test_a_run_that_fails_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere"):
        ff.centralized(
            settings={"dataset.root": tmp_path / "nowhere"}, dataset="finlora", model="tiny-random", output_dir=tmp_path
        )


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        ff.load_run(tmp_path)
    with pytest.raises(AttributeError, match="has no attribute 'simulated'"):
        ff.simulated  # noqa: B018
