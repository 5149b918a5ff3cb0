"""Two processes on one folder: the second is refused, touches nothing and says who the first is; kill -9 of the first
lets it continue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reliability import OUTCOMES
from tiny_runs import overrides, rounds_bytes, rounds_of, write_rows

from fedfinlora.cli import main
from fedfinlora.errors import UserError
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.folder import COMMAND_LOCK, alone_in

pytestmark = pytest.mark.slow


@contextmanager
def command(*words: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m fedfinlora WORDS` in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "fedfinlora", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def files_of(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != COMMAND_LOCK.name}


def test_a_second_resume_waits_for_the_end_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, run = write_rows(tmp_path / "rows"), tmp_path / "runs" / "run"
    words = overrides(rows, tmp_path / "runs", rounds=4)
    with command("centralized", *overrides(rows, tmp_path / "runs", "train.steps_per_round=60", rounds=4)) as first:
        deadline = time.monotonic() + 120
        while latest_round(run) < 1:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)
        before = files_of(run)
        for second in (
            ["centralized", f"resume={run}"],
            ["simulate", f"resume={run}"],
            ["centralized", *words, "overwrite=true"],
        ):
            assert main(second) != 0
            said = capsys.readouterr().err
            assert f"{OUTCOMES['two servers'].says}: process {first.pid} on " in said, second
            assert "(python -m fedfinlora centralized " in said
        assert files_of(run) == before
        os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=10)
    assert main(["centralized", f"resume={run}"]) == 0
    assert [line["round"] for line in rounds_of(run)] == [1, 2, 3, 4]
    capsys.readouterr()
    assert main(["centralized", *overrides(rows, tmp_path / "other", "train.steps_per_round=60", rounds=4)]) == 0
    assert rounds_bytes(run) == rounds_bytes(tmp_path / "other" / "run")


@pytest.mark.parametrize("what", ["coordinator", "bank"])
def test_a_second_server_of_a_home_is_refused(tmp_path: Path, what: str) -> None:
    """`coordinator start` and `bank start` both begin with this lock, before anything else is touched."""
    hold = (
        "import sys\nfrom pathlib import Path\nfrom fedfinlora.run.folder import alone_in\n"
        f"with alone_in(Path(sys.argv[1]), 'The {what}'):\n    print('held', flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "home")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:  # fmt: skip
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"The {what} is in use: process {first.pid} on "),
            alone_in(tmp_path / "home", f"The {what}"),
        ):
            pass
        first.kill()
        first.wait(timeout=10)
        with alone_in(tmp_path / "home", f"The {what}"):
            pass
