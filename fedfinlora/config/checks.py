"""What several groups of settings are checked with."""

from __future__ import annotations

from fedfinlora.errors import ConfigError

LONGEST_NAME_BYTES = 200
"""Of run_name: file systems take 255, and parts such as -bank-12.html are added."""


def is_folder_name(name: str) -> bool:
    """Whether a text can be the name of a folder."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= LONGEST_NAME_BYTES and "/" not in name and name not in (".", "..") and name.isprintable()


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
