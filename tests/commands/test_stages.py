"""Runs in stages: one folder with a run for each, resumed where it was interrupted, and what they come to together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import LABELS, SCORED, adapter_bytes, overrides, same_run, write_lines, write_rows

from fedfinlora.cli import main
from fedfinlora.commands.stages import row_visits, with_visits_of, write_summary
from fedfinlora.compose import compose_stages
from fedfinlora.config.schema import Config
from fedfinlora.files import read_json
from fedfinlora.model.loading import first_adapter, get_session
from fedfinlora.run.checkpoint import latest_round, load_checkpoint
from fedfinlora.run.folder import read_config
from fedfinlora.run.privacy_card import EARLIER_STAGE
from fedfinlora.run.stages import PlannedStage, StagesPlan
from server_app.federated import run_federated

STAGES = (
    "+stages.qa.dataset.tasks=[fiqa]", "+stages.qa.peft.rank=2", "+stages.qa.peft.alpha=6",
    "+stages.qa.peft.target_modules=[q_proj,v_proj]",
    "+stages.labels.dataset.tasks=[fpb]", "+stages.labels.peft.rank=4", "+stages.labels.peft.alpha=8",
    "+stages.labels.peft.target_modules=[q_proj,k_proj,v_proj,o_proj,up_proj]",
)  # fmt: skip
PRIVATE = ("strategy.weighting=equal", "train.holdout_max_rows=0", "strategy.max_update_norm=0")
EXAMPLE = ("privacy=example", "privacy.epsilon=20", *PRIVATE)
BANK = (
    "privacy=bank",
    "privacy.epsilon=0",
    "privacy.noise_multiplier=1",
    "privacy.clip_norm=1",
    "privacy.accept_noise=true",
    *PRIVATE,
)
FIRST, SECOND = "stage-1-qa", "stage-2-labels"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 rows of fpb and 12 of fiqa."""
    root = write_rows(tmp_path_factory.mktemp("rows"))
    for split, count in (("train", 12), ("test", 4)):
        write_lines(root / split / f"fiqa_{split}.jsonl", [fiqa_row(split, number) for number in range(count)])
    return root


def fiqa_row(split: str, number: int) -> str:
    return json.dumps({"context": f"{split} share {number} fell. Answer: ", "target": LABELS[number % 3]})


