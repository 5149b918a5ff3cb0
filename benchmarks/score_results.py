"""The tables of scores in docs/results.md: sentiment, every benchmark, XBRL filings, a full pass and the demonstration,
from what runs keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.provenance import provenance
from data.catalog import BENCHMARKS, PUBLISHED_FEDERATED
from eval.metrics.averages import headline_name, headline_score
from fedfinlora.files import read_json
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, Evaluation, Scores, read_evaluation
from fedfinlora.run.records import RunResult, read_result, read_rounds
from fedfinlora.run.typed import to_json

FILINGS = ("xbrl_tags_extract", "xbrl_value_extract")
PAIRED_FILE = "paired.json"
LIMITS = """What these numbers do not show: how an 8B model behaves (this is a 135M model in 4 bits, on a CPU); the whole published test
sets (the FPB, FiQA, TFNS and NWGI files measured here hold half of them or less, and 200 seeded rows of each are scored); true
sentiment on TFNS, whose public labels are swapped ("positive" means neutral, "neutral" means bullish), in train and test alike;
NWGI against its own train part (train and test rows both come from upstream's test file). The federated run takes plain SGD steps at the
banks and Adam's on the server, the centralised one AdamW with a smaller rate on batches of a quarter of the size: the same rows and the same
number of bank steps, not the same arithmetic. With 200 rows, a difference of one or two
points between two systems is within the noise: the 95 % interval of an accuracy of 75 % is about ±6 points."""


def metrics_of(run: Path) -> dict[str, Evaluation]:
    """Label -> metrics.json of an `evaluate` run, the base first."""
    labels = sorted(file.parent.name for file in (run / "eval").glob(f"*/{METRICS_FILE}"))
    found = {label: read_evaluation(run, label) for label in labels}
    return dict(sorted(found.items(), key=lambda item: item[0] != "base"))


def all_benchmarks(run: Path, names: Mapping[str, str], trained: Sequence[Path]) -> str:
    """Both families of scores of every model, with intervals, and what they do not show."""
    found = metrics_of(run)
    heads = [names.get(label, label) for label in found]
    keys = [key for key in BENCHMARKS if any(key in summary.scores for summary in found.values())]

    def table(title: str, cell: Callable[[BenchmarkMetrics], str], means: Sequence[str]) -> list[str]:
        lines = [f"| {title} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for key in keys:
            count = next(summary.scores[key].n for summary in found.values() if key in summary.scores)
            cells = [cell(summary.scores[key]) if key in summary.scores else "–" for summary in found.values()]
            lines.append(f"| {BENCHMARKS[key].title} ({count}) | {' | '.join(cells)} |")
        return [*lines, f"| **mean** | {' | '.join(means)} |"]

    def mean(family: str) -> list[str]:
        return [
            f"{100 * fmean(score for key in keys if (score := headline_score(summary.scores[key], family)) is not None):.1f}"
            for summary in found.values()
        ]

    lines = table("strict: accuracy or BERTScore F1, % (n)", _strict_cell, mean("strict"))
    lines += ["", *table("FinLoRA's rules: accuracy / F1 (n)", _finlora_cell, mean("finlora"))]
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    learnt = yaml.safe_load((trained[0] / "config.yaml").read_text("utf-8"))["dataset"]["tasks"] if trained else []
    untrained = [BENCHMARKS[key].title for key in keys if key not in learnt]
    untold = f"No adapter was trained on {', '.join(untrained)}. " if untrained else ""
    missing = [BENCHMARKS[key].title for key in BENCHMARKS if key not in keys]
    lines += [
        "",
        f"At most {config['evaluation']['limit']} seeded rows of each (tags counted for FiNER and FNXL), 95 % "
        "intervals in brackets. "
        f"{untold}Not scored: {', '.join(missing)}. BERTScore with "
        f"{_encoder(found)}, which cannot be compared with FinLoRA's FinBERT scores. By FinLoRA's rules the first "
        "label found anywhere in the "
        "output is the answer and its F1 flatters; BERTScore sets show the same F1 in both tables. With so few rows "
        "most differences of less "
        "than ten points are within the noise.",
        "",
        provenance("scores", run),
        *(provenance(read_result(one).mode, one) for one in trained),
    ]
    return "\n".join(lines)


def filings(run: Path, names: Mapping[str, str], trained: Sequence[Path]) -> str:
    """Tags and values: base, each bank alone, federated, centralised on the same rows, with paired differences."""
    found = metrics_of(run)
    keys = [key for key in FILINGS if key in found["base"].scores]
    lines = [
        "| model | "
        + " | ".join(f"{BENCHMARKS[key].title}, accuracy" for key in keys)
        + " | mean | FinLoRA's rules, mean |"
    ]
    lines.append("|---|" + "---|" * (len(keys) + 2))
    for label, summary in found.items():
        scores = summary.scores
        cells = [_strict_cell(scores[key]) for key in keys]
        means = [f"{100 * _mean_of(scores, keys, family):.1f}" for family in ("strict", "finlora")]
        lines.append(f"| {names.get(label, label)} | {' | '.join(cells)} | {' | '.join(means)} |")
    rows = {BENCHMARKS[key].title: found["base"].scores[key].n for key in keys}
    if (run / PAIRED_FILE).is_file():
        lines += ["", *_paired_lines(read_json(run / PAIRED_FILE))]
    published = PUBLISHED_FEDERATED
    results = {one: read_result(one) for one in trained}
    budget = ", ".join(
        f"{one.name} {result.rows_trained:,} rows in {result.steps_trained} steps" for one, result in results.items()
    )
    lines += [
        "",
        f"n = {', '.join(f'{title} {count}' for title, count in rows.items())}; 95 % intervals in brackets. Trained: "
        f"{budget}. FinLoRA, Llama 3.1 8B, four "
        f"analysis tasks, mean accuracy: base {published['base']['mean']:.2f}, federated "
        f"{published['federated']['mean']:.2f}, centralised "
        f"{published['centralized']['mean']:.2f}.",
        "",
        *_what_keeps_the_gap(results),
        provenance("scores", run),
        *(provenance(one.name, one) for one in trained),
    ]
    return "\n".join(lines)


def _what_keeps_the_gap(results: Mapping[Path, RunResult]) -> list[str]:
    """How far the federated and the centralised adapter went, where both runs are given."""
    by_mode = {result.mode: one for one, result in results.items()}
    if not {"federated", "centralized"} <= set(by_mode):
        return []
    federated, centralised = by_mode["federated"], by_mode["centralized"]
    paths = [sum(line.update_norm or 0.0 for line in read_rounds(one)) for one in (federated, centralised)]
    rounds, banks = results[federated].rounds, results[federated].banks
    return [
        f"What keeps the gap: the mean of {banks} banks' steps moves the global adapter about as far as one step. The "
        "federation takes the same "
        f"{results[federated].steps_trained} steps as the pooled run, but {banks} at a time, in {rounds} rounds: its "
        "adapter went "
        f"{paths[0]:.1f} in all (sum of the rounds' update norms), the pooled one {paths[1]:.1f}. Fewer steps one "
        "after the other explain more than the "
        "split by filer: see what the banks alone reach with their own few steps. What should close it are more rounds "
        "of the same rows (smaller steps "
        "of a bank) and a server rule that goes further, as in the sentiment runs above; on these filings that has not "
        "been measured.",
        "",
    ]


def paired(run: Path, one: str, other: str, keys: Sequence[str]) -> dict[str, Any]:
    """Benchmark -> `other` minus `one` on the same rows of an evaluation, as docs/results keeps it: the rows themselves
    are not kept.
    """
    from eval.metrics.compare import compare_runs

    compared = compare_runs(run, one, run, other).benchmarks
    return {key: to_json(compared[key].figures["accuracy"]) for key in keys}


def _paired_lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Federated minus centralised."""
    lines = []
    for key, figure in figures.items():
        low, high = figure["difference_ci95"] or (math.nan, math.nan)
        lines.append(
            f"- {BENCHMARKS[key].title}: federated is {100 * figure['difference']:+.1f} points from centralised on the "
            "same rows "
            f"({100 * low:+.1f} to {100 * high:+.1f}; McNemar's p {figure['mcnemar_p']:.2g})."
        )
    return lines


def _mean_of(scores: Scores, keys: Sequence[str], family: str) -> float:
    return fmean(headline_score(scores[key], family) or 0.0 for key in keys)


def _strict_cell(metrics: BenchmarkMetrics) -> str:
    name = headline_name(metrics, "strict")
    value, (low, high) = metrics.value(name), metrics.bounds(name)
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"
    unparsed = metrics.value("unparsed_share") or 0.0
    return f"{100 * value:.1f}{interval}" + (f", {100 * unparsed:.0f} % unparsed" if unparsed >= 0.05 else "")


def _finlora_cell(metrics: BenchmarkMetrics) -> str:
    if metrics.is_bertscored:
        return f"– / {metrics.value('bertscore_f1'):.3f}"
    ambiguous = f", {metrics.finlora_ambiguous} ambiguous" if metrics.finlora_ambiguous else ""
    return f"{100 * (metrics.value('finlora_accuracy') or 0.0):.1f} / {metrics.value('finlora_f1'):.3f}{ambiguous}"


def _encoder(found: Mapping[str, Evaluation]) -> str:
    scores = [metrics for summary in found.values() for metrics in summary.scores.values()]
    return next((metrics.bertscore_model for metrics in scores if metrics.bertscore_model), "no encoder")


def comparison(federated: Path, centralized: Path, local: Sequence[Path]) -> str:
    """Base, each bank alone, federated and centralised side by side, with commands and commits."""
    one, other = read_result(federated), read_result(centralized)
    columns: dict[str, Scores] = {"base": one.scores["base"]}
    alone = [read_result(run).scores["final"] for run in local]
    columns |= {"federated": one.scores["final"], "centralised": other.scores["final"]}
    keys = [key for key in BENCHMARKS if key in columns["federated"]]
    heads = ["base", *(["each bank alone (mean)"] if alone else []), "federated", "centralised"]
    lines = [f"| accuracy, % (n) | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]

    def row(title: str, chosen: Sequence[str]) -> str:
        cells = [_mean_cell(columns["base"], chosen)]
        if alone:
            cells.append(f"{100 * fmean(_mean(scores, chosen) for scores in alone):.1f}")
        cells += [_mean_cell(columns[name], chosen) for name in ("federated", "centralised")]
        return f"| {title} | {' | '.join(cells)} |"

    for key in keys:
        lines.append(row(f"{BENCHMARKS[key].title} ({columns['federated'][key].n})", [key]))
    lines.append(row("**mean**", keys))
    gap = 100 * (_mean(columns["centralised"], keys) - _mean(columns["federated"], keys))
    lines += ["", f"Centralised is {gap:+.1f} points from federated on the mean, with the same {one.rows_trained:,} "
                  "rows and "
              f"{one.steps_trained:,} optimiser steps ({other.rows_trained:,} and {other.steps_trained:,}).",
              ""]  # fmt: skip
    lines += [provenance("federated", federated), provenance("centralised", centralized)]
    lines += [provenance(f"bank {number} alone", run) for number, run in enumerate(local)]
    return "\n".join(lines)


def tried(runs: Sequence[Path]) -> str:
    """One line a run of the same rows with other settings: what was set, what it gave, and the commands."""
    keys = [key for key in BENCHMARKS if key in read_result(runs[0]).scores["final"]]
    lines = [
        "| setting | rounds | rows | steps | " + " | ".join(keys) + " | mean |",
        "|---|" + "---|" * (len(keys) + 4),
    ]
    for run in runs:
        result = read_result(run)
        scores = result.scores["final"]
        cells = [f"{100 * _mean(scores, [key]):.1f}" for key in keys]
        lines.append(
            f"| {setting(run)} | {result.rounds} | {result.rows_trained:,} | {result.steps_trained:,} | "
            f"{' | '.join(cells)} | "
            f"{100 * _mean(scores, keys):.1f} |"
        )
    return "\n".join([*lines, "", *(provenance(setting(run), run) for run in runs)])


def setting(run: Path) -> str:
    """What distinguishes a federated run, in words."""
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    strategy, train = config["strategy"], config["train"]
    if read_result(run).mode != "federated":
        return f"centralised, AdamW, rate {train['learning_rate']:g}"
    words = [strategy["name"], f"server rate {strategy['server_learning_rate']:g}", f"weights {strategy['weighting']}"]
    if strategy["name"] == "fedavgm":
        words.append(f"momentum {strategy['momentum']:g}")
    if train["optimizer"] == "sgd":
        words.append("SGD at the banks")
    else:
        kept = "kept" if train["optimizer_state"] == "keep" else "fresh each round"
        words.append(f"AdamW at the banks, rate {train['learning_rate']:g}, moments {kept}")
    return ", ".join(words)


def full_pass(run: Path) -> str:
    """How long one system takes on all benchmarks, and which of them take it."""
    result = read_result(run)
    (label,) = result.scores
    metrics = read_evaluation(run, label)
    slowest = sorted(metrics.seconds.items(), key=lambda item: -item[1])[:4]
    shown = ", ".join(f"{BENCHMARKS[key].title} {seconds:.0f} s" for key, seconds in slowest)
    return (
        f"{len(metrics.seconds)} benchmarks in {(result.wall_s.total or 0.0) / 60:.1f} minutes, nothing reused; most "
        f"of it {shown}; "
        f"{metrics.peak_cache_gib or 0.0:.2f} GiB of keys and values at most.\n\n" + provenance(label, run)
    )


def demo(run: Path) -> str:
    """The demonstration's mean score and time."""
    result = read_result(run)
    base, final = result.scores["base"], result.scores["final"]
    return (
        f"{len(final)} benchmarks of synthetic rows (no measure of quality), {result.rounds} rounds of {result.banks} "
        "banks: mean score "
        f"{100 * _mean(base, list(final)):.1f} before, {100 * _mean(final, list(final)):.1f} after, in "
        f"{(result.wall_s.total or 0.0) / 60:.1f} minutes. "
        "\n\n" + provenance("demo", run)
    )


def _mean(scores: Scores, keys: Sequence[str]) -> float:
    return fmean(headline_score(scores[key], "strict") or 0.0 for key in keys)


def _mean_cell(scores: Scores, keys: Sequence[str]) -> str:
    mean = f"{100 * _mean(scores, keys):.1f}"
    low, high = scores[keys[0]].bounds("accuracy") if len(keys) == 1 else (None, None)
    return mean if low is None or high is None else f"{mean} ({100 * low:.0f} to {100 * high:.0f})"
