"""The two ends of the scale: all rows pooled, and each bank alone. Both must be comparable with the federated run,
number by number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import SCORED, adapter_bytes, overrides, result_of, rounds_of, same_run, write_lines, write_rows

from fedfinlora.cli import main
from fedfinlora.commands import baselines
from fedfinlora.commands.baseline_rows import pooled_rows
from fedfinlora.commands.baselines import centralized, local
from fedfinlora.compose import compose
from fedfinlora.model import loading as models
from server_app.federated import run_federated

ROUNDS = 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=40)


def federated(words: Sequence[str], states: Path) -> Path:
    config = compose(words)
    return run_federated(FakeGrid(simulated_banks(config.banks, states)), config)


def stop_after(monkeypatch: pytest.MonkeyPatch, rounds: int, error: BaseException) -> None:
    """Raise in place of the training of the round after `rounds`."""
    true, taken = baselines.train_in_bank, iter(range(1000))

    def train(*arguments: Any, **named: Any) -> Any:
        if next(taken) >= rounds:
            raise error
        return true(*arguments, **named)

    monkeypatch.setattr(baselines, "train_in_bank", train)


class TestCentralized:
    @pytest.mark.parametrize(
        "more", [(), ("partition=dirichlet",), ("train.epochs=1",), ("train.max_steps=4",)], ids=str
    )
    def test_as_many_steps_and_rows_as_the_banks_together(
        self, rows: Path, tmp_path: Path, more: tuple[str, ...]
    ) -> None:
        words = [*overrides(rows, tmp_path, *more, rounds=ROUNDS, banks=3), "train.batch_rows=2"]
        pooled = [*words, "run_name=pooled"]
        run = federated(words, tmp_path / "states")
        assert centralized(pooled) == 0
        one, other = result_of(run), result_of(tmp_path / "pooled")
        assert other["steps_trained"] == one["steps_trained"]
        assert other["rows_trained"] == one["rows_trained"]
        assert (other["mode"], other["rounds"], other["bytes_up"], other["bytes_down"]) == ("centralized", ROUNDS, 0, 0)
        steps = [line["banks"][0]["steps"] for line in rounds_of(tmp_path / "pooled")]
        assert max(steps) - min(steps) <= 1

    def test_banks_with_fewer_rows_than_a_step_still_give_equal_rows(self, rows: Path, tmp_path: Path) -> None:
        """A bank of 5 rows takes 5 a step, so the pooled run may not take 16."""
        small = write_rows(tmp_path / "small", train=10)
        words = [*overrides(small, tmp_path, banks=2), "train.batch_rows=16", "train.holdout_max_rows=0"]
        run = federated(words, tmp_path / "states")
        assert centralized([*words, "run_name=pooled"]) == 0
        assert result_of(tmp_path / "pooled")["steps_trained"] == result_of(run)["steps_trained"]
        assert result_of(tmp_path / "pooled")["rows_trained"] == result_of(run)["rows_trained"]

    def test_banks_of_unequal_sizes_give_equal_rows(self, rows: Path, tmp_path: Path) -> None:
        """The average of a small and a large bank's steps is no whole number of rows; rows too long for the window
        count for no bank.
        """
        small = write_rows(tmp_path / "small", train=23)
        file = small / "train" / "fpb_train.jsonl"
        long = [json.dumps({"context": "x" * 300 + " Answer: ", "target": "up"})] * 4
        write_lines(file, [*file.read_text().splitlines(), *long])
        for more in (
            ("train.batch_rows=7",),
            ("train.batch_rows=7", "train.epochs=2"),
            ("train.batch_rows=0", "train.epochs=1.5"),
        ):
            name = "-".join(more)
            words = [
                *overrides(small, tmp_path, "model.context_tokens=100", "partition=dirichlet", banks=3, rounds=3),
                *more,
            ]
            run = federated([*words, f'run_name="{name}"'], tmp_path / "states" / name)
            assert centralized([*words, f'run_name="{name}-pooled"']) == 0
            for key in ("rows_trained", "steps_trained"):
                assert result_of(tmp_path / f"{name}-pooled")[key] == result_of(run)[key], name

    def test_exactly_the_banks_train_rows_are_pooled(self, rows: Path, tmp_path: Path) -> None:
        """What a bank holds out is not trained on by the pooled run either."""
        from client_app.own_rows import divide, train_and_held_out

        config = compose(overrides(rows, tmp_path, banks=3))
        session = models.get_session(config)
        pooled = pooled_rows(config, session)
        expected = [train_and_held_out(part, config, f"bank-{index}") for index, part in enumerate(divide(config, 3))]
        prompts = sorted(session.tokenizer.decode(row.prompt_ids) for row in pooled.train)
        assert prompts == sorted(row.prompt for part, _ in expected for row in part)
        assert len(pooled.held_out) == sum(len(part) for _, part in expected) > 0

    def test_the_same_run_twice_gives_the_same_bytes(self, rows: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            assert centralized(overrides(rows, tmp_path, *SCORED, name=name)) == 0
        assert same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("after", [1, 2])
    def test_a_stopped_run_resumes_to_the_same_bytes(
        self,
        rows: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        after: int,
    ) -> None:
        assert centralized(overrides(rows, tmp_path, *SCORED, rounds=ROUNDS, name="whole")) == 0
        words = overrides(rows, tmp_path, *SCORED, rounds=ROUNDS)
        with monkeypatch.context() as patch:
            stop_after(patch, after, KeyboardInterrupt())
            assert main(["centralized", *words]) == 1
        run = tmp_path / "run"
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said == f"error: stopped after round {after}; resume with: python -m fedfinlora centralized resume={run}"
        assert result_of(run)["status"] == "stopped"
        assert main(["centralized", f"resume={run}"]) == 0
        assert same_run(tmp_path / "whole", run)
        assert result_of(run)["scores"] == result_of(tmp_path / "whole")["scores"]
        assert result_of(run)["rows_trained"] == result_of(tmp_path / "whole")["rows_trained"]

    def test_a_run_stopped_in_round_1_resumes_to_the_same_bytes(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert centralized(overrides(rows, tmp_path, *SCORED, name="whole")) == 0
        with monkeypatch.context() as patch:
            stop_after(patch, 0, KeyboardInterrupt())
            assert main(["centralized", *overrides(rows, tmp_path, *SCORED)]) == 1
        assert main(["centralized", f"resume={tmp_path / 'run'}"]) == 0
        assert same_run(tmp_path / "whole", tmp_path / "run")

    def test_a_crash_is_a_failed_run_that_can_be_resumed(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert centralized(overrides(rows, tmp_path, name="whole")) == 0
        with monkeypatch.context() as patch:
            stop_after(patch, 1, RuntimeError("broken"))
            with pytest.raises(RuntimeError):
                main(["centralized", *overrides(rows, tmp_path)])
        assert (result_of(tmp_path / "run")["status"], result_of(tmp_path / "run")["reason"]) == ("failed", "broken")
        assert main(["centralized", f"resume={tmp_path / 'run'}"]) == 0
        assert same_run(tmp_path / "whole", tmp_path / "run")

    @pytest.mark.parametrize("other", ["federated", "local"])
    def test_another_modes_run_is_not_resumed(
        self, rows: Path, tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its state is not this one's: one line that says so."""
        words = overrides(rows, tmp_path)
        run = federated(words, tmp_path / "states") if other == "federated" else tmp_path / "run-bank-0"
        if other == "local":
            assert local(words) == 0
        capsys.readouterr()
        assert main(["centralized", f"resume={run}"]) == 1
        assert other in capsys.readouterr().err


