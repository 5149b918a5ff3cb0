"""The table and the chart of what privacy costs: one run a line, from run folders, for docs/results.md and docs/privacy.svg.

A run of `evaluate` among them is the public adapter that the others went on from: epsilon 0, since no bank's row is in it. Runs with a noise multiplier
of their own are draws of noise alone, which the words compare with: as good as nothing of a row is left in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from data.catalog import BENCHMARKS
from eval.metrics import headline_score
from fedfinlora.adapter_folder import read_tensors
from fedfinlora.report.charts import Interval, IntervalRow, interval_chart
from fedfinlora.report.drawing import standalone
from fedfinlora.runfolder import read_json

ADAPTERS = {False: "LoRA", True: "FFA-LoRA"}


def private_table(runs: Sequence[Path]) -> str:
    """One line a run, without privacy first, then by falling epsilon; plain LoRA before FFA-LoRA; the public start last."""
    runs = [run for run in runs if not _is_noise(run)]
    keys = _benchmarks(runs)
    heads = ["epsilon", "adapter", "numbers sent", "sigma", *(BENCHMARKS[key].title for key in keys), "mean", "mean Matthews"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in sorted(runs, key=_order):
        config, scores = _config(run), _scores(run)
        sent = "–" if _is_start(run) else f"{_numbers(run):,}"
        cells = [_epsilon_words(run), _adapter(config), sent, _noise(run)]
        cells += [f"{100 * (headline_score(scores[key], 'honest') or 0):.1f}" for key in keys]
        mean, half = mean_of(scores, keys)
        matthews = fmean(scores[key].get("matthews") or 0.0 for key in keys)
        lines.append(f"| {' | '.join(cells)} | {100 * mean:.1f} (±{100 * half:.1f}) | {matthews:.2f} |")
    return "\n".join(lines)


def private_words(runs: Sequence[Path]) -> str:
    """How to read the table, and what limits it; figures from the run without privacy, which alone tells its rows."""
    open_run = next(run for run in runs if not _is_start(run) and _config(run)["privacy"]["mode"] == "none")
    result, config = read_json(open_run / "result.json"), _config(open_run)
    rounds, banks, trained = result["rounds"], result["banks"], result["rows_trained"]
    rate = config["train"]["epochs"] / rounds
    return (
        f"{banks} banks with unequal shares and equal weights. Each step takes {100 * rate:.1f} % of a bank's rows, {trained / rounds / banks:.0f} on average; "
        f"{rounds} rounds of one step each, {trained:,} rows in all. Sigma is found by each bank for its own delta, a power of ten below one over its rows. Mean "
        "accuracy with half its 95 % interval, and the mean Matthews correlation, which is 0 for an adapter that gives every row the same answer. Epsilon 0 is the "
        "adapter that the runs began from: trained on the bundled synthetic rows alone, it tells nothing of any bank, and what stands above it is what the banks' rows "
        f"added.{_noise_alone(runs)} What limits them is the number of rows: the noise of a step has as many numbers as the adapter, beside the mean of {trained / rounds / banks:.0f} "
        f"clipped gradients, and {rounds} steps over {trained:,} rows teach little without noise too (compare the first table of this page). The runs went on with one "
        "ledger, so the epsilon spent on these rows over all runs is larger than each one's own; noise is fresh, so another run gives other scores."
    )


def private_short(runs: Sequence[Path]) -> str:
    """The means in a sentence or two, for the README."""
    keys = _benchmarks(runs)
    said = []
    for frozen, adapter in ADAPTERS.items():
        own = sorted(
            (run for run in runs if bool(_config(run)["peft"]["freeze_a"]) == frozen and not _is_noise(run)), key=_order
        )
        names = {"none": "without privacy", "0": "the public start"}
        means = [
            f"{names.get(words := _epsilon_words(run), f'epsilon {words}')} {100 * mean_of(_scores(run), keys)[0]:.1f}"
            for run in own
        ]
        said += [f"{adapter}: {', '.join(means)}."] if means else []
    half = max(mean_of(_scores(run), keys)[1] for run in runs)
    draws = [100 * mean_of(_scores(run), keys)[0] for run in runs if _is_noise(run)]
    alone = f" Noise alone gives {min(draws):.1f} to {max(draws):.1f}." if draws else ""
    return (
        f"Mean accuracy of {', '.join(BENCHMARKS[key].title for key in keys)}, % (±{100 * half:.0f}). {' '.join(said)}{alone}"
    )


def _noise_alone(runs: Sequence[Path]) -> str:
    """What the draws of noise alone gave, if there are any."""
    draws = [run for run in runs if _is_noise(run)]
    if not draws:
        return ""
    sigma = _config(draws[0])["privacy"]["noise_multiplier"]
    epsilon = max(bank["epsilon_planned"] for run in draws for bank in read_json(run / "privacy.json")["banks"].values())
    means: dict[str, list[str]] = {}
    for run in draws:
        means.setdefault(ADAPTERS[bool(_config(run)["peft"]["freeze_a"])], []).append(
            f"{100 * mean_of(_scores(run), _benchmarks(runs))[0]:.1f}"
        )
    gave = "; ".join(f"{adapter} {', '.join(found)}" for adapter, found in means.items())
    return (
        f" At sigma {sigma:g} (epsilon {epsilon:.2g}) noise is all that moves the adapter, as far as in the other runs, since the server's step is as long: draws of it gave "
        f"mean accuracies of {gave}. A run that lies among them has not shown that it learnt more from rows than such a draw."
    )


def private_chart(runs: Sequence[Path]) -> str:
    """The means with their intervals, a row for each epsilon, as the content of an SVG file."""
    runs = [run for run in runs if not _is_noise(run)]
    keys = _benchmarks(runs)
    by_epsilon: dict[str, list[Interval]] = {}
    for run in sorted(runs, key=_order):
        mean, half = mean_of(_scores(run), keys)
        frozen = bool(_config(run)["peft"]["freeze_a"])
        item = Interval(ADAPTERS[frozen], mean, max(0.0, mean - half), min(1.0, mean + half), int(frozen))
        by_epsilon.setdefault(_epsilon_words(run), []).append(item)
    titles = {"none": "without privacy", "0": "public start"}
    rows = [IntervalRow(titles.get(words, f"epsilon {words}"), items) for words, items in by_epsilon.items()]
    chart = interval_chart("privacy", "What privacy costs", f"mean accuracy of {', '.join(keys)}, with 95 % intervals", rows)
    assert chart is not None
    return standalone(chart)


def mean_of(scores: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> tuple[float, float]:
    """(mean accuracy over benchmarks, half of its 95 % interval): shares of independent rows, by the normal approximation."""
    shares = [headline_score(scores[key], "honest") or 0.0 for key in keys]
    variance = sum(share * (1 - share) / scores[key]["n"] for share, key in zip(shares, keys, strict=True))
    return fmean(shares), 1.96 * math.sqrt(variance) / len(keys)


def _is_start(run: Path) -> bool:
    return bool(read_json(run / "result.json")["mode"] == "evaluate")


def _is_noise(run: Path) -> bool:
    return bool(_config(run)["privacy"]["noise_multiplier"])


def _scores(run: Path) -> dict[str, Any]:
    """Benchmark -> metrics of a run's one adapter."""
    found: dict[str, Any] = read_json(run / "result.json")["scores"]["final"]
    return found


