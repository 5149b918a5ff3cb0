"""Write docs/results.md and the table in README.md from finished runs and measurements, so that no number is typed in.

    python -m benchmarks.results --federated RUN --centralized RUN [--local RUN …] [--tried RUN …]
    python -m benchmarks.results --scored RUN [--filings RUN] --names fed-final=federated pooled-final=centralised --trained RUN …
    python -m benchmarks.results --bench FILE …
    python -m benchmarks.results --private

RUN is a run's folder (of `evaluate`, for --scored and --filings), FILE what `bench NAME --json FILE` wrote. Each table names the command and
the commit that gave it. Only the sections whose sources are given are written anew.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import yaml

from benchmarks.cost_results import deployed_round, many_banks, speed
from benchmarks.private_results import (
    noise_curve,
    origins,
    private_chart,
    private_short,
    private_table,
    private_words,
    read_cells,
)
from benchmarks.provenance import provenance
from data.catalog import BENCHMARKS, PUBLISHED_FEDERATED
from eval.metrics import headline_name, headline_score
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, Evaluation, Scores, read_evaluation
from fedfinlora.run.records import RunResult, read_result, read_rounds
from fedfinlora.runfolder import read_json

ROOT = Path(__file__).resolve().parents[1]
LIMITS = """What these numbers do not show: how an 8B model behaves (this is a 135M model in 4 bits, on a CPU); the whole published test
sets (the FPB, FiQA, TFNS and NWGI files measured here hold half of them or less, and 200 seeded rows of each are scored); true
sentiment on TFNS, whose public labels are swapped ("positive" stands for neutral, "neutral" for bullish), in train and test alike;
NWGI against its own train part (train and test rows both come from upstream's test file). The federated run takes plain SGD steps at the
banks and Adam's on the server, the centralised one AdamW with a smaller rate on batches of a quarter of the size: the same rows and the same
number of bank steps, not the same arithmetic. With 200 rows, a difference of one or two
points between two systems is within the noise: the 95 % interval of an accuracy of 75 % is about ±6 points."""


SECTIONS = {
    "sentiment": "Four banks, four sentiment benchmarks",
    "tried": "What each setting gave",
    "all": "Every benchmark that has rows",
    "filings": "Where FinLoRA's federation lost 43 points: XBRL tags and values",
    "private": "What privacy costs",
    "pass": "A full pass over the benchmarks",
    "speed": "Speed",
    "round": "A deployed round beside its training",
    "banks": "Many banks",
    "demo": "The demonstration",
}
"""Section -> heading, in the order of docs/results.md."""


def main() -> None:
    """Read the folders, write the sections that they give."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--federated", type=Path)
    options.add_argument("--centralized", type=Path)
    options.add_argument("--local", type=Path, nargs="*", default=[])
    options.add_argument(
        "--tried", type=Path, nargs="*", default=[], help="other federated runs, for the table of what each setting gave"
    )
    options.add_argument("--scored", type=Path, help="an `evaluate` run of base and adapters on all benchmarks")
    options.add_argument("--filings", type=Path, help="an `evaluate` run of base and adapters on XBRL tags and values")
    options.add_argument("--names", nargs="*", default=[], metavar="LABEL=NAME", help="what the tables call a label")
    options.add_argument("--trained", type=Path, nargs="*", default=[], help="the runs that the adapters come from")
    options.add_argument("--bench", type=Path, nargs="*", default=[])
    options.add_argument("--round", type=Path, help="what `python -m fedfinlora bench round --json FILE` wrote")
    options.add_argument("--load", type=Path, help="what `python -m benchmarks.load --json FILE` wrote")
    options.add_argument("--crowd", type=Path, help="a simulated run of a thousand banks with the tiny model")
    options.add_argument("--private", action="store_true", help="what privacy costs, from the figures in docs/private")
    options.add_argument("--pass", dest="full_pass", type=Path, help="an `evaluate` run over everything, timed")
    options.add_argument("--demo", type=Path)
    chosen = options.parse_args()
    names = dict(word.split("=", 1) for word in chosen.names)
    found: dict[str, str] = {}
    if chosen.federated and chosen.centralized:
        table = comparison(chosen.federated, chosen.centralized, chosen.local)
        found["sentiment"] = f"{table}\n\n{LIMITS}"
        _into_readme("results", f"{table}\n\n{LIMITS}")
    if chosen.tried:
        found["tried"] = tried(chosen.tried)
    if chosen.scored:
        found["all"] = all_benchmarks(chosen.scored, names, chosen.trained)
    if chosen.filings:
        found["filings"] = filings(chosen.filings, names, chosen.trained)
    if chosen.bench:
        found["speed"] = speed([read_json(file) for file in chosen.bench])
    if chosen.round:
        found["round"] = deployed_round(read_json(chosen.round))
    if chosen.load:
        found["banks"] = many_banks(read_json(chosen.load), chosen.crowd)
    if chosen.private:
        cells = read_cells(ROOT / "docs" / "private")
        if not cells:
            options.error("docs/private has no figures: run `python -m benchmarks.private_grid` first.")
        pictures = {
            "privacy.svg": ("Mean accuracy by epsilon", private_chart(cells)),
            "privacy-noise.svg": ("Mean accuracy by signal to noise", noise_curve(cells)),
        }
        shown = []
        for name, (title, picture) in pictures.items():
            if picture:
                (ROOT / "docs" / name).write_text(picture, encoding="utf-8")
                shown.append(f"![{title}]({name})")
        found["private"] = "\n".join([private_table(cells), "", *shown, "", private_words(cells), "", *origins(cells)])
        _into_readme("privacy", private_short(cells))
    if chosen.full_pass:
        found["pass"] = full_pass(chosen.full_pass)
    if chosen.demo:
        found["demo"] = demo(chosen.demo)
    file = ROOT / "docs" / "results.md"
    file.write_text(with_sections(file.read_text("utf-8"), found), encoding="utf-8")


