"""Exact aggregation (after FedEx-LoRA: Singhal, Ponkshe, Vepakomma 2025, arXiv 2410.09432, section 3) on a base that
may be quantized.

Averaging A and B apart loses sum_k p_k (B_k - mean B)(A_k - mean A). FedEx adds that residual to the base weights; an
NF4 base would round it away. Here the last strategy.residual_rank rows of A and columns of B hold it: banks receive
them with the adapter, compute with them and do not train them (`fedfinlora.train.own_columns`). All ranks have one
scale, so rsLoRA needs nothing further, and the saved adapter is an ordinary one of rank peft.rank.

The residual is kept as factors and cut back every round, so it cannot grow: to the directions that hold all but
strategy.tail_energy of its squared norm, and to residual_rank of them at most.
"""

from __future__ import annotations

import numpy as np

from server_app.replies import Replies
from server_app.strategies.product import Matrix, Product, check_count, shares_of, summed, truncated
from server_app.strategies.strategy import ServerState, Strategy

LOST = "residual_lost"
"""Name of the share of the residual's squared norm, over all layers, that the last round's cut dropped, (1,)."""


class Residual(Strategy):
    """B A + rate sum_k p_k ((B + dB_k)(A + dA_k) - B A) exactly, as far as residual_rank holds it. With n banks of r
    trained ranks (n - 1) r are enough for a round. Remembers `residual_lost`.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        check_count(replies)
        rate, shares = self.learning_rate(state), shares_of(replies)
        mean = replies.mean(slice(0, state.adapter.size))
        step, lost, held_energy = rate * mean, 0.0, 0.0
        for layer in replies.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            trained = len(a) - self.config.residual_rank
            mean_a, mean_b = layer.of(mean)
            apart = [Product((db - mean_b)[:, :trained], (da - mean_a)[:trained]) for da, db in replies.factors(layer)]
            held = Product(b[:, trained:], a[trained:])
            moved = Product(mean_b[:, :trained], mean_a[:trained])
            total = summed([held, moved, *apart], [1.0, rate - rate**2, *(rate * share for share in shares)])
            best = truncated(total, self.config.residual_rank, self.config.tail_energy)
            lost, held_energy = lost + best.lost**2, held_energy + float(best.values @ best.values)
            step_a, step_b = layer.of(step)
            put(step_a[trained:], step_b[:, trained:], held, best.product)
        return state.moved(step.__getitem__, {LOST: np.array([lost / held_energy if held_energy else 0.0])})


def put(step_a: Matrix, step_b: Matrix, old: Product, new: Product) -> None:
    """Write into (rank, d_in) and (d_out, rank) the step from a product to one of at most this rank; what is not needed
    becomes zero.
    """
    step_a[:], step_b[:] = -old.right, -old.left
    step_a[: new.inner_size] += new.right
    step_b[:, : new.inner_size] += new.left
