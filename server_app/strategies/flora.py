"""FLoRA (Wang, Shen, He, Sun, Wang, Lyu, Li 2024, section 3): the banks' factors are stacked, which is their exact
mean at any ranks, and every round trains a fresh A and B.

Difference: the paper merges the stack into each bank's base weights. Here it is kept in the adapter's frozen columns
(strategy.residual_rank), together with those of earlier rounds, cut to the best approximation of that rank, so that it
works on a quantized base and does not grow with the rounds.
"""

from __future__ import annotations

import numpy as np

from fedfinlora.seeds import generator
from server_app.replies import Replies
from server_app.strategies.product import Product, check_count, shares_of, summed, truncated
from server_app.strategies.residual import LOST, put
from server_app.strategies.strategy import ServerState, Strategy


class Flora(Strategy):
    """Cold restart: A uniform within 1 / sqrt(d_in) as PEFT draws it, from the round's number, and B zero. The banks'
    moments belong to factors that are gone: train.optimizer_state=reset. Remembers `residual_lost`.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        check_count(replies)
        rate, shares = self.learning_rate(state), shares_of(replies)
        step, lost, energy = rate * replies.mean(slice(0, state.adapter.size)), 0.0, 0.0
        random = generator(0, "flora", state.round + 1)
        for layer in replies.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            trained = len(a) - self.config.residual_rank
            held, begun = Product(b[:, trained:], a[trained:]), Product(b[:, :trained], a[:trained])
            stacked = [Product((b + db)[:, :trained], (a + da)[:trained]) for da, db in replies.factors(layer)]
            total = summed([held, begun, *stacked], [1.0, 1 - rate, *(rate * share for share in shares)])
            best = truncated(total, self.config.residual_rank, self.config.tail_energy)
            lost, energy = lost + best.lost**2, energy + float(best.values @ best.values)
            step_a, step_b = layer.of(step)
            put(step_a[trained:], step_b[:, trained:], held, best.product)
            bound = 1 / np.sqrt(a.shape[1])
            step_a[:trained] = random.uniform(-bound, bound, begun.right.shape) - begun.right
            step_b[:, :trained] = -begun.left
        return state.moved(step.__getitem__, {LOST: np.array([lost / energy if energy else 0.0])})
