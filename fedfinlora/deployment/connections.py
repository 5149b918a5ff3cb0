"""Which banks are connected, from the SuperLink's own database: `flwr supernode ls` would start a process for every
look.

The table is Flower 1.41's (`flwr/supercore/state/schema/linkstate_models.py`); the deployment test compares the two.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from fedfinlora.deployment.coordinator_home import enrolled, node_ids

UNKNOWN = "unknown"


def connections(home: Path) -> dict[str, str]:
    """Bank -> online, offline, "not registered" (the coordinator has not been started since it was enrolled), or
    unknown.
    """
    names, nodes, states = enrolled(home), node_ids(home), _states(home / "state.db")
    if states is None:
        return dict.fromkeys(names, UNKNOWN)
    return {name: states.get(int(nodes[name]), "offline") if name in nodes else "not registered" for name in names}


def _states(database: Path) -> dict[int, str] | None:
    """Node id -> online or offline; None where the database cannot be read."""
    if not database.is_file():
        return None
    try:
        link = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            rows = link.execute("SELECT node_id, status, online_until FROM node").fetchall()
        finally:
            link.close()
    except sqlite3.Error:
        return None
    now = time.time()
    # Flower keeps the unsigned number in a signed column.
    return {
        int(node) % 2**64: "online" if status == "online" and (until or 0) > now else "offline"
        for node, status, until in rows
    }
