"""Files and folders that are numbered by round, in the order of their numbers: round 10,000 comes after round 9,999,
which as text it does not.
"""

from __future__ import annotations

import re
from pathlib import Path

_LAST_NUMBER = re.compile(r"_([0-9]+)(\.[^.]+)?$")


def number_of(path: Path) -> int:
    """The number at the end of a name.

    >>> number_of(Path("state/round_10000.safetensors")), number_of(Path("adapters/round_007"))
    (10000, 7)
    """
    found = _LAST_NUMBER.search(path.name)
    if found is None:
        raise ValueError(f"{path.name} has no number")
    return int(found[1])


def by_number(folder: Path, pattern: str) -> list[Path]:
    """What `pattern` finds in a folder and ends in a number, the lowest first; [] where there is no folder."""
    return sorted(
        (path for path in folder.glob(pattern) if _LAST_NUMBER.search(path.name)),
        key=lambda path: (number_of(path), path.name),
    )
