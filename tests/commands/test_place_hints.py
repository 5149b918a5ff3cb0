"""What cannot be written is answered with the option of the command that was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfinlora.cli import main
from fedfinlora.files import places_named, unwritable

FULL = OSError(28, "No space left on device")


def test_the_option_that_gave_the_place_is_named() -> None:
    with places_named({"--json": Path("/disk/figures.json"), "--output": Path("/disk/out")}, "output_dir=FOLDER"):
        assert "another place with --json." in str(unwritable(Path("/disk/figures.json"), FULL))
        assert "another place with --output." in str(unwritable(Path("/disk/out/a/b"), FULL))
        assert "another folder with output_dir=FOLDER." in str(unwritable(Path("/other"), FULL))
    assert "output_dir=FOLDER" in str(unwritable(Path("/disk/out"), FULL))


def test_a_command_that_takes_no_other_place_offers_none() -> None:
    with places_named({}, ""):
        assert str(unwritable(Path("/other"), FULL)).endswith("Free space, or make it writable.")


def test_a_plan_that_cannot_be_written_names_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "plan", "--out", "/dev/null/plan.json"]) == 1
    assert "choose another place with --out." in capsys.readouterr().err


def test_forget_asks_for_another_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for output, why in (("there", "is there already"), ("nul", "Windows keeps this name for a device")):
        assert main(["forget", str(tmp_path), "--bank", "bank-0", "--output", str(tmp_path / output)]) == 1
        said = capsys.readouterr().err
        assert why in said
        assert "--output DIR" in said
