"""ROSA (Gamal, Rabusseau 2024, arXiv 2407.07802, algorithm 1): a run trains one random subspace after the other.

A phase of strategy.phase_rounds rounds is aggregated exactly, as strategy=residual. At its end what was trained is
folded into the ranks that no bank trains, and the next phase begins with B zero and a new A drawn from the round's
number. strategy=flora is this with phases of one round.

Difference: the paper takes A and B from random singular vectors of the weight and merges the trained product into it.
Here A is random and the base stays (strategy.residual_rank).
"""

from __future__ import annotations

from server_app.replies import Replies
from server_app.strategies.flora import Flora
from server_app.strategies.residual import Residual
from server_app.strategies.strategy import ServerState, Strategy


class Rosa(Strategy):
    """The banks' moments belong to factors that are gone after a phase: train.optimizer_state=reset. Remembers
    `residual_lost`.
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        ends_a_phase = (state.round + 1) % self.config.phase_rounds == 0
        rule = Flora if ends_a_phase else Residual
        return rule(self.config, self.rounds).aggregate(state, replies)
