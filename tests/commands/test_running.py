"""`list`, `attach` and `stop` on folders as runs leave them and on locks as they are held."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tiny_runs import SCORED, overrides, write_rows

from fedfinlora.cli import main
from fedfinlora.files import write_json
from fedfinlora.run.events import Evaluate, EvaluateDone, Phase, RunStart
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, hold_run
from fedfinlora.run.listing import listed
from fedfinlora.run.progress import EventWriter, ShownEvents
from fedfinlora.run.progress_display import ProgressDisplay
from fedfinlora.run.progress_lines import PlainProgress
from fedfinlora.system.process_identity import start_of


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with two finished runs and a folder that is none."""
    folder = tmp_path_factory.mktemp("runs")
    rows = write_rows(folder / "rows")
    for name in ("first", "first-again"):
        assert main(["centralized", *overrides(rows, folder / "out", *SCORED, name=name, rounds=1)]) == 0
    (folder / "out" / "notes").mkdir()
    return folder / "out"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any run."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def state_of(run: Path) -> str:
    return listed(run).state


class TestList:
    def test_each_run_has_a_line(self, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", str(output)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all("finished" in line and "rounds 1/1" in line and "centralized" in line for line in lines)

    def test_the_folder_may_be_named_as_for_attach_and_stop(
        self, output: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["list", "--output-dir", str(output)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_json_has_the_same(self, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", str(output), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {one["name"] for one in found} == {"first", "first-again"}
        result = json.loads((output / "first" / "result.json").read_text())
        assert found[0]["score"] == result["scores"]["final"]["fpb"]["accuracy"]

    def test_a_run_whose_process_was_killed_is_interrupted(self, output: Path) -> None:
        run = output / "killed"
        write_json(run / "state" / "run.json", {"run_id": "killed-1", "mode": "federated"})
        assert state_of(run) == "interrupted"
        with hold_run(run, SERVER_LOCK):
            assert state_of(run) == "running"
        write_json(run / "result.json", {"status": "failed", "reason": "no"})
        assert state_of(run) == "failed"
        with EventWriter(run / "progress.jsonl") as events:
            events.write(RunStart(rounds=3))
        later = (run / "result.json").stat().st_mtime + 60
        os.utime(run / "progress.jsonl", (later, later))
        assert state_of(run) == "interrupted", "resumed after that result, and killed"

    def test_a_damaged_run_is_listed(self, output: Path) -> None:
        run = output / "damaged"
        run.mkdir()
        (run / "config.yaml").write_text("{")
        (run / "result.json").write_text("[]")
        (run / "rounds.jsonl").write_text("nonsense\n")
        assert (listed(run).state, listed(run).score) == ("interrupted", None)

    def test_a_folder_that_is_not_there_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", str(tmp_path / "nowhere")]) == 1
        assert "is not there" in capsys.readouterr().err


class TestStop:
    def test_what_does_not_run_is_not_stopped(self, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["stop", str(output / "first")]) == 1
        assert "is completed, so there is nothing to stop" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [{"started": "1"}, {"host": "elsewhere"}])
    def test_a_number_that_belongs_to_another_process_is_never_signalled(
        self,
        output: Path,
        bystander: subprocess.Popen[bytes],
        capsys: pytest.CaptureFixture[str],
        change: dict[str, str],
    ) -> None:
        run = output / "first"
        with hold_run(run, COMMAND_LOCK):
            holder = json.loads((run / COMMAND_LOCK).read_text())
            holder |= {"pid": bystander.pid, "started": start_of(bystander.pid), **change}
            (run / COMMAND_LOCK).write_text(json.dumps(holder))
            assert main(["stop", str(run)]) == 1
        assert bystander.poll() is None
        said = capsys.readouterr().err
        assert "was not signalled" in said or "runs on elsewhere: stop it there" in said


def evaluation(rows_done: int, label: str = "base", benchmark: str = "fpb") -> Evaluate:
    return Evaluate(label=label, benchmark=benchmark, rows_done=rows_done, rows=8, index=1, of=1)


class TestLines:
    def test_a_benchmark_has_one_line_however_often_its_first_row_is_announced(self) -> None:
        plain = PlainProgress()
        events = [
            evaluation(0),
            evaluation(0),
            evaluation(4),
            evaluation(0),
            evaluation(0, "final"),
            evaluation(0, "final", "ner"),
        ]
        assert len([line for event in events if (line := plain.take(event))]) == 3

    def test_a_label_that_is_scored_again_is_shown_again(self) -> None:
        plain = PlainProgress()
        done = EvaluateDone(t=1.0, label="base")
        assert [bool(plain.take(event)) for event in (evaluation(0), done, evaluation(0))] == [True, True, True]

    def test_a_whole_run_without_a_terminal_says_nothing_twice(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = overrides(
            write_rows(tmp_path / "rows"), tmp_path, *SCORED, "evaluation.mode=both", "evaluation.every=1"
        )
        assert main(["centralized", *words]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        once = [line for line in lines if line and not line.startswith("run folder: ")]
        assert sorted(set(once)) == sorted(once)

    def test_shown_events_are_written_and_shown(self, tmp_path: Path) -> None:
        out = io.StringIO()
        with (
            ProgressDisplay(Console(file=out)) as display,
            ShownEvents(tmp_path / "progress.jsonl", display.handle) as events,
        ):
            events.write(Phase(name="training"))
        assert out.getvalue() == "training\n"
        assert json.loads((tmp_path / "progress.jsonl").read_text())["name"] == "training"
