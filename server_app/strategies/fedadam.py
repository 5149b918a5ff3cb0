"""FedAdam (Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, algorithm 2).

Algorithm 2 has plain SGD at the banks (train.optimizer=sgd). With one bank step a round the delta is a gradient, and
the server's rule is Adam on the gradient of all banks together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfinlora.errors import UserError
from fedfinlora.run.checkpoint import Checkpoint, latest_round, load_checkpoint
from fedfinlora.run.folder import read_config
from server_app.strategies.strategy import Arrays, MeanStrategy, Vector64


class FedAdam(MeanStrategy):
    """m <- b1 m + (1-b1) delta; v <- b2 v + (1-b2) delta^2; the step is rate · m / (sqrt(v) + tau).

    As in the paper, v starts at tau^2 and nothing is corrected; with `bias_correction` v starts at 0 and m and v are
    divided by 1 - b1^t and 1 - b2^t (Kingma and Ba 2015, algorithm 1; our difference). Remembers `first_moment` and
    `second_moment`, (size,), and `rounds`, (1,).

    With `second_moments` v stays as it came from public rows (`first_arrays`): under privacy every delta^2 is mostly
    the noise's variance, so a mixed v would soon be the same number everywhere, and Adam just momentum.
    """

    def first_arrays(self, layout_id: str) -> Arrays:
        """`second_moment`, (size,), of the run in config.second_moments, Adam's bias removed; nothing where none is
        named.

        Compare Ganesh, McMahan and Thakurta 2025, arXiv 2507.01129, who scale before the noise is added; here the
        server scales afterwards. The run's last checkpoint has them. UserError for a run without them or with another
        adapter's.
        """
        if not self.config.second_moments:
            return {}
        run = Path(self.config.second_moments)
        checkpoint = public_moments(run, layout_id)
        steps, beta2 = int(checkpoint.arrays["steps"][0]), read_config(run).train.beta2
        return {"second_moment": checkpoint.arrays["second_moment"].astype(np.float64) / (1 - beta2**steps)}

    def step(self, mean: Vector64, own: Arrays, learning_rate: float) -> tuple[Vector64, dict[str, Vector64]]:
        config = self.config
        rounds = own.get("rounds", np.zeros(1)) + 1
        start = np.full_like(mean, 0.0 if config.bias_correction else config.tau**2)
        first = config.beta1 * own.get("first_moment", np.zeros_like(mean)) + (1 - config.beta1) * mean
        second = own.get("second_moment", start)
        if not config.second_moments:
            second = config.beta2 * second + (1 - config.beta2) * mean**2
        following = {"first_moment": first, "second_moment": second, "rounds": rounds}
        if config.bias_correction:
            first = first / (1 - config.beta1 ** rounds[0])
        if config.bias_correction and not config.second_moments:
            second = second / (1 - config.beta2 ** rounds[0])
        return learning_rate * first / (np.sqrt(second) + config.tau), following


def public_moments(run: Path, layout_id: str = "") -> Checkpoint:
    """The last checkpoint of a run whose AdamW moments strategy.second_moments takes. UserError where it has none or
    impossible ones, or is of another layout than the one given.
    """
    where = f"strategy.second_moments={run}"
    if latest_round(run) < 0:
        raise UserError(f"{where} has no checkpoint. Name a finished run of `centralized` on public rows.")
    checkpoint = load_checkpoint(run)
    if layout_id and checkpoint.layout_id != layout_id:
        raise UserError(
            f"{where} is of another adapter. Name a run with the same model=, peft= and peft.target_modules=."
        )
    if "second_moment" not in checkpoint.arrays or "steps" not in checkpoint.arrays:
        raise UserError(f"{where} has no moments of AdamW. Name a finished run of `centralized` on public rows.")
    moments = checkpoint.arrays["second_moment"]
    if not (np.isfinite(moments) & (moments >= 0)).all():
        raise UserError(f"{where} has second moments that are not finite or below 0. Name another run.")
    return checkpoint
