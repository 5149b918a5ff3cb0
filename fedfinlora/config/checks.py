"""What several groups of settings are checked with."""

from __future__ import annotations

from fedfinlora.errors import ConfigError

LONGEST_NAME_BYTES = 200
"""Of run_name: file systems take 255, and parts such as -bank-12.html are added."""


DEVICES = frozenset(("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))))
"""Names that Windows keeps for devices, with any ending: a run in /mnt/c could not be copied or removed there."""


def is_folder_name(name: str) -> bool:
    """Whether a text can be the name of a folder, here and on a disk that Windows reads."""
    return not folder_name_fault(name)


def folder_name_fault(name: str) -> str:
    """Why a text cannot be the name of a folder, here or on a disk that Windows reads; "" where it can.

    >>> folder_name_fault("night run"), folder_name_fault("NUL.txt"), folder_name_fault("..")
    ('', 'Windows keeps this name for a device', 'it names another folder')
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it holds half a character"
    if not size:
        return "it is empty"
    if size > LONGEST_NAME_BYTES:
        return f"it has {size} bytes, and {LONGEST_NAME_BYTES} are possible"
    if name in (".", ".."):
        return "it names another folder"
    if "/" in name:
        return "it holds a slash: output_dir says where the run's folder is made"
    if not name.isprintable():
        return "it holds a control character"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a blank, or ends with a point"
    if name.split(".")[0].strip().lower() in DEVICES:
        return "Windows keeps this name for a device"
    return ""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
