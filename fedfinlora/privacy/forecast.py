"""What a private run will cost and how much noise it will bear, from declared sizes alone: no row is read, no weight
loaded.

A step of bank k draws each of its N_k rows with probability q_k, clips each gradient to C and adds noise of standard
deviation sigma_k C to each of the adapter's d numbers (`fedfinlora.privacy.mechanism`). The server's mean of
the banks, with weights w_k, then carries noise of standard deviation

    s C with s = sqrt(sum over k of (w_k sigma_k / (q_k N_k))^2) in each number, so of norm s C sqrt(d)

next to a mean gradient of norm C at most. Over T steps signals add up and noises add as squares: in one direction the
signal-to-noise ratio is at most sqrt(T) / s, which is sqrt(T) q N / sigma for one bank (Sander, Stock and Sablayrolles
2022, TAN), and over all d numbers sqrt(T) / (s sqrt(d)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon, noise_multiplier_for, rdp_epsilon
from fedfinlora.privacy.shares import capped
from fedfinlora.train.loop import stretch_of_round, total_steps

FEWEST_STEPS = 20
"""Adam's moments need some steps to mean anything: alternatives with fewer are not advised."""
XS_RANK, RANK_RATIO = 16, 8
"""LoRA-XS has so many fewer parameters that it is compared at 8 times the rank, and at 16 at most:
conf/peft/lora_xs.yaml.
"""
Shapes = Mapping[str, tuple[int, int]]
"""Name of a linear layer -> (inputs, outputs)."""


@dataclass(frozen=True)
class BankForecast:
    """One bank's part of a run."""

    bank: str
    rows: float
    """N, as declared; customers with privacy.unit=customer."""
    sampling_rate: float
    """q."""
    rows_per_step: float
    """q N, the expected rows of a step."""
    delta: float
    noise_multiplier: float
    """sigma."""
    epsilon: float
    """Of the whole run, by PRV."""
    epsilon_rdp: float
    """The same by RDP, a looser bound by another way."""


@dataclass(frozen=True)
class Forecast:
    """A run before it starts."""

    parameters: int
    """d: numbers that are trained and sent."""
    steps: int
    """T: optimiser steps of each bank in the whole run."""
    rows_processed: float
    """Expected rows of all banks and steps together."""
    noise_to_signal: float
    """Norm of the noise in a step's mean over the banks, over C, the longest that the mean itself can be."""
    signal_to_noise: float
    """At most, of the whole run in one direction: sqrt(T) / s."""
    banks: tuple[BankForecast, ...]

    @property
    def noise_of_run(self) -> float:
        """Norm of the run's noise over T C, the farthest that clipped gradients of T steps can go."""
        return math.sqrt(self.parameters) / self.signal_to_noise if self.signal_to_noise else math.inf


@dataclass(frozen=True)
class Alternative:
    """The same run with something changed, at the same epsilon and rows processed."""

    words: str
    """What to type."""
    forecast: Forecast


def layer_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """The linear layers of a base model, from its config.json alone (weights on torch's meta device). UserError if
    unreachable.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedfinlora.model.embedded import embedded_folder, is_embedded

    folder = str(embedded_folder(model.path)) if is_embedded(model.path) else model.path
    try:
        config = AutoConfig.from_pretrained(folder, revision=model.revision)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The configuration of model.path={model.path} cannot be read: {reason}. Name a folder with its "
            "config.json, or model=smollm2-135m."
        ) from error
    return {
        name: (layer.in_features, layer.out_features)
        for name, layer in empty.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def adapter_parameters(peft: PeftConfig, shapes: Shapes) -> int:
    """Numbers that an adapter of these settings trains and sends. ConfigError if its target modules are none of the
    model's.

    >>> shapes = {"layers.0.q_proj": (64, 64), "layers.0.v_proj": (64, 32)}
    >>> [adapter_parameters(PeftConfig(method, 8, target_modules=("q_proj", "v_proj")),
    ... shapes) for method in ("lora", "dora", "lora_xs")]
    [1792, 1888, 128]
    """
    chosen = [
        shape
        for name, shape in shapes.items()
        if any(name == target or name.endswith(f".{target}") for target in peft.target_modules)
    ]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in shapes}))
        raise ConfigError(
            f"peft.target_modules={list(peft.target_modules)} are no layers of this model. It has: {known}."
        )
    return METHODS[peft.method].parameters(peft, chosen)


def forecast(config: Config, sizes: Mapping[str, float], parameters: int) -> Forecast:
    """The run of `config` by banks of these declared sizes. ConfigError where a step would take more rows than a bank
    declares.
    """
    banks, steps = [], 0
    for bank, rows in sizes.items():
        steps = total_steps(round(rows), config.num_server_rounds, config.train)
        stretch = stretch_of_round(1, config.num_server_rounds, steps, round(rows), config.train)
        rate = stretch.rows_per_step / round(rows)
        if rate > 1:
            raise ConfigError(
                f"{bank} would draw {stretch.rows_per_step:.0f} rows in each step and declares {rows:.0f}. Lower "
                "train.batch_rows or train.epochs."
            )
        banks.append(_bank(config, bank, rows, rate, steps))
    weights = _weights(config, sizes)
    squares = [
        (weight * bank.noise_multiplier / bank.rows_per_step) ** 2 for weight, bank in zip(weights, banks, strict=True)
    ]
    noise_std = math.sqrt(sum(squares))
    return Forecast(
        parameters=parameters,
        steps=steps,
        rows_processed=steps * sum(bank.rows_per_step for bank in banks),
        noise_to_signal=noise_std * math.sqrt(parameters),
        signal_to_noise=math.sqrt(steps) / noise_std,
        banks=tuple(banks),
    )


def _bank(config: Config, bank: str, rows: float, rate: float, steps: int) -> BankForecast:
    """Sigma for the wanted epsilon at the bank's own delta, which a larger one in the settings does not raise."""
    privacy = config.privacy
    delta = min(privacy.delta or 1.0, default_delta(round(rows)))
    sigma = privacy.noise_multiplier or noise_multiplier_for(privacy.epsilon, delta, rate, steps)
    spent = [Steps(rate, sigma, steps)]
    return BankForecast(bank, rows, rate, rate * rows, delta, sigma, epsilon(spent, delta), rdp_epsilon(spent, delta))