def _benchmarks(runs: Sequence[Path]) -> list[str]:
    return [key for key in BENCHMARKS if key in _scores(runs[0])]


def _config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    return found


def _order(run: Path) -> tuple[float, bool]:
    return -_promised(run), bool(_config(run)["peft"]["freeze_a"])


def _promised(run: Path) -> float:
    """Epsilon of the run alone: infinite without privacy, 0 for the public start."""
    privacy = _config(run)["privacy"]
    if _is_start(run):
        return 0.0
    return math.inf if privacy["mode"] == "none" else float(privacy["epsilon"])


def _adapter(config: Mapping[str, Any]) -> str:
    peft = config["peft"]
    return f"{ADAPTERS[bool(peft['freeze_a'])]}, rank {peft['rank']} on {', '.join(peft['target_modules'])}"


def _epsilon_words(run: Path) -> str:
    promised = _promised(run)
    return "none" if math.isinf(promised) else f"{promised:.2g}"


def _noise(run: Path) -> str:
    """The banks' noise multipliers, from their ledgers' point of view: what was found for the wanted epsilon."""
    config = _config(run)
    if config["privacy"]["mode"] == "none":
        return "–"
    from fedfinlora.privacy.accounting import noise_multiplier_for

    card = read_json(run / "privacy.json")
    rate, steps = config["train"]["epochs"] / config["num_server_rounds"], config["num_server_rounds"]
    found = sorted(
        {noise_multiplier_for(config["privacy"]["epsilon"], bank["delta"], rate, steps) for bank in card["banks"].values()}
    )
    return " to ".join(f"{sigma:.2f}" for sigma in ([found[0], found[-1]] if len(found) > 1 else found))


def _numbers(run: Path) -> int:
    """Numbers of the adapter that are trained and sent."""
    frozen = bool(_config(run)["peft"]["freeze_a"])
    tensors = read_tensors(run / "adapters" / "final")
    return sum(tensor.numel() for name, tensor in tensors.items() if not (frozen and ".lora_A." in name))
