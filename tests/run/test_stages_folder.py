"""The folder of a run in stages, in the commands that take a run: named, listed, and resumed as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedfinlora.cli import main
from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_plain
from fedfinlora.errors import UserError
from fedfinlora.run.ended import how_to_resume
from fedfinlora.run.folder import write_config
from fedfinlora.run.records import RunResult, write_result
from fedfinlora.run.stages import PlannedStage, StagesPlan, write_plan
from fedfinlora.run.which_run import find_run, folder_or_run, runs_named


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Two stages of which the first was killed in its first round: it has a configuration and nothing else."""
    folder = tmp_path / "runs" / "course"
    names = ("stage-1-hard", "stage-2-easy")
    configs = [Config(output_dir=str(folder), run_name=name, num_server_rounds=4) for name in names]
    stages = tuple(PlannedStage(name[8:], name, to_plain(config)) for name, config in zip(names, configs, strict=True))
    (folder / names[0]).mkdir(parents=True)
    write_plan(folder, StagesPlan(mode="centralized", stages=stages))
    write_config(folder / names[0], configs[0])
    return folder


def test_list_shows_killed_stages_as_one_interrupted_run(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(killed.parent), "--json"]) == 0
    [line] = json.loads(capsys.readouterr().out)
    assert (line["name"], line["state"], line["mode"]) == ("course", "interrupted", "centralized")
    assert (line["rounds_done"], line["rounds"], line["score"]) == (0, 8, None)


def test_list_shows_stages_whose_plan_is_damaged(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (killed / "stages.json").write_text("{")
    assert main(["list", str(killed.parent)]) == 0
    assert "course  interrupted  stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["report"], ["compare", "RUN"], ["export", "--for", "vllm"], ["serve"], ["contributions"], ["stop"]]
)
def test_each_command_says_what_happened_and_how_to_resume(
    killed: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(killed) if word == "RUN" else word for word in command]
    more = ["--output-dir", str(killed.parent)] if command == ["stop"] else []
    assert main([words[0], str(killed), *words[1:], *more]) == 1
    said = capsys.readouterr().err
    assert f"python -m fedfinlora centralized resume={killed}" in said
    assert str(killed / "stage-1-hard") in said
    assert "run_name=" not in said


def test_a_report_of_stages_takes_those_that_have_ended(killed: Path) -> None:
    with pytest.raises(UserError, match="No stage has closed a round yet"):
        runs_named(str(killed))
    write_result(killed / "stage-1-hard", RunResult(mode="centralized", status="completed", run="stage-1-hard"))
    assert runs_named(str(killed)) == [killed / "stage-1-hard"]
    with pytest.raises(UserError, match=r"2 stages, 1 of them completed\. Name one: .*stage-1-hard"):
        folder_or_run(str(killed))


def test_the_report_of_stages_is_in_their_own_folder(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage's own report stays."""
    stage = killed / "stage-1-hard"
    write_result(stage, RunResult(mode="centralized", status="completed", run="stage-1-hard"))
    for named, other in ((stage, killed), (killed, stage)):
        (other / "report.html").write_text("as it was")
        assert main(["report", str(named)]) == 0
        assert capsys.readouterr().out.split() == [str(named / "report.html")]
        assert (other / "report.html").read_text() == "as it was"


def test_stages_are_found_by_name_and_resumed_as_a_whole(killed: Path) -> None:
    assert find_run("cour", killed.parent) == killed
    assert how_to_resume(killed / "stage-1-hard").endswith(f"python -m fedfinlora centralized resume={killed}")


def test_a_run_killed_before_its_first_round_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_config(run, Config(output_dir=str(tmp_path), run_name="run"))
    assert main(["report", str(run)]) == 1
    said = capsys.readouterr().err
    assert "has closed no round" in said
    assert "run_name=run overwrite=true" in said
    (run / "rounds.jsonl").write_text("")
    assert "its checkpoints are missing: bring back a copy of" in how_to_resume(run), (
        "what there is, is not overwritten"
    )
