"""What began a run: the command and the commit in state/origin.json, which manifest.json repeats."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedfinlora.files import read_json
from fedfinlora.run import origin


def test_a_command_that_resumes_does_not_replace_what_began_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `verify` would find a manifest of another command in every resumed run."""
    (tmp_path / "state").mkdir()
    for command in ("python -m fedfinlora simulate banks=2", "python -m fedfinlora simulate resume=run"):
        monkeypatch.setattr(origin, "own_command", lambda typed=command: typed)
        origin.note_origin(tmp_path)
    assert read_json(tmp_path / origin.ORIGIN_FILE)["command"] == "python -m fedfinlora simulate banks=2"


def test_the_source_hash_passes_over_pipes_and_reads_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would be read for ever. An installer may link each file, and what runs by a link counts."""
    monkeypatch.setattr(origin, "PROJECT_ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "plain.py").write_text("x = 1\n")
    alone = origin.source_fingerprint.__wrapped__()
    os.mkfifo(tmp_path / "data" / "pipe.py")
    assert origin.source_fingerprint.__wrapped__() == alone
    (tmp_path / "data" / "link.py").symlink_to(tmp_path / "data" / "plain.py")
    assert list(origin.source_files.__wrapped__()) == ["data/link.py", "data/plain.py"]
    assert origin.source_fingerprint.__wrapped__() != alone
