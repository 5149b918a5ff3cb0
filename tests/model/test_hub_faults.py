"""Everything that a hub may answer, through the real client against a hub on loopback: one line with the name and what
to do, no token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FILES, Hub, serving_hub

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"
PROGRAM = """
import json, os, sys
from fedfinlora.config.model import ModelConfig
from fedfinlora.errors import UserError
from fedfinlora.model.files import model_folder
from fedfinlora.model.tokenizers import load_tokenizer

def said(call):
    try:
        return str(call())
    except UserError as error:
        return f"error: {error}"

names = sys.argv[1:]
calls = (model_folder, load_tokenizer) if "REPEATED" not in os.environ else (model_folder,)
found = {name: [said(lambda: call(ModelConfig(path=f"org/{name}"))) for call in calls] for name in names}
print(json.dumps(found))
"""
"""Prints name -> [what becomes of the model's files, of its tokenizer]."""

FAULTS = {
    "gated": r"org/gated is gated: accept its licence at .*/org/gated.*HF_TOKEN",
    "gated403": r"org/gated403 is gated: accept its licence",
    "missing": r"org/missing is not on http.*Check the name, or set HF_TOKEN",
    "unseen": r"org/unseen cannot be had: .*\(401\).*HF_TOKEN",
    "norevision": r"org/norevision has no such revision",
    "forbidden": r"org/forbidden cannot be had: .*\(403\).*read access",
    "page": r"org/page cannot be had: .* is no Hugging Face hub",
    "echo": r"org/echo cannot be had: .*\(403\)",
}

REPEATED = {
    "broken": r"org/broken cannot be had: .* fails \(500\). Try again later",
    "down": r"org/down cannot be had: .* fails \(503\)",
    "busy": r"org/busy cannot be had: .*\(429\) and asks to wait 2 s",
    "cut": r"org/cut did not arrive whole",
    "short": r"org/short did not arrive whole",
}
"""What the client tries again, for a minute where transformers asks: only `model_folder` is asked, which takes seconds.
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving_hub() as hub:
        yield hub


def ask(hub: Hub, home: Path, *names: str, **environment: str) -> tuple[dict[str, list[str]], str]:
    """(what `PROGRAM` prints, what it writes to standard error)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    quick = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=kept | quick | place | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def said(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is said of every fault, by one process with a token."""
    found, wrong = ask(hub, tmp_path_factory.mktemp("home"), *FAULTS, "fine", HF_TOKEN=f" {TOKEN}\n")
    assert TOKEN not in json.dumps(found) + wrong
    assert f"Bearer {TOKEN}" in {authorization for _, _, authorization in hub.requests}
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_hub_is_one_line(said: dict[str, list[str]], fault: str) -> None:
    for line in said[fault]:
        assert re.search(f"error: .*{FAULTS[fault]}", line), line
        assert line.isprintable()
        assert len(line) < 500


def test_what_the_client_tries_again_ends_in_one_line_too(hub: Hub, tmp_path: Path) -> None:
    found, _ = ask(hub, tmp_path, *REPEATED, REPEATED="1")
    for fault, expected in REPEATED.items():
        assert re.search(f"error: .*{expected}", found[fault][0]), found[fault]


def test_a_hub_without_a_fault_gives_the_files(said: dict[str, list[str]]) -> None:
    folder = Path(said["fine"][0])
    assert {file.name for file in folder.iterdir()} == set(FILES)


def test_offline_with_nothing_on_the_machine(hub: Hub, tmp_path: Path) -> None:
    asked = len(hub.requests)
    found, _ = ask(hub, tmp_path, "fine", HF_HUB_OFFLINE="1")
    for line in found["fine"]:
        assert "org/fine is not on this machine, and HF_HUB_OFFLINE forbids" in line
    assert len(hub.requests) == asked


@pytest.mark.parametrize("token", ["hf_two words", "hf_two\nlines", "hf_schlüssel"])
def test_a_token_that_can_be_none_is_named_by_its_variable(hub: Hub, tmp_path: Path, token: str) -> None:
    found, wrong = ask(hub, tmp_path, "gated", HF_TOKEN=token)
    for line in found["gated"]:
        assert "HF_TOKEN holds blanks, line ends or letters that no token has" in line
        assert token.split()[-1] not in line + wrong


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    found, _ = ask(hub, Path("/proc/nothing"), "fine")
    for line in found["fine"]:
        assert "org/fine cannot be kept: /proc/nothing" in line
        assert "Set HF_HOME" in line
