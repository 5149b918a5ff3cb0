"""FlexLoRA (Bai, Chen, Qian, Yao, Li 2024, section 3): the banks' products are averaged, and the mean is brought back
to the adapter's rank by an SVD.

In compact form: the banks' factors next to each other, two QRs and one small SVD a layer, never a (d_out, d_in) matrix.
What the rank cannot hold is lost.
"""

from __future__ import annotations

import numpy as np

from server_app.replies import Replies
from server_app.strategies.product import check_count, mean_product, truncated
from server_app.strategies.strategy import ServerState, Strategy


class FlexLora(Strategy):
    """B = U S, A = V^T as in the paper. Where the mean has fewer directions than the rank, the last rows of A stay,
    with zero columns of B, so that they can still be trained. Numbers in no layer are averaged.

    A round's factors are new ones: banks should begin with fresh moments (train.optimizer_state=reset).
    """

    def aggregate(self, state: ServerState, replies: Replies) -> ServerState:
        check_count(replies)
        rate = self.learning_rate(state)
        step = rate * replies.mean(slice(0, state.adapter.size))
        for layer in replies.layers:
            a, b = (factor.astype(np.float64) for factor in layer.of(state.adapter))
            best = truncated(mean_product(state.adapter, replies, layer, rate), len(a)).product
            step_a, step_b = layer.of(step)
            step_a[:], step_b[:] = 0.0, -b
            step_a[: best.inner_size] = best.right - a[: best.inner_size]
            step_b[:, : best.inner_size] += best.left
        return state.moved(step.__getitem__)
