"""Log lines as text and as JSON, and what they say they belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from fedfinlora.logs import about, belongs, show_logs


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The library's logger without handlers, put back as it was."""
    found = logging.getLogger("fedfinlora")
    before, level, propagate = list(found.handlers), found.level, found.propagate
    found.handlers.clear()
    found.propagate = (
        True  # else pytest hangs its own handlers on it, and show_logs leaves a logger that has handlers alone
    )
    yield found
    found.handlers[:] = before
    found.setLevel(level)
    found.propagate = propagate


def test_text_is_the_default(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    show_logs()
    show_logs()
    logging.getLogger("fedfinlora.bank").info("%d rows", 5)
    assert capfd.readouterr().err == "INFO: fedfinlora.bank: 5 rows\n"


def test_json_lines_name_run_round_and_bank(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFINLORA_LOG", "json")
    show_logs()
    log = logging.getLogger("fedfinlora.bank")
    with about(run="r", round=1), about(bank="north", round=2):
        log.warning("two\nlines, \u20ac")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (first["run"], first["round"], first["bank"], first["level"]) == ("r", 2, "north", "warning")
    assert first["message"] == "two\nlines, \u20ac"
    assert "run" not in second
    assert "ValueError: no" in second["exception"]


def test_what_is_known_later_holds_to_the_end_of_its_block(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFINLORA_LOG", "json")
    show_logs()
    log = logging.getLogger("fedfinlora.bank")
    belongs(run="outside of any block")
    with about(bank="north"):
        log.info("before")
        belongs(run="r", round=3)
        log.error("after")
    log.info("outside")
    before, after, outside = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert ("run" in before, after["run"], after["round"], after["bank"], "run" in outside) == (
        False,
        "r",
        3,
        "north",
        False,
    )