def with_sections(text: str, found: Mapping[str, str]) -> str:
    """The page with the given sections in the place of its own; sections that were not there are added in order."""
    present = dict(re.findall(r"<!-- (\w+):start -->\n(.*?)\n<!-- \1:end -->", text, flags=re.S)) | dict(found)
    parts = ["# Results", "", "Generated by `python -m benchmarks.results`; do not edit.", ""]
    for name, heading in SECTIONS.items():
        if name in present:
            parts += [f"## {heading}", "", f"<!-- {name}:start -->", present[name], f"<!-- {name}:end -->", ""]
    return "\n".join(parts)


def _into_readme(name: str, block: str) -> None:
    readme = ROOT / "README.md"
    marked = f"<!-- {name}:start -->\n{block}\n<!-- {name}:end -->"
    readme.write_text(_between(readme.read_text("utf-8"), name, marked), encoding="utf-8")


def _between(text: str, name: str, block: str) -> str:
    return re.sub(rf"<!-- {name}:start -->.*?<!-- {name}:end -->", lambda _: block, text, flags=re.S)


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

    lines = table("honest: accuracy or BERTScore F1, % (n)", _honest_cell, mean("honest"))
    lines += ["", *table("FinLoRA's rules: accuracy / F1 (n)", _finlora_cell, mean("finlora"))]
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    learnt = yaml.safe_load((trained[0] / "config.yaml").read_text("utf-8"))["dataset"]["tasks"] if trained else []
    untrained = [BENCHMARKS[key].title for key in keys if key not in learnt]
    untold = f"No adapter was trained on {', '.join(untrained)}. " if untrained else ""
    missing = [BENCHMARKS[key].title for key in BENCHMARKS if key not in keys]
    lines += [
        "",
        f"At most {config['evaluation']['limit']} seeded rows of each (tags counted for FiNER and FNXL), 95 % intervals in brackets. "
        f"{untold}Not scored: {', '.join(missing)}. BERTScore with "
        f"{_encoder(found)}, which cannot be compared with FinLoRA's FinBERT scores. By FinLoRA's rules the first label found anywhere in the "
        "output is the answer and its F1 flatters; BERTScore sets show the same F1 in both tables. With so few rows most differences of less "
        "than ten points are within the noise.",
        "",
        provenance("scores", run),
        *(provenance(read_result(one).mode, one) for one in trained),
    ]
    return "\n".join(lines)


