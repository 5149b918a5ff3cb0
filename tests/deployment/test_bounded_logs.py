"""A log that somebody makes grow stays below its bound, though its writer holds it open."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fedfinlora.deployment.bounded_logs import bounded, shorten

MOST = 10_000


def test_the_end_of_a_long_log_is_kept_and_its_writer_starts_over(tmp_path: Path) -> None:
    file = tmp_path / "superlink.log"
    with open(file, "ab", buffering=0) as stream:
        stream.write(b"x" * 5 + b"y" * MOST)
        shorten(file, MOST)
        assert file.stat().st_size == 0
        stream.write(b"after")
    assert file.read_bytes() == b"after"
    copy = tmp_path / "superlink.log.1"
    assert copy.read_bytes() == b"y" * MOST
    assert copy.stat().st_mode & 0o777 == 0o600
    shorten(file, MOST)
    assert file.read_bytes() == b"after"


def test_a_log_that_cannot_be_copied_is_shortened_all_the_same(tmp_path: Path) -> None:
    """As on a full disk."""
    file = tmp_path / "superlink.log"
    (tmp_path / "superlink.log.1").mkdir()
    file.write_bytes(b"x" * (MOST + 1))
    shorten(file, MOST)
    assert file.stat().st_size == 0


def test_a_log_that_another_process_floods_stays_short(tmp_path: Path) -> None:
    file, missing = tmp_path / "supernode.log", tmp_path / "state" / "worker.log"
    flood = "import time\nfor _ in range(200): print('x' * 1000, flush=True); time.sleep(0.002)"
    largest = 0
    with bounded(file, missing, most_bytes=MOST, look_s=0.005):
        with open(file, "ab") as stream:
            process = subprocess.Popen([sys.executable, "-c", flood], stdout=stream)
        while process.poll() is None:
            largest = max(largest, sum(each.stat().st_size for each in tmp_path.glob("supernode.log*")))
            time.sleep(0.002)
    assert process.returncode == 0
    assert MOST < largest < 150_000, "of 200,000 bytes"
    assert not missing.exists()
