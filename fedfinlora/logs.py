"""Our log lines on standard error, inside Flower's processes, which configure their own logger only."""

from __future__ import annotations

import logging


def show_logs() -> None:
    """Show the library's lines from INFO on, once a process."""
    logger = logging.getLogger("fedfinlora")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
