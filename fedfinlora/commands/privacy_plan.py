"""`privacy plan`: what a private run will cost, before a row is read (`fedfinlora.privacy.forecast`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, plural
from fedfinlora.files import write_json
from fedfinlora.privacy.forecast import (
    Alternative,
    BankForecast,
    Forecast,
    adapter_parameters,
    advice,
    alternatives,
    forecast,
    layer_shapes,
)

ANSWER_TOKENS = 3
"""Of a synthetic row: a label and the end of the answer."""
TIMED_ROWS = 32
"""Rows of the timed pass, or a step's if it has fewer."""


@dataclass(frozen=True)
class Timing:
    """One private step of random tokens, measured on this machine."""

    rows: int
    row_tokens: int
    seconds: float
    device: str


def plan(
    overrides: Sequence[str], rows: int | None, row_tokens: int, *, timing: bool = True, json_file: Path | None = None
) -> int:
    """Print the forecast; 0. ConfigError for settings that cannot be forecast."""
    # No row is read, so no folder of rows has to be named.
    config = compose(
        overrides if any(word.startswith("dataset.root=") for word in overrides) else [*overrides, "dataset.root=."]
    )
    if config.privacy.mode != "example":
        raise ConfigError(
            f"privacy plan forecasts the noise that banks add to their own steps, not privacy={config.privacy.mode}. "
            "Add privacy=example."
        )
    if row_tokens <= ANSWER_TOKENS:
        raise ConfigError(f"--tokens must be above {ANSWER_TOKENS}, not {row_tokens}.")
    sizes = declared_sizes(config, rows)
    shapes = layer_shapes(config.model)
    found = forecast(config, sizes, adapter_parameters(config.peft, shapes))
    others = alternatives(config, sizes, shapes)
    measured = _timed(config, found, row_tokens) if timing else None
    tokens = found.rows_processed * row_tokens * config.privacy.augmentations
    print("\n".join(_page(config, found, others, tokens, measured)))
    if json_file:
        write_json(json_file, _figures(found, others, tokens, measured))
    return 0


def declared_sizes(config: Config, rows: int | None) -> dict[str, float]:
    """Bank -> declared rows, from strategy.sizes or --rows."""
    declared = config.strategy.declared_sizes()
    if declared and rows is not None:
        raise ConfigError("strategy.sizes and --rows both give the banks' sizes: leave one out.")
    if declared:
        return declared
    if rows is None:
        raise ConfigError(
            "How many rows do the banks have? Add --rows N, or strategy.weighting=declared "
            "strategy.sizes=[BANK:ROWS,…]."
        )
    if rows < 1:
        raise ConfigError(f"--rows must be above 0, not {rows}.")
    return {f"bank-{number}": float(rows) for number in range(config.banks)}


def _page(
    config: Config, found: Forecast, others: Sequence[Alternative], tokens: float, measured: Timing | None
) -> list[str]:
    peft = config.peft
    lines = [
        f"{config.model.name}, peft={peft.method}{' with A frozen' if peft.freeze_a else ''}, rank {peft.rank} on "
        f"{', '.join(peft.target_modules)}: {found.parameters:,} parameters are trained and sent.",
        f"{plural(len(found.banks), 'bank')}, {plural(found.steps, 'step')} each; a unit is one {config.privacy.unit}.",
        "",
        *_table(
            ["bank", "rows", "rows a step", "q", "sigma", "delta", "epsilon", "by RDP"],
            [_bank_line(bank) for bank in found.banks],
        ),
        "",
        f"Noise in a step's mean over the banks: {found.noise_to_signal:.2f} of C, the longest that the mean itself "
        f"can be (strategy.weighting={config.strategy.weighting}).",
        "Signal to noise of the run in one direction, sqrt(T) q N / sigma for one bank: "
        f"{found.signal_to_noise:.0f} at most.",
        f"{found.rows_processed:,.0f} rows and {tokens:,.0f} tokens are processed.",
    ]
    if measured:
        lines.append(
            f"About {_minutes(found, measured):.0f} minutes of private steps where this machine ({measured.device}) "
            f"trains all banks one after the other, {_largest_minutes(found, measured):.0f} for the bank with most; "
            f"{measured.rows} random rows of {measured.row_tokens} tokens took {measured.seconds:.1f} s."
        )
    lines += [
        "",
        "At the same epsilon and the same rows processed:",
        "",
        *_alternatives(found, others),
        "",
        advice(found, others),
    ]
    return lines


