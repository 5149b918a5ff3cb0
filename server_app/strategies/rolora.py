"""RoLoRA (Chen, Guo, Ju, Dalal, Zhu and Khisti 2025, arXiv 2502.01755, algorithm 1): B and A are trained in turn.

In each round the other factor is the same at all banks, so the mean is exact: sum p_k B_k A = (sum p_k B_k) A. The
server's side is FedAvg; which factor a round trains and sends is `fedfinlora.model.parts`.
"""

from __future__ import annotations

from server_app.strategies.fedavg import FedAvg


class RoLora(FedAvg):
    """The mean update, which is zero for the idle factor. Remembers nothing."""
