"""Which run a name means, in every command and setting that takes one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_runs import SCORED, overrides, rounds_of, write_rows

from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, hold_run
from fedfinlora.run.which_run import find_run, folder_or_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose default folder of runs holds two finished runs, which share the beginning of their names."""
    home = tmp_path_factory.mktemp("home")
    rows = write_rows(home / "rows")
    for name in ("first", "first-again"):
        assert main(["centralized", *overrides(rows, home / ".fedfinlora" / "runs", *SCORED, name=name, rounds=1)]) == 0
    return home


@pytest.fixture
def runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(home))
    return home / ".fedfinlora" / "runs"


def test_a_folder_a_name_or_the_only_beginning_of_either(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(str(runs / "first"), Path("/nowhere")) == runs / "first"
    assert find_run("first", runs) == runs / "first"
    assert find_run("first-a", runs) == runs / "first-again"
    assert find_run(str(runs / "first-a"), Path("/nowhere")) == runs / "first-again"
    monkeypatch.chdir(runs)
    assert find_run("./first-a", Path("/nowhere")) == runs / "first-again"


@pytest.mark.parametrize(
    ("name", "words"),
    [("fir", "begins the names of 2 runs: first, first-again"), ("zz", "no run 'zz'.* It has first, first-again"),
     ("", "no run ''"), ("/nowhere/x", "no run '/nowhere/x'.*no runs"), ("a\x1b[2J", r"\\x1b")],
)  # fmt: skip
def test_anything_else_says_what_there_is(runs: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_run(name, runs)


@pytest.mark.parametrize("lock", [COMMAND_LOCK, SERVER_LOCK])
def test_of_several_the_one_that_runs_is_meant_where_that_is_asked(runs: Path, lock: Path) -> None:
    with hold_run(runs / "first-again", lock):
        assert find_run("fir", runs, running_first=True) == runs / "first-again"
        with pytest.raises(UserError, match="2 runs"):
            find_run("fir", runs)


def test_resume_takes_a_name_as_well_as_a_path(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose(["resume=first"]).resume == str(runs / "first")
    assert compose(["resume=first-ag"]).resume == str(runs / "first-again")
    assert compose(["resume=first", f"output_dir={runs}"]).resume == str(runs / "first")
    (tmp_path / "first").mkdir()
    assert compose(["resume=first"]).resume == str(tmp_path / "first"), "a path that is there comes first"
    for name in ("nothing", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match=r"no run .*nothing.*resume=FOLDER"):
            compose([f"resume={name}"])


@pytest.mark.parametrize("words", [["resume=first"], ["resume=first", "output_dir=."]], ids=" ".join)
def test_a_run_resumes_by_its_name(runs: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("HOME", os.environ["HOME"] if len(words) == 1 else "/proc")
    before = rounds_of(runs / "first")
    assert main(["centralized", *words]) == 0
    assert rounds_of(runs / "first") == before, "it was complete"


@pytest.mark.parametrize(
    "words",
    [["report", "first", "first-again"], ["compare", "first", "first-again"], ["attach", "first"]],
    ids=" ".join,
)  # fmt: skip
def test_commands_take_names(
    runs: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--output", str(tmp_path / "report.html")] if words[0] == "report" else []
    assert main([*words, *more]) == 0, capsys.readouterr().err
    assert main([words[0], *["nothing" for _ in words[1:]], *more]) == 1
    assert "There is no run 'nothing'" in capsys.readouterr().err


def test_verify_takes_a_name(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "first"]) == 1
    assert f"{runs / 'first'} is a run of mode centralized: only federated runs keep a chain" in capsys.readouterr().err


def test_a_path_that_is_there_stays_as_it_was_typed(tmp_path: Path) -> None:
    assert folder_or_run(str(tmp_path)) == tmp_path