def words(rows: Path, output: Path, *more: str, rounds: int = 2) -> list[str]:
    return overrides(rows, output, *STAGES, *more, rounds=rounds)


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of finished centralised stages."""
    output = tmp_path_factory.mktemp("runs")
    assert main(["centralized", *words(rows, output, *SCORED, "evaluation.base=true")]) == 0
    return output / "run"


class TestCentralised:
    def test_the_summary_has_every_stage(self, run: Path) -> None:
        summary = read_json(run / "summary.json")
        assert (summary["status"], summary["order"], summary["mode"]) == ("completed", "given", "centralized")
        assert [stage["name"] for stage in summary["stages"]] == ["qa", "labels"]
        assert [stage["rows_trained"] for stage in summary["stages"]] == [32, 32]
        assert set(summary["base"]) == set(summary["stages"][1]["scores"]) == {"fpb"}
        assert (run / summary["adapter"] / "adapter_config.json").is_file()
        assert not (run / SECOND / "eval" / "base").exists()
        assert (run / "report.html").is_file()

    def test_the_second_stage_holds_the_first_ones_adapter(self, run: Path) -> None:
        assert not frozen_moved(run / SECOND)

    @pytest.mark.parametrize("lost", [(SECOND, "summary.json"), ("summary.json", "report.html")])
    def test_what_is_missing_is_run_again_and_no_more(
        self, rows: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: tuple[str, ...]
    ) -> None:
        """As after a kill between two stages, and after the last one."""
        output = run.parent / "copy" / tmp_path.name
        assert main(["centralized", *words(rows, output)]) == 0
        whole = output / "run"
        kept = {place: adapter_bytes(whole / place) for place in (FIRST, SECOND)}
        for name in lost:
            shutil.rmtree(whole / name) if (whole / name).is_dir() else (whole / name).unlink()
        capsys.readouterr()
        assert main(["centralized", "resume=run", f"output_dir={output}"]) == 0
        assert "stage 1 of 2, qa: completed already" in capsys.readouterr().out
        assert {place: adapter_bytes(whole / place) for place in kept} == kept
        assert read_json(whole / "summary.json")["status"] == "completed"

    def test_a_result_of_another_run_is_no_end_of_a_stage(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = Path(shutil.copytree(run, tmp_path / "run"))
        shutil.copy(run / SECOND / "result.json", whole / FIRST / "result.json")
        assert main(["centralized", f"resume={whole}"]) == 1
        assert "result.json is of another run than" in capsys.readouterr().err
        (whole / "stages.json").unlink()
        assert main(["centralized", f"resume={whole}"]) == 1
        assert "is a run in stages whose stages.json is missing" in capsys.readouterr().err

    def test_killed_in_a_stage_they_resume_to_the_same_bytes(self, rows: Path, tmp_path: Path) -> None:
        asked = words(rows, tmp_path / "killed", "train.steps_per_round=1", rounds=20)
        command = [sys.executable, "-m", "fedfinlora", "centralized", *asked]
        killed = tmp_path / "killed" / "run"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while latest_round(killed / SECOND) < 1 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert 1 <= latest_round(killed / SECOND) < 20
        assert main(["centralized", f"resume={killed}"]) == 0
        whole = words(rows, tmp_path / "whole", "train.steps_per_round=1", rounds=20)
        assert main(["centralized", *whole]) == 0
        assert same_run(killed / SECOND, tmp_path / "whole" / "run" / SECOND)


class TestFaults:
    def test_an_error_in_a_stage_names_it_and_how_to_resume(
        self, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = words(rows, tmp_path, "+stages.labels.train.learning_rate=1e30", "train.schedule=constant", rounds=4)
        assert main(["centralized", *asked]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: stage labels: ")
        assert error.endswith(f"python -m fedfinlora centralized resume={tmp_path / 'run'}")
        assert [stage["status"] for stage in read_json(tmp_path / "run" / "summary.json")["stages"]] == [
            "completed", "failed"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("command", "more", "reason"),
        [
            ("centralized", ("+stages.labels.peft.target_modules=[]",), "error: stage labels: peft.target_modules is"),
            ("centralized", ("+stages.labels.dataset.tasks=[nope]",), "error: stage labels: Unknown task 'nope'"),
            ("simulate", ("+stages.labels.dataset.tasks=[headline]",), "error: stage labels: No train rows"),
            ("centralized", EXAMPLE, "error: stage qa: The baselines train without"),
            ("local", (), "error: This configuration has 2 stages (qa, labels), which"),
            ("evaluate", (), "error: This configuration has 2 stages (qa, labels), which"),
        ],
    )  # fmt: skip
    def test_before_any_stage_begins(
        self, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, more: tuple[str, ...],
        reason: str,
    ) -> None:  # fmt: skip
        changed = [each.replace("+stages", "stages") for each in more]
        assert main([command, *words(rows, tmp_path), *changed]) != 0
        assert capsys.readouterr().err.splitlines()[-1].startswith(reason)
        assert not (tmp_path / "run").exists()

    def test_of_folders(self, rows: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        for asked, reason in (
            (["simulate", f"resume={run}"], f"is a centralized run: resume it by `centralized resume={run}`"),
            (["centralized", f"resume={run}", "train.epochs=1"], "Leave train.epochs=1 out."),
            (["centralized", *words(rows, run.parent)], "exists. Resume it by resume="),
            (["centralized", *words(rows, tmp_path)], "run exists. Choose another run_name="),
            (["centralized", *words(rows, tmp_path, "overwrite=true")], "is not the folder of a run in stages"),
        ):
            assert main(asked) != 0
            assert reason in capsys.readouterr().err


def configs_of(rows: Path, folder: Path, *more: str) -> list[Config]:
    """Each stage's configuration, as `simulate` makes it."""
    configs: list[Config] = []
    for stage in compose_stages(words(rows, folder, *more)):
        before = str(folder / configs[-1].run_name / "adapters" / "final") if configs else ""
        configs.append(Config(**{**vars(stage.placed(before)), "output_dir": str(folder), "run_name": stage.folder}))
    return configs


def federated(rows: Path, folder: Path, *more: str) -> list[Path]:
    """The stages one after the other in the round loop of a federation of two banks."""
    return [
        run_federated(FakeGrid(simulated_banks(config.banks, folder / "states")), config)
        for config in configs_of(rows, folder, *more)
    ]


