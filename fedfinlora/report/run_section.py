"""Everything about one run below the scores: curves, traffic and time of the banks, configuration, manifest, command line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora.report.curves import bank_of, note_of, run_charts
from fedfinlora.report.drawing import figure
from fedfinlora.report.markup import DASH, count, decimal, details, number, plain_table, plural, seconds, size, text
from fedfinlora.report.reading import Run, banks_of, best_round, mapping, of_a_round, timings_of
from fedfinlora.report.reproduce import command_line, flatten, shown
from fedfinlora.report.scores import BenchmarkInfo

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
    wall_s = run.result.get("wall_s")
    wall_s = wall_s if isinstance(wall_s, Mapping) else {}
    counted = [bank for record in run.rounds for bank in banks_of(record)]
    not_ok = sum(bank.get("status") != "ok" for bank in counted)
    shares = [
        f"{name} {seconds(wall_s[name])}"
        for name in ("train", "evaluate", "aggregate")
        if (number(wall_s.get(name)) or 0) >= 0.05
    ]
    figures = [("Wall time", seconds(wall_s.get("total")), ", ".join(shares))]
    if run.mode == "evaluate":
        figures.append(("Answers scored", *_answers(run)))
    else:
        tokens = f"{count(run.result.get('tokens_trained'))} tokens"
        figures.insert(0, ("Rows trained", count(run.result.get("rows_trained")), tokens))
    if number(run.result.get("bytes_up")):
        figures.append(("Sent by banks", size(run.result.get("bytes_up")), f"received {size(run.result.get('bytes_down'))}"))
    if counted and run.mode == "federated":
        replies = f"{len(counted) - not_ok} of {len(counted)}"
        figures.append(("Replies of banks", replies, "accepted" if not_ok else "all accepted"))
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(figure)}<small>{text(detail)}</small></dd></div>"
        for name, figure, detail in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _answers(run: Run) -> tuple[str, str]:
    ns = [number(metrics.get("n")) or 0 for scores in run.scores.values() for metrics in scores.values()]
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
    replies = [(record, bank) for record in run.rounds if (bank := bank_of(record, name))]
    accepted = [(record, bank) for record, bank in replies if bank.get("status") == "ok"]

    def total(key: str) -> float:
        return sum(number(bank.get(key)) or 0.0 for _, bank in replies)

    def course(key: str) -> str:
        known = [value for _, bank in accepted if (value := number(bank.get(key))) is not None]
        return DASH if not known else decimal(known[0]) if len(known) == 1 else f"{decimal(known[0])} → {decimal(known[-1])}"

    speeds = [number(timings_of(record, name).get("tokens_per_s")) for record, _ in accepted]
    known_speeds = [speed for speed in speeds if speed is not None]
    speed = count(sum(known_speeds) / len(known_speeds)) if known_speeds else DASH
    reasons = Counter(note_of(bank) for _, bank in replies if note_of(bank))
    refused = "; ".join(f"{note}" if times == 1 else f"{note} ({times} times)" for note, times in reasons.items())
    figures = [
        f"{len(accepted)} of {len(replies)}",
        count(sum(number(bank.get("rows")) or 0.0 for _, bank in accepted)),
        count(total("steps")),
        count(total("tokens")),
        speed,
        course("train_loss"),
        course("holdout_loss"),
        size(total("bytes_up")),
        size(total("bytes_down")),
    ]
    cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
    return f'<tr><th scope="row">{text(name)}</th>{cells}<td class="reason">{text(refused) or "none"}</td></tr>'


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
    for record in run.rounds:
        banks = banks_of(record)
        figures = [
            f"{sum(bank.get('status') == 'ok' for bank in banks)} of {len(banks)}",
            decimal(record.get("train_loss")),
            decimal(record.get("holdout_loss")),
            decimal(mapping(record.get("validation")).get("score")),
            decimal(record.get("update_norm")),
            size(record.get("bytes_up")),
            size(record.get("bytes_down")),
            seconds(timings_of(record).get("total_s")),
        ]
        cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
        mark = " (best)" if best is not None and record.get("round") == best else ""
        rows.append(
            f'<tr><th scope="row">{text(record.get("round", DASH))}{mark}</th><td>{text(record.get("status", DASH))}</td>{cells}</tr>'
        )
    return details(
        "Figures by round",
        plural(len(rows), "round"),
        plain_table("Figures by round", head, "".join(rows), words=("Round", "Status")),
    )


def _evaluations_table(run: Run) -> str:
    """How fast each evaluation was, and what its checks found."""
    rows = []
    for label, evaluation in run.evaluations.items():
        metrics = [mapping(item) for item in mapping(evaluation.get("scores")).values()]
        took_s = sum(filter(None, map(number, mapping(evaluation.get("seconds")).values())))
        scored = _total(metrics, "rows") + sum(number(item.get("n")) or 0 for item in metrics if "rows" not in item)
        speed = number(evaluation.get("rows_per_s")) or (scored / took_s if took_s else None)
        checks = [mapping(item.get("decoding")) for item in metrics if item.get("decoding")]
        differ = f"{count(_total(checks, 'rows_differ'))} of {count(_total(checks, 'rows_checked'))}" if checks else DASH
        reused = count(_total(metrics, "reused")) if any("reused" in item for item in metrics) else DASH
        peak = number(evaluation.get("peak_cache_gib"))
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
            name: evaluation[name]
            for name in ("model", "mode", "shots", "shortages", "tokens")
            if evaluation.get(name) is not None
        }
        for label, evaluation in run.evaluations.items()
        if not of_a_round(label)
    }
    head = ("Evaluation", "Rows", "Time", "Rows/s", "Peak cache", "Reused", "Decoded anew, differ")
    table = plain_table("Evaluations", head, "".join(rows), words=("Evaluation",))
    pairs = _pairs("Models evaluated", described) if any(described.values()) else ""
    return details("Evaluation speed and checks", plural(len(rows), "evaluation"), table + pairs)


def _total(items: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(number(item.get(key)) or 0.0 for item in items)


def _skipped(run: Run, catalogue: Sequence[BenchmarkInfo]) -> str:
    if not run.skipped:
        return ""
    titles = {benchmark.key: benchmark.title for benchmark in catalogue}
    items = "".join(f"<li><b>{text(titles.get(key, key))}</b>: {text(reason)}</li>" for key, reason in run.skipped.items())
    return details("Benchmarks not scored", plural(len(run.skipped), "benchmark"), f"<ul>{items}</ul>")


def _privacy(run: Run) -> str:
    if not run.privacy:
        return ""
    card = run.privacy
    epsilon, delta = number(card.get("epsilon")), number(card.get("delta"))
    if card.get("void"):
        guarantee = f"<p><b>No guarantee.</b> {text(card['void'])}</p>"
    elif epsilon is None or delta is None:
        guarantee = "<p>No bank has trained privately yet: nothing is spent.</p>"
    else:
        # (epsilon, delta)-differential privacy as a bound on a guess: what was believed with even odds may rise to e^eps / (1 + e^eps).
        surest = 1 / (1 + math.exp(-epsilon))
        guarantee = (
            f"<p>For every unit ({text(card.get('unit'))}): <b>ε = {epsilon:.3g}</b> at δ = {delta:.0e}, over all runs in the banks' ledgers. "
            "Somebody who knows everything else and cannot tell beforehand whether the unit took part (even odds) can be at most "
            f"{100 * surest:.5g} % sure of it afterwards, except with probability δ.</p>"
        )
    words = ("unit", "adjacency", "trusted", "mechanism", "formula", "sampling", "accountant", "composition", "audit")
    facts = {key: card[key] for key in (*words, "clip_norm", "noise_multiplier") if card.get(key) not in (None, "")}
    leaves = "".join(f"<li>{text(what)}: {text(tells)}</li>" for what, tells in mapping(card.get("leaves")).items())
    folded = [("What else leaves a bank", leaves), *((title, _items(card.get(key))) for title, key in (
        ("What is withheld", "withheld"), ("Known limits", "limits")
    ))]  # fmt: skip
    lists = "".join(details(title, "", f"<ul>{items}</ul>") for title, items in folded if items)
    return f"<h3>Privacy</h3>{guarantee}{_privacy_of_banks(mapping(card.get('banks')))}{_pairs('Privacy', facts)}{lists}"


def _items(values: Any) -> str:
    return "".join(f"<li>{text(value)}</li>" for value in values) if isinstance(values, Sequence) else ""


def _privacy_of_banks(banks: Mapping[str, Any]) -> str:
    """Planned and spent epsilon, bank by bank."""
    heads = ("Bank", "ε planned for this run", "ε spent, all runs", "δ", "Private rounds", "Refused rounds")
    rows = []
    for name, bank in banks.items():
        cells = [bank.get("epsilon_planned"), bank.get("epsilon_spent"), bank.get("delta")]
        shown_cells = ["–" if number(cell) is None else f"{number(cell):.3g}" for cell in cells]
        shown_cells += [count(bank.get("rounds")), count(bank.get("refused"))]
        rows.append(
            f'<tr><th scope="row">{text(name)}</th>'
            + "".join(f'<td class="number">{text(cell)}</td>' for cell in shown_cells)
            + "</tr>"
        )
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
    for name in ("config_sha256", "finished_at"):
        if run.result.get(name):
            values[name] = run.result[name]
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