class TestOneBankIsNoFederation:
    """One bank equals no federation, byte for byte."""

    MORE = ("peft.dropout=0.1", "train.holdout_every=2", *SCORED)

    @pytest.mark.parametrize("baseline", [local, centralized], ids=["local", "centralized"])
    @pytest.mark.parametrize("peft", ["qlora", "dora"])
    def test_one_bank_equals_no_federation(
        self, rows: Path, tmp_path: Path, baseline: Callable[[Sequence[str]], int], peft: str
    ) -> None:
        words = overrides(rows, tmp_path, *self.MORE, f"peft={peft}", rounds=ROUNDS, banks=1)
        run = federated(words, tmp_path / "states")
        assert baseline([*words, "run_name=alone"]) == 0
        alone = tmp_path / ("alone-bank-0" if baseline is local else "alone")
        assert adapter_bytes(alone) == adapter_bytes(run)
        for label in ("round_001", "round_002"):
            assert adapter_bytes(alone, label) == adapter_bytes(run, label)
        for mine, theirs in zip(rounds_of(alone), rounds_of(run), strict=True):
            for key in ("train_loss", "holdout_loss", "adapter_sha256"):
                assert mine[key] == theirs[key], key
        assert result_of(alone)["scores"] == result_of(run)["scores"]


