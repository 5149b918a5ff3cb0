"""SCAFFOLD (Karimireddy, Kale, Mohri, Reddi, Stich and Suresh 2020, algorithm 1, option II): SGD at the banks, each
step corrected by control variates, so that many steps on skewed rows do not drift apart.

The server's side is FedAvg. The variates are the banks' (`client_app.control`): c follows from the adapters that a bank
receives, so nothing but adapters crosses the network.
"""

from __future__ import annotations

from server_app.strategies.fedavg import FedAvg


class Scaffold(FedAvg):
    """The mean update times strategy.server_learning_rate, the paper's global step size. Remembers nothing."""
