"""strategy.sync=drift at the bank: rounds that end without an average (after Kamp, Adilova, Sicking, Hüger, Schlicht,
Wirtz and Wrobel 2018, "Efficient decentralized deep learning by dynamic averaging", arXiv 1807.03210, algorithm 1).

In such a round the bank trains its own adapter further, keeps it on its disk (`client_app.kept_state`), and sends one
number: its distance from the last global adapter. The update of the round that ends with an average is measured from
that global adapter too, so that it holds all steps since then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfinlora.model.adapter import Layout, Vector
from fedfinlora.model.parts import DistanceOnly
from fedfinlora.wire.messages import BankError, TrainRequest


@dataclass(frozen=True)
class LocalAdapter:
    """Where a bank is between two averages. Both (size,) float32."""

    adapter: Vector
    """Its own."""
    reference: Vector
    """The last global one."""

    def sent(self, layout: Layout, is_silent: bool) -> Vector:
        """What leaves the bank: the update since the last average, (size,) float32, or in a silent round its norm,
        (1,).
        """
        update = self.adapter - self.reference
        return DistanceOnly((), layout.size).of(update) if is_silent else update


def is_resumed(request: TrainRequest) -> bool:
    """Whether the bank trains its own adapter further: then no adapter is sent."""
    return request.config.strategy.sync == "drift" and not request.adapter.size


def begun_from(request: TrainRequest, kept: LocalAdapter | None, bank: str, size: int) -> LocalAdapter:
    """Where the bank begins the round: at its own adapter from the silent round before, if there was no average since;
    else at the one that it received. BankError where it has neither, or its own is not of the round's `size`: the
    server then sends the global one the next time.
    """
    received = request.adapter
    if received.size and (kept is None or not np.array_equal(received, kept.reference)):
        return LocalAdapter(received, received)
    if kept is None:
        raise BankError(
            "local-adapter",
            f"{bank} has no adapter of its own after round {request.round - 1}: it starts again from the global one",
        )
    if {kept.adapter.shape, kept.reference.shape} != {(size,)}:
        raise BankError(
            "local-layout",
            f"{bank} has an adapter of {kept.adapter.size:,} numbers of its own, and the round's has {size:,}: it "
            "starts again from the global one",
        )
    return kept
