"""A request, a reply and their parts, and their trip through Flower's serialization."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.model.adapter import Layout
from fedfinlora.privacy.head import Head
from fedfinlora.wire.messages import Figures, TrainRequest, pack_reply

LAYOUT = Layout(("a", "b"), ((2, 3), (4,)))


DELTA = np.linspace(-1, 1, 10, dtype=np.float32)


FIGURES = Figures(
    rows=160, steps=10, tokens=9000, answer_tokens=320, train_loss=1.25, holdout_rows=16, holdout_loss=1.5, train_s=3.5,
    load_s=0.0, bank_rows=800,
    skipped_rows=3, epsilon_planned=8.0, epsilon_spent=2.5, delta=1e-4,
)  # fmt: skip


HEAD = Head(7, "a" * 64)


REQUEST = TrainRequest(
    Config(seed=3, train=TrainConfig(learning_rate=2e-4)), "run-1a2b", 2, LAYOUT.id, "0" * 64, DELTA,
        {"bank-1": HEAD, "bank-2": Head(0, "0" * 64)},
)  # fmt: skip


def reply(
    figures: Figures = FIGURES, delta: Any = DELTA, layout_id: str = LAYOUT.id, ledger: Head | None = None
) -> RecordDict:
    return pack_reply("bank-1", layout_id, delta, figures, ledger=ledger)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through Flower's serialization, as between two machines."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    return recorddict_from_proto(Proto.FromString(recorddict_to_proto(content).SerializeToString()))
