"""A worker's limit on data segments: set where there is no GPU, and left off where CUDA maps address space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import mmap, resource, sys
from pathlib import Path
from client_app import worker

worker.gpus_here = lambda: int(sys.argv[2])
worker.serve(Path(sys.argv[1]), idle_s=0.05, memory_gib=0.5)
print(resource.getrlimit(resource.RLIMIT_DATA)[0])
try:
    # As a CUDA context does: far more address space than is ever used.
    mmap.mmap(-1, 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    print("mapped")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize(("gpus", "limit", "outcome"), [(0, str(2**29), "Cannot allocate memory"), (1, "-1", "mapped")])
def test_the_memory_limit_does_not_keep_cuda_from_mapping(tmp_path: Path, gpus: int, limit: str, outcome: str) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "socket"), str(gpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.split("\n")[:2] == [limit, outcome]
    assert ("worker-memory-gib is not applied" in done.stderr) == bool(gpus)
