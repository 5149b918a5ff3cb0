"""The optimisers of local training by name (train.optimizer), and Adam's moments as two flat float32 vectors.

adamw is Loshchilov and Hutter 2019, as one fused kernel on GPUs; adamw_8bit keeps its moments in blocks of 8-bit
numbers (Dettmers et al. 2022), and paged_adamw_8bit lets the driver move them to the host's memory when the GPU's is
full (Dettmers et al. 2023). sgd is FedAdam's bank side (Reddi et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Vector

if TYPE_CHECKING:
    import torch
    from torch import nn

IN_8_BITS = ("adamw_8bit", "paged_adamw_8bit")


@dataclass(frozen=True)
class OptimizerState:
    """Adam's memory: two vectors of shape (layout.size,) float32 and how many steps they have seen."""

    first_moment: Vector
    second_moment: Vector
    steps: int


@dataclass(frozen=True)
class RestartedState(OptimizerState):
    """Second moments of `steps` steps with a first moment that begins now: FedAdamW at the bank (Liu, Shang, Zhu, Liu,
    Liu and Liu 2025, arXiv 2510.27486, algorithm 2).
    """

    pull: Vector
    """(layout.size,) float32: the rate times this is taken off in each step (the paper's alpha Delta_G)."""


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that train.optimizer names, fresh. UserError where this machine has none."""
    import torch

    groups = rate_groups(parameters)
    if config.optimizer == "sgd":
        rate = config.sgd_learning_rate
        sgd = torch.optim.SGD(groups, lr=rate, weight_decay=config.weight_decay)
        set_rate(sgd, rate)
        return sgd
    betas = (config.beta1, config.beta2)
    on_gpu = all(parameter.is_cuda for parameter in parameters)
    if config.optimizer not in IN_8_BITS:
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=on_gpu or None
        )
    paged = config.optimizer == "paged_adamw_8bit"
    if paged and not on_gpu:
        raise UserError("train.optimizer=paged_adamw_8bit needs a CUDA GPU. Set train.optimizer=adamw_8bit or adamw.")
    from bitsandbytes.optim.adamw import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(
        groups, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, is_paged=paged
    )
    return made


def rate_groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """One group of parameters for each rate: LoRA+ marks those that learn faster with `rate_factor`."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "rate_factor", 1.0), []).append(parameter)
    return [{"params": members, "rate_factor": factor} for factor, members in sorted(groups.items())]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def is_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has moments and follows train.learning_rate's schedule."""
    import torch

    return not isinstance(optimizer, torch.optim.SGD)


def load_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], state: OptimizerState) -> None:
    """Let Adam continue from `state`. UserError where it is of another size than the parameters."""
    import torch

    size = sum(parameter.numel() for parameter in parameters)
    if state.first_moment.shape != (size,) or state.second_moment.shape != (size,):
        raise UserError(
            f"The optimiser state has {state.first_moment.size} numbers, the adapter {size}: it is another adapter's."
        )
    offset = 0
    for place, parameter in enumerate(parameters):
        end = offset + parameter.numel()
        moments = [
            torch.from_numpy(moment[offset:end].copy()).reshape(parameter.shape).to(parameter.device)
            for moment in (state.first_moment, state.second_moment)
        ]
        if isinstance(optimizer, torch.optim.AdamW):
            fused = bool(optimizer.param_groups[0]["fused"])
            step = torch.tensor(float(state.steps), device=parameter.device if fused else "cpu")
            optimizer.state[parameter] = {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
        else:
            _load_8bit(optimizer, place, parameter, moments, state.steps)
        offset = end
    if isinstance(state, RestartedState):
        _restart_first_moment(optimizer, parameters, state)


def _restart_first_moment(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], state: RestartedState
) -> None:
    """torch's AdamW corrects both moments by 1 - beta^t. Here the first moment has seen k steps and the second t =
    state.steps + k: a step's rate is multiplied by (1 - beta1^t) / (1 - beta1^k), 1 without earlier steps, and the
    decay divided by it.
    """
    import torch

    pulls = torch.from_numpy(state.pull.copy()).split([parameter.numel() for parameter in parameters])
    pull_of = {
        parameter: pull.reshape(parameter.shape).to(parameter.device)
        for parameter, pull in zip(parameters, pulls, strict=True)
    }
    taken, usual = 0, list[tuple[float, float]]()

    def before(*_: Any) -> None:
        nonlocal taken
        taken += 1
        usual[:] = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            beta1 = group["betas"][0]
            factor = (1 - beta1 ** (state.steps + taken)) / (1 - beta1**taken)
            group["lr"], group["weight_decay"] = group["lr"] * factor, group["weight_decay"] / factor

    def after(*_: Any) -> None:
        for group, (rate, decay) in zip(optimizer.param_groups, usual, strict=True):
            group["lr"], group["weight_decay"] = rate, decay
            with torch.no_grad():
                for parameter in group["params"]:
                    parameter.add_(pull_of[parameter], alpha=-rate)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def read_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> OptimizerState:
    """Adam's moments as they are, zeros where there are none. Loaded again they are the same, in 8 bits as well."""
    import numpy as np
    import torch

    if not is_adam(optimizer) or not optimizer.state:
        zeros = np.zeros(sum(parameter.numel() for parameter in parameters), np.float32)
        return OptimizerState(zeros, zeros.copy(), 0)

    def flat(number: int) -> Vector:
        # A parameter that had no gradient has no moments.
        states = ((parameter, optimizer.state.get(parameter)) for parameter in parameters)
        parts = [_moment(own, number) if own else torch.zeros_like(parameter) for parameter, own in states]
        return torch.cat([part.detach().reshape(-1).float().cpu() for part in parts]).numpy()

    return OptimizerState(flat(1), flat(2), max(int(own["step"]) for own in optimizer.state.values() if own))


def _moment(state: dict[str, Any], number: int) -> torch.Tensor:
    """The first or second moment of one tensor, dequantized."""
    import torch

    if "exp_avg" in state:
        kept: torch.Tensor = state["exp_avg" if number == 1 else "exp_avg_sq"]
        return kept
    kept = state[f"state{number}"]
    if kept.dtype != torch.uint8:  # too few numbers for 8 bits
        return kept
    from bitsandbytes.functional import dequantize_blockwise

    found: torch.Tensor = dequantize_blockwise(
        kept, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=BLOCK_NUMBERS
    )
    return found


BLOCK_NUMBERS = 256
"""Numbers of a moment that bitsandbytes scales together."""


def _load_8bit(
    optimizer: Any, place: int, parameter: nn.Parameter, moments: Sequence[torch.Tensor], steps: int
) -> None:
    """One tensor's moments, quantized again. The largest number of a block is kept exactly, so nothing moves."""
    import torch
    from bitsandbytes.functional import quantize_blockwise

    optimizer.init_state(optimizer.param_groups[0], parameter, 0, place)
    optimizer.initialized = True
    state = optimizer.state[parameter]
    state["step"] = steps
    for number, moment in enumerate(moments, 1):
        kept = state[f"state{number}"]
        if kept.dtype != torch.uint8:
            kept.copy_(moment)
            continue
        codes, scales = quantize_blockwise(moment, code=state[f"qmap{number}"], blocksize=BLOCK_NUMBERS)
        kept.copy_(codes)
        state[f"absmax{number}"].copy_(scales.absmax)
