"""FedAdagrad (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2)."""

from __future__ import annotations

from server_app.strategies.adaptive import AdaptiveMean
from server_app.strategies.strategy import Vector64


class FedAdagrad(AdaptiveMean):
    """v <- v + delta^2: second moments never shrink, so the rate of each parameter falls by itself."""

    def second(self, before: Vector64, square: Vector64) -> Vector64:
        return before + square
