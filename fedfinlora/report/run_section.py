"""Everything about one run below the scores: curves, traffic and time of the banks, configuration, manifest, command line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedfinlora.report.curves import note_of, run_charts
from fedfinlora.report.drawing import figure
from fedfinlora.report.markup import DASH, count, decimal, details, plain_table, plural, seconds, size, text
from fedfinlora.report.reading import Run, best_round, of_a_round
from fedfinlora.report.reproduce import command_line, flatten, shown
from fedfinlora.report.scores import BenchmarkInfo, mean
from fedfinlora.run.records import BankCard
from fedfinlora.run.typed import to_json

CONFIGURATION_HEAD = ("Key", "Value", "Default")


def run_section(run: Run, catalogue: Sequence[BenchmarkInfo], defaults: Mapping[str, Any]) -> str:
    """Everything about one run below its scores."""
    parts = [
        _charts(run, catalogue),
        _banks_table(run),
        _rounds_table(run),
        _evaluations_table(run),
        _skipped(run, catalogue),
        _privacy(run),
        _configuration(run, defaults),
        _manifest(run),
        _reproduce(run, defaults),
    ]
    return "".join(parts)


def key_figures(run: Run) -> str:
    """The run in a handful of numbers."""
    result, wall_s = run.result, run.result.wall_s
    counted = [entry for line in run.rounds for entry in line.banks]
    accepted = sum(entry.is_ok for entry in counted)
    parts = (("train", wall_s.train), ("evaluate", wall_s.evaluate), ("aggregate", wall_s.aggregate))
    shares = [f"{name} {seconds(part_s)}" for name, part_s in parts if part_s >= 0.05]
    figures = [("Wall time", seconds(wall_s.total), ", ".join(shares))]
    if run.mode == "evaluate":
        figures.append(("Answers scored", *_answers(run)))
    else:
        tokens = f"{count(result.tokens_trained)} tokens"
        figures.insert(0, ("Rows trained", count(result.rows_trained), tokens))
    if result.bytes_up:
        figures.append(("Sent by banks", size(result.bytes_up), f"received {size(result.bytes_down)}"))
    if counted and run.mode == "federated":
        replies = f"{accepted} of {len(counted)}"
        figures.append(("Replies of banks", replies, "accepted" if accepted < len(counted) else "all accepted"))
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(figure)}<small>{text(detail)}</small></dd></div>"
        for name, figure, detail in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _answers(run: Run) -> tuple[str, str]:
    ns = [metrics.n for scores in run.scores.values() for metrics in scores.values()]
    benchmarks = len({key for scores in run.scores.values() for key in scores})
    return count(sum(ns)), f"{plural(len(run.scores), 'evaluation')} of {plural(benchmarks, 'benchmark')}"


def _charts(run: Run, catalogue: Sequence[BenchmarkInfo]) -> str:
    drawn = "".join(map(figure, run_charts(run, catalogue)))
    return f'<h3>Training, round by round</h3><div class="charts">{drawn}</div>' if drawn else ""


def _banks_table(run: Run) -> str:
    if not run.banks:
        return ""
    head = (
        "Bank",
        "Accepted",
        "Rows",
        "Steps",
        "Tokens",
        "Tokens/s",
        "Train loss",
        "Held-out loss",
        "Sent",
        "Received",
        "Not accepted",
    )
    rows = "".join(_bank_row(run, name) for name in run.banks)
    return f"<h3>Banks</h3>{plain_table('Banks', head, rows, words=('Bank', 'Not accepted'))}"


def _bank_row(run: Run, name: str) -> str:
    replies = [(line, entry) for line in run.rounds if (entry := line.bank(name))]
    accepted = [(line, entry) for line, entry in replies if entry.is_ok]
    speed = mean(line.timings.of(name).tokens_per_s for line, _ in accepted)
    reasons = Counter(note_of(entry) for _, entry in replies if note_of(entry))
    refused = "; ".join(f"{note}" if times == 1 else f"{note} ({times} times)" for note, times in reasons.items())
    figures = [
        f"{len(accepted)} of {len(replies)}",
        count(sum(entry.rows for _, entry in accepted)),
        count(sum(entry.steps for _, entry in replies)),
        count(sum(entry.tokens for _, entry in replies)),
        count(speed),
        _course(entry.train_loss for _, entry in accepted),
        _course(entry.holdout_loss for _, entry in accepted),
        size(sum(entry.bytes_up for _, entry in replies)),
        size(sum(entry.bytes_down for _, entry in replies)),
    ]
    cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
    return f'<tr><th scope="row">{text(name)}</th>{cells}<td class="reason">{text(refused) or "none"}</td></tr>'


def _course(losses: Iterable[float | None]) -> str:
    """The first and the last that were measured: "2.401 → 1.873"."""
    known = [loss for loss in losses if loss is not None]
    return DASH if not known else decimal(known[0]) if len(known) == 1 else f"{decimal(known[0])} → {decimal(known[-1])}"


def _rounds_table(run: Run) -> str:
    if not run.rounds:
        return ""
    head = (
        "Round",
        "Status",
        "Accepted",
        "Train loss",
        "Held-out loss",
        "Validation",
        "Update norm",
        "Sent",
        "Received",
        "Time",
    )
    rows = []
    best = best_round(run)
    for line in run.rounds:
        figures = [
            f"{sum(entry.is_ok for entry in line.banks)} of {len(line.banks)}",
            decimal(line.train_loss),
            decimal(line.holdout_loss),
            decimal(line.validation.score if line.validation else None),
            decimal(line.update_norm),
            size(line.bytes_up),
            size(line.bytes_down),
            seconds(line.timings.total_s),
        ]
        cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
        mark = " (best)" if line.round == best else ""
        rows.append(f'<tr><th scope="row">{line.round}{mark}</th><td>{text(line.status)}</td>{cells}</tr>')
    return details(
        "Figures by round",
        plural(len(rows), "round"),
        plain_table("Figures by round", head, "".join(rows), words=("Round", "Status")),
    )


def _evaluations_table(run: Run) -> str:
    """How fast each evaluation was, and what its checks found."""
    rows = []
    for label, evaluation in run.evaluations.items():
        metrics = evaluation.scores.values()
        took_s = sum(evaluation.seconds.values())
        scored = sum(item.n if item.rows is None else item.rows for item in metrics)
        speed = evaluation.rows_per_s or (scored / took_s if took_s else None)
        checks = [item.decoding for item in metrics if item.decoding]
        differ = f"{sum(one.rows_differ for one in checks)} of {sum(one.rows_checked for one in checks)}" if checks else DASH
        reused = count(evaluation.reused) if evaluation.work else DASH
        peak = evaluation.peak_cache_gib
        figures = [
            count(scored),
            seconds(took_s),
            decimal(speed, 1),
            DASH if peak is None else f"{peak:.2f} GiB",
            reused,
            differ,
        ]
        cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
        rows.append(f'<tr><th scope="row">{text(label)}</th>{cells}</tr>')
    if not rows:
        return ""
    described = {
        label: {
            name: value
            for name, value in to_json(evaluation).items()
            if name in ("model", "mode", "shots", "shortages", "tokens") and value not in (None, {}, "")
        }
        for label, evaluation in run.evaluations.items()
        if not of_a_round(label)
    }
    head = ("Evaluation", "Rows", "Time", "Rows/s", "Peak cache", "Reused", "Decoded anew, differ")
    table = plain_table("Evaluations", head, "".join(rows), words=("Evaluation",))
    pairs = _pairs("Models evaluated", described) if any(described.values()) else ""
    return details("Evaluation speed and checks", plural(len(rows), "evaluation"), table + pairs)


def _skipped(run: Run, catalogue: Sequence[BenchmarkInfo]) -> str:
    if not run.skipped:
        return ""
    titles = {benchmark.key: benchmark.title for benchmark in catalogue}
    items = "".join(f"<li><b>{text(titles.get(key, key))}</b>: {text(reason)}</li>" for key, reason in run.skipped.items())
    return details("Benchmarks not scored", plural(len(run.skipped), "benchmark"), f"<ul>{items}</ul>")


def _privacy(run: Run) -> str:
    card = run.privacy
    if card is None:
        return ""
    if card.void:
        guarantee = f"<p><b>No guarantee.</b> {text(card.void)}</p>"
    elif card.epsilon is None or card.delta is None:
        guarantee = "<p>No bank has trained privately yet: nothing is spent.</p>"
    else:
        # (epsilon, delta)-differential privacy as a bound on a guess: what was believed with even odds may rise to e^eps / (1 + e^eps).
        surest = 1 / (1 + math.exp(-card.epsilon))
        guarantee = (
            f"<p>For every unit ({text(card.unit)}): <b>ε = {card.epsilon:.3g}</b> at δ = {card.delta:.0e}, over all runs in the banks' ledgers. "
            "Somebody who knows everything else and cannot tell beforehand whether the unit took part (even odds) can be at most "
            f"{100 * surest:.5g} % sure of it afterwards, except with probability δ.</p>"
        )
    words = ("unit", "adjacency", "trusted", "mechanism", "formula", "sampling", "accountant", "composition", "audit")
    values = to_json(card)
    facts = {key: values[key] for key in (*words, "clip_norm", "noise_multiplier") if values[key] not in (None, "")}
    leaves = [f"{what}: {tells}" for what, tells in card.leaves.items()]
    folded = (("What else leaves a bank", leaves), ("What is withheld", card.withheld), ("Known limits", card.limits))
    lists = "".join(details(title, "", f"<ul>{_items(items)}</ul>") for title, items in folded if items)
    return f"<h3>Privacy</h3>{guarantee}{_privacy_of_banks(card.banks)}{_pairs('Privacy', facts)}{lists}"


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)


def _privacy_of_banks(banks: Mapping[str, BankCard]) -> str:
    """Planned and spent epsilon, bank by bank."""
    heads = ("Bank", "ε planned for this run", "ε spent, all runs", "δ", "Private rounds", "Refused rounds")
    rows = []
    for name, bank in banks.items():
        cells = ["–" if value is None else f"{value:.3g}" for value in (bank.epsilon_planned, bank.epsilon_spent, bank.delta)]
        cells += [count(bank.rounds), count(bank.refused)]
        figures = "".join(f'<td class="number">{text(cell)}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row">{text(name)}</th>{figures}</tr>')
    return plain_table("Privacy by bank", heads, "".join(rows), words=("Bank",)) if rows else ""


def _configuration(run: Run, defaults: Mapping[str, Any]) -> str:
    if not run.config:
        return ""
    flat, flat_defaults = flatten(run.config), flatten(defaults)
    rows, changed = [], 0
    for key, value in flat.items():
        differs = key in flat_defaults and flat_defaults[key] != value
        changed += differs
        default = f"changed; default {shown(flat_defaults[key])}" if differs else ""
        rows.append(
            f'<tr{" class=changed" if differs else ""}><th scope="row"><code>{text(key)}</code></th>'
            f"<td><code>{text(shown(value))}</code></td><td>{text(default)}</td></tr>"
        )
    summary = f"{len(flat)} values" + (f", {changed} differ from the default" if flat_defaults else "")
    return details(
        "Configuration", summary, plain_table("Configuration", CONFIGURATION_HEAD, "".join(rows), words=CONFIGURATION_HEAD)
    )


def _manifest(run: Run) -> str:
    values = {**run.manifest}
    for name, value in (("config_sha256", run.result.config_sha256), ("finished_at", run.result.finished_at)):
        if value:
            values[name] = value
    if not values:
        return ""
    return details(
        "Versions, seed and hashes",
        plural(len(flatten(values)), "entry").replace("entrys", "entries"),
        _pairs("Manifest", values),
    )


def _reproduce(run: Run, defaults: Mapping[str, Any]) -> str:
    if not run.config and not run.manifest.get("command"):
        return ""
    return (
        "<h3>How to reproduce</h3><p>From the project root, with the versions above and the same data:</p>"
        f'<pre tabindex="0"><code>{text(command_line(run, defaults))}</code></pre>'
    )


def _pairs(label: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{text(key)}</code></th><td><code>{text(shown(value))}</code></td></tr>'
        for key, value in flatten(values).items()
    )
    return plain_table(label, ("Name", "Value"), rows, words=("Name", "Value"))