def _weights(config: Config, sizes: Mapping[str, float]) -> list[float]:
    """What each bank weighs in the server's mean where all of them answer, strategy.max_share included; they add up to
    1.
    """
    given = list(sizes.values()) if config.strategy.weighting == "declared" else [1.0] * len(sizes)
    weights = capped(given, config.strategy.max_share)
    return [weight / sum(weights) for weight in weights]


def alternatives(config: Config, sizes: Mapping[str, float], shapes: Shapes) -> list[Alternative]:
    """The run with fewer and more steps, other ranks and other adapters; impossible ones are not offered."""
    found = []
    for words, changed in [*_other_steps(config), *_other_adapters(config)]:
        try:
            found.append(Alternative(words, forecast(changed, sizes, adapter_parameters(changed.peft, shapes))))
        except UserError:  # more rows than a bank has, a rank that the layers do not have
            continue
    return found


def _other_steps(config: Config) -> list[tuple[str, Config]]:
    """A quarter, half and twice the rounds, each step with as many rows more or fewer."""
    found = []
    for factor in (0.25, 0.5, 2.0):
        rounds, train = round(config.num_server_rounds * factor), config.train
        batch = round(train.batch_rows / factor)
        if rounds < 1 or (train.batch_rows and not batch):
            continue
        words = f"num_server_rounds={rounds}" + (f" train.batch_rows={batch}" if train.batch_rows else "")
        limit = max(rounds, round(train.max_steps * factor)) if train.max_steps else 0
        found.append(
            (words, replace(config, num_server_rounds=rounds, train=replace(train, batch_rows=batch, max_steps=limit)))
        )
    return found


def _other_adapters(config: Config) -> list[tuple[str, Config]]:
    """Half and twice the rank, and the other methods that privacy=example can clip, each at a rank of its kind."""
    peft = config.peft
    is_xs = peft.method == "lora_xs"
    changes: list[dict[str, Any]] = [{"rank": rank} for rank in (peft.rank // 2, 2 * peft.rank) if rank]
    rank = XS_RANK // RANK_RATIO if is_xs else peft.rank
    if is_xs or peft.freeze_a:
        changes.append({"method": "lora", "rank": rank, "freeze_a": False})
    if is_xs or not peft.freeze_a:
        changes.append({"method": "lora", "rank": rank, "freeze_a": True})
    if not is_xs:
        changes.append({"method": "lora_xs", "rank": min(XS_RANK, RANK_RATIO * peft.rank), "freeze_a": False})
    return [(_words(change), replace(config, peft=replace(peft, **change))) for change in changes]


def _words(change: Mapping[str, Any]) -> str:
    """A change of the adapter as it is typed."""
    method = [f"peft={change['method']}"] if "method" in change else []
    frozen = ["peft.freeze_a=true"] if change.get("freeze_a") else []
    return " ".join([*method, f"peft.rank={change['rank']}", *frozen])


def advice(now: Forecast, others: Sequence[Alternative]) -> str:
    """One sentence: what to change first. By the run's noise next to the farthest that clipped gradients can go."""
    share = now.noise_of_run
    better = [other for other in others if other.forecast.steps >= min(FEWEST_STEPS, now.steps)]
    best = min(better, key=lambda other: other.forecast.noise_of_run, default=None)
    is_now = f"The run's noise is {share:.2g} of the farthest that {now.steps} clipped steps can go"
    if share <= 0.1:
        return f"{is_now}: little. Leave it, or ask for a smaller epsilon."
    if best is None or best.forecast.noise_of_run > 0.9 * share:
        return (
            f"{is_now}, and at this epsilon and these rows nothing in the table lowers it much: let each step take "
            "more rows."
        )
    return (
        f"{is_now}; {best.words} makes it {best.forecast.noise_of_run:.2g} at the same epsilon and rows, the most "
        "in this table."
    )