def _bank_line(bank: BankForecast) -> list[str]:
    return [
        bank.bank, f"{bank.rows:,.0f}", f"{bank.rows_per_step:.1f}", f"{bank.sampling_rate:.4f}",
        f"{bank.noise_multiplier:.3f}",
        f"{bank.delta:.1e}", f"{bank.epsilon:.2f}", f"{bank.epsilon_rdp:.2f}",
    ]  # fmt: skip


def _alternatives(found: Forecast, others: Sequence[Alternative]) -> list[str]:
    heads = [
        "setting",
        "parameters",
        "steps",
        "rows a step",
        "sigma",
        "noise in a step",
        "noise of the run",
        "signal to noise",
    ]
    return _table(
        heads, [_line(name, one) for name, one in (("as asked", found), *((one.words, one.forecast) for one in others))]
    )


def _line(name: str, one: Forecast) -> list[str]:
    sigmas = sorted(bank.noise_multiplier for bank in one.banks)
    sigma = f"{sigmas[0]:.2f}" if sigmas[-1] - sigmas[0] < 0.005 else f"{sigmas[0]:.2f} to {sigmas[-1]:.2f}"
    rows = sum(bank.rows_per_step for bank in one.banks)
    return [
        name, f"{one.parameters:,}", f"{one.steps}", f"{rows:.0f}", sigma, f"{one.noise_to_signal:.2f} C",
        f"{one.noise_of_run:.2f} T C",
        f"{one.signal_to_noise:.0f}",
    ]  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(line[place]) for line in (heads, *rows)) for place in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (heads, *rows)
    ]


def _minutes(found: Forecast, measured: Timing) -> float:
    """Of private steps, all banks one after the other."""
    return found.rows_processed * measured.seconds / measured.rows / 60


def _largest_minutes(found: Forecast, measured: Timing) -> float:
    """The same of the bank whose steps take most rows."""
    return max(bank.rows_per_step for bank in found.banks) * found.steps * measured.seconds / measured.rows / 60


def _timed(config: Config, found: Forecast, row_tokens: int) -> Timing:
    """One private step of random tokens, noise included, after one to warm up."""
    import torch

    from fedfinlora.model.adapter import write_adapter
    from fedfinlora.model.loading import first_adapter, get_session
    from fedfinlora.model.packing import Example
    from fedfinlora.privacy.mechanism import Mechanism
    from fedfinlora.seeds import generator
    from fedfinlora.train.loop import Stretch, train

    print("loading the model and timing one private pass…", file=sys.stderr)
    session = get_session(config)
    rows = max(1, min(TIMED_ROWS, round(max(bank.rows_per_step for bank in found.banks))))
    vocabulary = int(session.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    tokens = generator(config.seed, "privacy plan").integers(3, vocabulary, (rows, row_tokens)).tolist()
    examples = [
        Example(tuple(row[:-ANSWER_TOKENS]), tuple(row[-ANSWER_TOKENS:]), place) for place, row in enumerate(tokens)
    ]
    write_adapter(session.model, first_adapter(session, config))
    mechanism = Mechanism(
        clip_norm=config.privacy.clip_norm,
        sampling_rate=1.0,
        noise_multiplier=found.banks[0].noise_multiplier,
        units=tuple((place,) for place in range(rows)),
        expected_units=float(rows),
        seed=config.seed,
        bank="plan",
        augmentations=config.privacy.augmentations,
    )
    for step in range(2):
        done = train(
            session.model,
            examples,
            Stretch(step, 1, 2, float(rows)),
            config.train,
            seed=config.seed,
            bank="plan",
            gradient=mechanism,
        )
    device = (
        torch.cuda.get_device_name(session.device)
        if session.device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    return Timing(rows, row_tokens, done.wall_s, device)


def _figures(found: Forecast, others: Sequence[Alternative], tokens: float, measured: Timing | None) -> dict[str, Any]:
    timing: Mapping[str, Any] = {}
    if measured:
        timing = {
            "timing": asdict(measured),
            "minutes": _minutes(found, measured),
            "minutes_of_largest_bank": _largest_minutes(found, measured),
        }
    return {
        **asdict(found),
        "noise_of_run": found.noise_of_run,
        "tokens_processed": tokens,
        **timing,
        "alternatives": [
            {"words": one.words, **asdict(replace(one.forecast, banks=())), "noise_of_run": one.forecast.noise_of_run}
            for one in others
        ],
        "advice": advice(found, others),
    }
