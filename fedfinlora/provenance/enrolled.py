"""The coordinator's list of bank names and node ids."""

from __future__ import annotations

import os
from pathlib import Path

from fedfinlora.files import read_json

ENROLLED = "FEDFINLORA_ENROLLED"
"""In the environment of the SuperLink and so of its ServerApps: the file, a JSON object of name -> node id."""
SIGNING = "FEDFINLORA_SIGNING"
"""Likewise: the coordinator's signing key (P-384, PEM); its certificate lies next to it, with the ending .crt."""
PUBLIC = "FEDFINLORA_PUBLIC"
"""In the environment of the SuperLink: ADDRESS:PORT of its public listener."""


def enrolled_banks() -> dict[int, str] | None:
    """Node id -> the name under which its key was enrolled; None without a coordinator."""
    file = os.environ.get(ENROLLED)
    return {int(node): name for name, node in read_json(Path(file)).items()} if file else None
