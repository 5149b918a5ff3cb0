"""A federation inside this process: the server's round loop and the banks' ClientApp, without Flower's processes.

It gives the bytes that `simulate` gives, and loads the base model once; for `explain`, which needs several.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.files import read_json
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.folder import config_fingerprint
from fedfinlora.run.opening import configuration_of
from fedfinlora.run.records import RESULT_FILE, read_result

SERVER_NODE, RUN_ID = 1, 1
FIRST_NODE = 100


def train_here(config: Config) -> Path:
    """The folder of a federated run with this configuration: a finished one is taken, a begun one is resumed."""
    from server_app.federated import run_federated

    folder = Path(config.output_dir) / config.run_name
    if is_finished(folder, config):
        return folder
    resumes = is_of(folder, config) and latest_round(folder) >= 0
    config = configuration_of(folder, None) if resumes else replace(config, overwrite=True)
    return run_federated(InProcessGrid(config.banks, folder / "state" / "banks"), config)


def is_of(folder: Path, config: Config) -> bool:
    """Whether a run's folder was begun with this configuration."""
    file = folder / "state" / "run.json"
    return file.is_file() and read_json(file).get("config_sha256") == config_fingerprint(config)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds a completed run of this configuration."""
    return is_of(folder, config) and (folder / RESULT_FILE).is_file() and read_result(folder).status == "completed"


class InProcessGrid:
    """The part of `flwr.serverapp.Grid` that the round loop uses. Banks answer when their replies are asked for."""

    def __init__(self, banks: int, state: Path) -> None:
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = SERVER_NODE, RUN_ID, 1
        self._contexts = {
            FIRST_NODE + index: Context(
                RUN_ID,
                FIRST_NODE + index,
                {"partition-id": index, "num-partitions": banks, "state-dir": str(state)},
                RecordDict(),
                {},
            )
            for index in range(banks)
        }
        self._waiting: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Keep them until their replies are asked for."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._numbers)}"
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """The reply of the next bank that was asked, one at a time."""
        from flwr.supercore.task_identity import TaskIdentity

        from client_app.app import app

        due = next((self._waiting.pop(each) for each in message_ids if each in self._waiting), None)
        if due is None:
            return []
        node = due.metadata.dst_node_id
        TaskIdentity.node_id = node
        try:
            return [app(due, self._contexts[node])]
        finally:
            TaskIdentity.node_id = SERVER_NODE
