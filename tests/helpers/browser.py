"""Headless Chromium for tests: open a page that works something out about another, and read what it found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
)


def result_of_page(address: str, profile: Path, dark: bool, time_budget_ms: int) -> dict[str, Any]:
    """What a page has put as JSON into its body's data-result; AssertionError if anything was logged in the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, *CHROMIUM_OPTIONS, *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--user-data-dir={profile}",
            "--window-size=1400,900", f"--virtual-time-budget={time_budget_ms}", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result