class TestLocal:
    def test_one_run_for_each_bank_and_a_report_over_all(self, rows: Path, tmp_path: Path) -> None:
        words = overrides(rows, tmp_path, *SCORED, rounds=ROUNDS, banks=3)
        assert local(words) == 0
        runs = [tmp_path / f"run-bank-{index}" for index in range(3)]
        assert sorted(path for path in tmp_path.iterdir() if path.is_dir()) == runs
        for index, run in enumerate(runs):
            result = result_of(run)
            assert (result["mode"], result["status"]) == ("local", "completed")
            assert {bank["bank"] for line in rounds_of(run) for bank in line["banks"]} == {f"bank-{index}"}
        report = (tmp_path / "run.html").read_text()
        assert all(run.name in report for run in runs)

    def test_each_bank_takes_its_own_share_of_rows_and_steps(self, rows: Path, tmp_path: Path) -> None:
        words = overrides(rows, tmp_path, rounds=ROUNDS, banks=3)
        run = federated(words, tmp_path / "states")
        assert local([*words, "run_name=alone"]) == 0
        for index in range(3):
            [first, *_] = rounds_of(tmp_path / f"alone-bank-{index}")
            [mine] = [bank for bank in rounds_of(run)[0]["banks"] if bank["bank"] == f"bank-{index}"]
            for key in ("rows", "steps", "tokens", "answer_tokens", "train_loss", "holdout_loss"):
                assert first["banks"][0][key] == mine[key], key

    def test_the_base_is_scored_once(self, rows: Path, tmp_path: Path) -> None:
        assert local(overrides(rows, tmp_path, *SCORED)) == 0
        scored = [(tmp_path / f"run-bank-{index}" / "eval" / "base").is_dir() for index in range(2)]
        assert scored == [True, False]

    @pytest.mark.parametrize("stopped_bank", [0, 1])
    def test_a_stopped_bank_resumes_with_the_printed_command(
        self,
        rows: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        stopped_bank: int,
    ) -> None:
        words = overrides(rows, tmp_path, *SCORED)
        assert local([*words, "run_name=whole"]) == 0
        with monkeypatch.context() as patch:
            stop_after(patch, 1 + 2 * stopped_bank, KeyboardInterrupt())
            assert main(["local", *words]) == 1
        reported = re.search(r"python -m fedfinlora (local resume=\S+)", capsys.readouterr().err)
        assert reported is not None
        assert main(reported[1].split()) == 0
        assert same_run(tmp_path / f"whole-bank-{stopped_bank}", tmp_path / f"run-bank-{stopped_bank}")


class TestSideBySide:
    def test_base_local_federated_and_centralised_in_one_report(self, rows: Path, tmp_path: Path) -> None:
        words = overrides(rows, tmp_path, *SCORED, banks=2)
        runs = [federated([*words, "run_name=together"], tmp_path / "states")]
        assert centralized([*words, "run_name=pooled"]) == 0
        assert local([*words, "run_name=alone"]) == 0
        runs += [tmp_path / "pooled", tmp_path / "alone-bank-0", tmp_path / "alone-bank-1"]
        page = tmp_path / "side.html"
        assert main(["report", *map(str, runs), "--output", str(page)]) == 0
        text = page.read_text()
        for word in ("together", "pooled", "alone-bank-0", "alone-bank-1"):
            assert word in text
        for mode in ("base", "local", "federated", "centrali"):
            assert mode in text.lower()

    def test_all_of_them_score_the_same_base(self, rows: Path, tmp_path: Path) -> None:
        words = overrides(rows, tmp_path, *SCORED)
        run = federated(words, tmp_path / "states")
        assert centralized([*words, "run_name=pooled"]) == 0
        assert main(["evaluate", *words, "run_name=base"]) == 0
        scores = [result_of(each)["scores"]["base"] for each in (run, tmp_path / "pooled", tmp_path / "base")]
        assert scores[0] == scores[1] == scores[2]
