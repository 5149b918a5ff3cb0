"""Our log lines on standard error, inside Flower's processes, which configure their own logger only.

FEDFINLORA_LOG=json makes each line a JSON object: time, level, logger, message, and the run, round and bank that it
belongs to, where it does.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_about: ContextVar[dict[str, Any] | None] = ContextVar("fedfinlora_log_about", default=None)


def show_logs() -> None:
    """Show the library's lines from INFO on, once a process."""
    logger = logging.getLogger("fedfinlora")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_formatter())
        logger.addHandler(handler)
        logger.propagate = False


@contextmanager
def also_in(file: Path) -> Iterator[None]:
    """The lines inside are appended to a file too: Flower hands a ServerApp's output to `flwr log` and to no file.

    Not the lines of a bank in the same process, which stay out of a run's folder.
    """
    handler = logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setFormatter(_formatter())
    handler.addFilter(lambda record: not record.name.startswith("fedfinlora.bank"))
    logger = logging.getLogger("fedfinlora")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _formatter() -> logging.Formatter:
    as_json = os.environ.get("FEDFINLORA_LOG", "") == "json"
    return JsonLines() if as_json else logging.Formatter("%(levelname)s: %(name)s: %(message)s")


@contextmanager
def about(**values: Any) -> Iterator[None]:
    """What the lines inside belong to, e.g. `about(run="…", round=3, bank="north")`; inner values win."""
    token = _about.set({**(_about.get() or {}), **values})
    try:
        yield
    finally:
        _about.reset(token)


def belongs(**values: Any) -> None:
    """To the end of the `about` around it, lines belong to these too: what is known only after something was read.
    Without one, nothing.
    """
    known = _about.get()
    if known is not None:
        _about.set({**known, **values})


class JsonLines(logging.Formatter):
    """One JSON object a line, for any message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, allow_nan=False)
