"""Every file of a run's folder, cut at a random byte: `resume` and `report` work, or name the file in one line."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_grid import Tamper
from flwr.app import Message
from reliability import OUTCOMES
from round_runs import Runs
from tiny_runs import SCORED, result_of, rounds_of, write_rows

from fedfinlora.cli import main
from fedfinlora.errors import UserError

WORDS = (*SCORED, "evaluation.every=1", "evaluation.validation_rows=2")
LOCKS = {"server.lock", "command.lock"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of three rounds that was stopped in its third, and the same one to its end."""
    folder = tmp_path_factory.mktemp("cut")
    runs = Runs(write_rows(folder / "rows"), folder)
    with pytest.raises(KeyboardInterrupt):
        runs.start("stopped", *WORDS, rounds=3, tamper=stop_in_round_3)
    shutil.copytree(folder / "stopped", folder / "whole")
    shutil.copytree(folder / "states", folder / "states-stopped")
    runs.resume(folder / "whole")
    return runs


def stop_in_round_3(bank: str, message: Message, reply: Message) -> Message:
    if message.metadata.group_id == "3":
        raise KeyboardInterrupt
    return reply


_: Tamper = stop_in_round_3


def kinds(run: Path) -> Iterator[Path]:
    """A file of each kind: of those that differ in their numbers only, the last."""
    found: dict[str, Path] = {}
    for file in sorted(run.rglob("*")):
        if file.is_file() and file.name not in LOCKS:
            name = re.sub(r"[0-9a-f]{16,}|[0-9]+", "N", str(file.relative_to(run)))
            found[name] = file.relative_to(run)
    return iter(found.values())


def cut(file: Path, seed: int) -> None:
    """Leave a random beginning of it, at least a byte less."""
    content = file.read_bytes()
    file.write_bytes(content[: random.Random(f"{seed} {file.name}").randrange(len(content))] if content else b"")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_file_that_was_cut_is_named_or_does_not_matter_to_the_report(
    made: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    for kind in kinds(made.folder / "whole"):
        run = shutil.copytree(made.folder / "whole", tmp_path / "run")
        cut(run / kind, seed)
        status = main(["report", str(run), "--output", str(tmp_path / "report.html")])
        said = capsys.readouterr().err
        assert status == 0 or kind.name in said, f"{kind}: {said}"
        assert "Traceback" not in said, kind
        shutil.rmtree(run)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_file_that_was_cut_is_named_or_made_again_by_resume(made: Runs, tmp_path: Path, seed: int) -> None:
    assert OUTCOMES["cut file"].says == "damaged"
    for kind in kinds(made.folder / "stopped"):
        run = shutil.copytree(made.folder / "stopped", tmp_path / "run")
        shutil.rmtree(made.folder / "states")
        shutil.copytree(made.folder / "states-stopped", made.folder / "states")
        cut(run / kind, seed)
        refused = refusal_of(made, run)
        if refused:
            assert kind.name in refused, f"{kind}: {refused}"
            assert "damaged" in refused, f"{kind}: {refused}"
        else:
            assert result_of(run)["status"] == "completed", kind
            assert [line["round"] for line in rounds_of(run)] == [1, 2, 3], kind
        shutil.rmtree(run)


def refusal_of(runs: Runs, run: Path) -> str:
    """Why the run cannot be resumed; "" where it went to its end."""
    try:
        runs.resume(run)
    except UserError as error:
        return str(error)
    return ""