def filings(run: Path, names: Mapping[str, str], trained: Sequence[Path]) -> str:
    """Tags and values: base, each bank alone, federated, centralised on the same rows, with paired differences."""
    found = metrics_of(run)
    keys = [key for key in ("xbrl_tags_extract", "xbrl_value_extract") if key in found["base"].scores]
    lines = [
        "| model | " + " | ".join(f"{BENCHMARKS[key].title}, accuracy" for key in keys) + " | mean | FinLoRA's rules, mean |"
    ]
    lines.append("|---|" + "---|" * (len(keys) + 2))
    for label, summary in found.items():
        scores = summary.scores
        cells = [_honest_cell(scores[key]) for key in keys]
        means = [f"{100 * _mean_of(scores, keys, family):.1f}" for family in ("honest", "finlora")]
        lines.append(f"| {names.get(label, label)} | {' | '.join(cells)} | {' | '.join(means)} |")
    rows = {BENCHMARKS[key].title: found["base"].scores[key].n for key in keys}
    labels = {name: label for label, name in names.items() if label in found}
    if "federated" in labels and "centralised" in labels:
        lines += ["", *_paired(run, labels["centralised"], labels["federated"], keys)]
    published = PUBLISHED_FEDERATED
    results = {one: read_result(one) for one in trained}
    budget = ", ".join(
        f"{one.name} {result.rows_trained:,} rows in {result.steps_trained} steps" for one, result in results.items()
    )
    lines += [
        "",
        f"n = {', '.join(f'{title} {count}' for title, count in rows.items())}; 95 % intervals in brackets. Trained: {budget}. FinLoRA, Llama 3.1 8B, four "
        f"analysis tasks, mean accuracy: base {published['base']['mean']:.2f}, federated {published['federated']['mean']:.2f}, centralised "
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
        f"What keeps the gap: the mean of {banks} banks' steps moves the global adapter about as far as one step. The federation takes the same "
        f"{results[federated].steps_trained} steps as the pooled run, but {banks} at a time, in {rounds} rounds: its adapter went "
        f"{paths[0]:.1f} in all (sum of the rounds' update norms), the pooled one {paths[1]:.1f}. Fewer steps one after the other explain more than the "
        "split by filer: see what the banks alone reach with their own few steps. What should close it are more rounds of the same rows (smaller steps "
        "of a bank) and a server rule that goes further, as in the sentiment runs above; on these filings that has not been measured.",
        "",
    ]


def _paired(run: Path, one: str, other: str, keys: Sequence[str]) -> list[str]:
    """Federated minus centralised on the same rows."""
    from eval.compare import compare_runs

    compared = compare_runs(run, one, run, other)["benchmarks"]
    lines = []
    for key in keys:
        figure = compared[key]["figures"]["accuracy"]
        low, high = figure["difference_ci95"] or (math.nan, math.nan)
        lines.append(
            f"- {BENCHMARKS[key].title}: federated is {100 * figure['difference']:+.1f} points from centralised on the same rows "
            f"({100 * low:+.1f} to {100 * high:+.1f}; McNemar's p {figure['mcnemar_p']:.2g})."
        )
    return lines


def _mean_of(scores: Scores, keys: Sequence[str], family: str) -> float:
    return fmean(headline_score(scores[key], family) or 0.0 for key in keys)


def _honest_cell(metrics: BenchmarkMetrics) -> str:
    name = headline_name(metrics, "honest")
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
    lines += ["", f"Centralised is {gap:+.1f} points from federated on the mean, with the same {one.rows_trained:,} rows and "
              f"{one.steps_trained:,} optimiser steps ({other.rows_trained:,} and {other.steps_trained:,}).", ""]  # fmt: skip
    lines += [provenance("federated", federated), provenance("centralised", centralized)]
    lines += [provenance(f"bank {number} alone", run) for number, run in enumerate(local)]
    return "\n".join(lines)


def tried(runs: Sequence[Path]) -> str:
    """One line a run of the same rows with other settings: what was set, what it gave, and the commands."""
    keys = [key for key in BENCHMARKS if key in read_result(runs[0]).scores["final"]]
    lines = ["| setting | rounds | rows | steps | " + " | ".join(keys) + " | mean |", "|---|" + "---|" * (len(keys) + 4)]
    for run in runs:
        result = read_result(run)
        scores = result.scores["final"]
        cells = [f"{100 * _mean(scores, [key]):.1f}" for key in keys]
        lines.append(
            f"| {setting(run)} | {result.rounds} | {result.rows_trained:,} | {result.steps_trained:,} | {' | '.join(cells)} | "
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
        f"{len(metrics.seconds)} benchmarks in {(result.wall_s.total or 0.0) / 60:.1f} minutes, nothing reused; most of it {shown}; "
        f"{metrics.peak_cache_gib or 0.0:.2f} GiB of keys and values at most.\n\n" + provenance(label, run)
    )


def demo(run: Path) -> str:
    """The demonstration's mean score and time."""
    result = read_result(run)
    base, final = result.scores["base"], result.scores["final"]
    return (
        f"{len(final)} benchmarks of synthetic rows (no measure of quality), {result.rounds} rounds of {result.banks} banks: mean score "
        f"{100 * _mean(base, list(final)):.1f} before, {100 * _mean(final, list(final)):.1f} after, in {(result.wall_s.total or 0.0) / 60:.1f} minutes. "
        "\n\n" + provenance("demo", run)
    )


def _mean(scores: Scores, keys: Sequence[str]) -> float:
    return fmean(headline_score(scores[key], "honest") or 0.0 for key in keys)


def _mean_cell(scores: Scores, keys: Sequence[str]) -> str:
    mean = f"{100 * _mean(scores, keys):.1f}"
    low, high = scores[keys[0]].bounds("accuracy") if len(keys) == 1 else (None, None)
    return mean if low is None or high is None else f"{mean} ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