def frozen_moved(run: Path) -> bool:
    """Whether a later stage has changed the adapter that it began with; its own ranks must have changed."""
    config = read_config(run)
    session, trained = get_session(config), config.trained_rank
    moved = load_checkpoint(run).arrays["adapter"] - first_adapter(session, config)
    changes = [layer.of(moved) for layer in session.layout.layers]
    assert all(np.any(b[:, :trained]) for _, b in changes)
    return any(np.any(a[trained:]) or np.any(b[:, trained:]) for a, b in changes)


class TestFederated:
    @pytest.mark.parametrize("more", [(), ("strategy=fedadam",), EXAMPLE, BANK], ids=["plain", "adam", "row", "bank"])
    def test_no_rule_and_no_noise_moves_the_earlier_stage(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
        first, second = federated(rows, tmp_path, *more)
        assert not frozen_moved(second)
        assert latest_round(first) == latest_round(second) == 2

    def test_epsilon_adds_up_over_the_stages(self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A row of both stages has spent both; the card of the second says so."""
        monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
        same = ("stages.qa.dataset.tasks=[fpb]",)
        runs = federated(rows, tmp_path, *EXAMPLE, *[f"+{each}" for each in same])
        cards = [read_json(run / "privacy.json") for run in runs]
        planned = [max(bank["epsilon_planned"] for bank in card["banks"].values()) for card in cards]
        assert cards[1]["epsilon"] > max(planned) + 1
        assert cards[1]["epsilon"] > cards[0]["epsilon"]
        assert EARLIER_STAGE in cards[1]["limits"]
        stages = tuple(PlannedStage(run.name, run.name, {}) for run in runs)
        summary = write_summary(tmp_path, StagesPlan(mode="federated", stages=stages))
        assert summary.epsilon == cards[1]["epsilon"]
        assert summary.stages[0].epsilon == cards[0]["epsilon"]

    def test_one_stage_without_privacy_voids_the_guarantee(self, rows: Path, tmp_path: Path, run: Path) -> None:
        plain = read_json(run / FIRST / "result.json")
        private = {**plain, "privacy": {"mode": "example", "unit": "row", "epsilon": 3.0, "delta": 1e-5, "void": ""}}
        for name, result in (("one", private), ("two", plain)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "result.json").write_text(json.dumps(result))
        stages = tuple(PlannedStage(name, name, {}) for name in ("one", "two", "three"))
        summary = write_summary(tmp_path, StagesPlan(stages=stages))
        assert (summary.epsilon, summary.status) == (None, "waiting")
        assert summary.void == "Stage two trained without privacy, so nothing is guaranteed of its rows."


class TestMixed:
    def test_it_visits_as_many_rows_as_the_stages(self, rows: Path, tmp_path: Path) -> None:
        by_epochs = ("train.batch_rows=4", "+stages.qa.train.epochs=2", "+stages.labels.train.epochs=3")
        asked = [*words(rows, tmp_path, *by_epochs, "train.holdout_max_rows=0"), "stages_order=mixed"]
        [mixed] = compose_stages(asked)
        config = with_visits_of(mixed.config, mixed.mixed)
        assert [row_visits(part) for part in mixed.mixed] == [24, 72]
        assert config.train.epochs == pytest.approx(96 / 36)
        assert row_visits(config) == pytest.approx(96, abs=8)

    def test_it_runs_as_one_stage(self, rows: Path, tmp_path: Path) -> None:
        assert main(["centralized", *words(rows, tmp_path), "stages_order=mixed"]) == 0
        [stage] = read_json(tmp_path / "run" / "summary.json")["stages"]
        assert stage["folder"] == "stage-1-mixed"
        assert stage["rows_trained"] == pytest.approx(64, abs=8)


def test_a_simulation_runs_its_stages_and_resumes_them(rows: Path, tmp_path: Path) -> None:
    """Through real `flwr run`s, one for each stage. Slow: Flower's processes start three times."""
    assert main(["simulate", *words(rows, tmp_path, rounds=1)]) == 0
    whole = tmp_path / "run"
    summary = read_json(whole / "summary.json")
    assert (summary["mode"], summary["status"]) == ("federated", "completed")
    assert summary["stages"][1]["bytes_up"] > 0
    kept = adapter_bytes(whole / SECOND)
    shutil.rmtree(whole / SECOND)
    assert main(["simulate", f"resume={whole}"]) == 0
    assert adapter_bytes(whole / SECOND) == kept
