"""Ranks that an earlier stage has trained (`peft.frozen_rank`): what they go with, and which adapter may be in them.

A later stage's adapter holds the earlier one in its last ranks, as strategy=residual holds what averaging lost. Banks
compute with these ranks and do not train them (`fedfinlora.train.own_columns`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedfinlora.config.checks import require

if TYPE_CHECKING:
    from fedfinlora.config.peft import PeftConfig
    from fedfinlora.config.schema import Config

MIXING_RULES = ("rolora", "residual", "flora", "flexlora", "hetlora", "fedrot", "rosa")
"""Rules that factor, rotate or cut the whole product B A, or send a part of it, and so cannot leave ranks as they are.
"""


def check_frozen_ranks(config: Config) -> None:
    """ConfigError for what would move ranks that are not trained.

    Each line: whether the setting is wrong, the setting, why.
    """
    strategy, train = config.strategy, config.train
    for wrong, key, why in (
        (not config.start_adapter, "an empty start_adapter",
        "it is where these ranks come from. Set start_adapter=RUN/adapters/final of the stage before"),
        (strategy.name in MIXING_RULES, f"strategy={strategy.name}",
        "it would change ranks that are not trained. Choose a rule such as fedavg or fedadam"),
        (bool(strategy.ranks), "strategy.ranks", "each bank trains the stage's own ranks. Leave it empty"),
        (train.weight_decay > 0, f"train.weight_decay={train.weight_decay:g}",
        "it would shrink ranks that are not trained. Set it to 0"),
        (strategy.weight_decay > 0, f"strategy.weight_decay={strategy.weight_decay:g}",
        "it would shrink ranks that are not trained. Set it to 0"),
    ):  # fmt: skip
        require(not wrong, f"peft.frozen_rank={config.peft.frozen_rank} does not go with {key}: {why}.")


def earlier_fault(peft: PeftConfig, earlier: PeftConfig) -> str:
    """Why an adapter of the kind `earlier` cannot be the frozen part of one like `peft`, and what to do; "" where it
    can. Its scale may be another, and it may have fewer layers.
    """
    missing = sorted(set(earlier.target_modules) - set(peft.target_modules))
    if earlier.method not in ("lora", "rslora"):
        return f"is of peft={earlier.method}, which is no B A to put under another one. Take a LoRA."
    if earlier.rank != peft.frozen_rank:
        return (
            f"has rank {earlier.rank}, not {peft.frozen_rank}. Set peft.frozen_rank={earlier.rank}, and peft.rank to "
            "that and the stage's own."
        )
    if missing:
        return (
            f"has layers {', '.join(missing)} too. Add them to peft.target_modules, and name those to train in "
            "peft.trained_modules."
        )
    return ""
