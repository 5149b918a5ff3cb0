"""Everything about one run below the scores: curves, traffic and time of the banks, configuration, manifest, command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedfinlora.report.charts import Format, Series, bar_chart, line_chart
from fedfinlora.report.markup import DASH, count, decimal, details, number, percent, plain_table, plural, seconds, size, text
from fedfinlora.report.reading import Run, bank_name, banks_of, timings_of
from fedfinlora.report.reproduce import command_line, flatten, shown
from fedfinlora.report.scores import BenchmarkInfo, System, common_accuracy_keys, mean_accuracy, score_of

NAMED_BANKS = 7
"""More banks than this share one grey line style: eight colours are as many as can be told apart."""
MOST_BARS = 150
"""Above this, bars are means over the rounds, one for each bank."""

ValueOf = Callable[[Mapping[str, Any], Mapping[str, Any]], float | None]
"""A figure of one bank from (the line of rounds.jsonl, the bank's part of it)."""

CONFIGURATION_HEAD = ("Key", "Value", "Default")


def run_section(run: Run, catalogue: Sequence[BenchmarkInfo], defaults: Mapping[str, Any]) -> str:
    parts = [
        _charts(run, catalogue),
        _banks_table(run),
        _rounds_table(run),
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
    shares = [f"{name} {seconds(wall_s[name])}" for name in ("train", "evaluate", "aggregate") if number(wall_s.get(name))]
    figures = [
        ("Rows trained", count(run.result.get("rows_trained")), f"{count(run.result.get('tokens_trained'))} tokens"),
        ("Wall time", seconds(wall_s.get("total")), ", ".join(shares)),
        ("Sent by banks", size(run.result.get("bytes_up")), f"received {size(run.result.get('bytes_down'))}"),
        ("Replies of banks", f"{len(counted) - not_ok} of {len(counted)}", "accepted" if not_ok else "all accepted"),
    ]
    if not counted:
        figures.pop()
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(figure)}<small>{text(detail)}</small></dd></div>"
        for name, figure, detail in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _charts(run: Run, catalogue: Sequence[BenchmarkInfo]) -> str:
    if not run.rounds:
        return ""
    rounds = [int(number(record.get("round")) or index) for index, record in enumerate(run.rounds, start=1)]
    figures = [
        line_chart(
            title, rounds, [_global_line(run, name), *_bank_lines(run, name)], "mean over answer tokens", lambda v: f"{v:.2f}"
        )
        for title, name in (("Train loss", "train_loss"), ("Held-out loss", "holdout_loss"))
    ]
    figures.append(_score_chart(run, rounds, catalogue))
    figures.append(_bank_bars(run, rounds, "Training time", "seconds", _train_s, seconds))
    figures.append(_bank_bars(run, rounds, "Bytes sent by each bank", "bytes", _bytes_up, size))
    figures.append(_bank_bars(run, rounds, "Bytes received by each bank", "bytes", _bytes_down, size))
    drawn = "".join(filter(None, figures))
    return f'<h3>Training, round by round</h3><div class="charts">{drawn}</div>' if drawn else ""


def _global_line(run: Run, name: str) -> Series:
    label = "all banks" if len(run.banks) > 1 else (run.banks or ["run"])[0]
    return Series(label, tuple(number(record.get(name)) for record in run.rounds), slot=0, thick=True)


def _bank_lines(run: Run, name: str) -> list[Series]:
    banks = run.banks
    if len(banks) < 2:
        return []
    return [
        Series(
            bank,
            tuple(number(_bank(record, bank).get(name)) for record in run.rounds),
            slot=_bank_slot(index, len(banks)),
            legend="" if len(banks) <= NAMED_BANKS else f"each of {len(banks)} banks",
        )
        for index, bank in enumerate(banks)
    ]


def _bank_slot(index: int, banks: int) -> int:
    """Slot 0 belongs to the global line."""
    return index + 1 if banks <= NAMED_BANKS else 4


def _score_chart(run: Run, rounds: Sequence[int], catalogue: Sequence[BenchmarkInfo]) -> str:
    """Accuracy by round where it was measured: the mean, and each benchmark if they are few."""
    scored = [
        (place, System(run.mode, "", "", run.model, {key: score_of(metrics) for key, metrics in record["scores"].items()}))
        for place, record in zip(rounds, run.rounds, strict=True)
        if isinstance(record.get("scores"), Mapping) and record["scores"]
    ]
    systems = [system for _, system in scored]
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    if not keys:
        return ""
    titles = {benchmark.key: benchmark.title for benchmark in catalogue}
    lines = [Series(f"mean of {len(keys)}", tuple(mean_accuracy(system, keys) for system in systems), slot=0, thick=True)]
    if 1 < len(keys) <= NAMED_BANKS:
        lines += [
            Series(titles.get(key, key), tuple(system.scores[key].value for system in systems), slot=index + 1)
            for index, key in enumerate(keys)
        ]
    return line_chart(
        "Accuracy", [place for place, _ in scored], lines, "share of right answers", lambda v: f"{percent(v, 0)} %"
    )


def _bank_bars(run: Run, rounds: Sequence[int], title: str, y_label: str, value_of: ValueOf, y_format: Format) -> str:
    """One bar for each bank in each round, or the banks' means where that would be too many to see."""
    banks = run.banks
    by_bank = {
        bank: tuple(value_of(record, _bank(record, bank)) if _bank(record, bank) else None for record in run.rounds)
        for bank in banks
    }
    if len(banks) * len(rounds) > MOST_BARS:
        means = []
        for values in by_bank.values():
            known = [value for value in values if value is not None]
            means.append(sum(known) / len(known) if known else None)
        return bar_chart(
            title, banks, [Series("", tuple(means), slot=0)], f"{y_label}, mean of {len(rounds)} rounds", y_format, "bank"
        )
    series = [
        Series(
            bank, by_bank[bank], _bank_slot(index, len(banks)), notes=tuple(_note(_bank(record, bank)) for record in run.rounds)
        )
        for index, bank in enumerate(banks)
    ]
    return bar_chart(title, [str(place) for place in rounds], series, y_label, y_format)


def _bank(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((bank for bank in banks_of(record) if bank_name(bank) == name), {})


def _bytes_up(record: Mapping[str, Any], bank: Mapping[str, Any]) -> float | None:
    return number(bank.get("bytes_up"))


def _bytes_down(record: Mapping[str, Any], bank: Mapping[str, Any]) -> float | None:
    return number(bank.get("bytes_down"))


def _train_s(record: Mapping[str, Any], bank: Mapping[str, Any]) -> float | None:
    return number(timings_of(record, bank_name(bank)).get("train_s"))


def _note(bank: Mapping[str, Any]) -> str:
    status = str(bank.get("status", "ok"))
    if not bank or status == "ok":
        return ""
    return f"{status}: {bank.get('reason') or bank.get('code') or 'no reason given'}"


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
    replies = [(record, bank) for record in run.rounds if (bank := _bank(record, name))]
    accepted = [(record, bank) for record, bank in replies if bank.get("status") == "ok"]

    def total(key: str) -> float:
        return sum(number(bank.get(key)) or 0.0 for _, bank in replies)

    def course(key: str) -> str:
        known = [value for _, bank in accepted if (value := number(bank.get(key))) is not None]
        return DASH if not known else decimal(known[0]) if len(known) == 1 else f"{decimal(known[0])} → {decimal(known[-1])}"

    speeds = [number(timings_of(record, name).get("tokens_per_s")) for record, _ in accepted]
    known_speeds = [speed for speed in speeds if speed is not None]
    speed = count(sum(known_speeds) / len(known_speeds)) if known_speeds else DASH
    reasons = Counter(_note(bank) for _, bank in replies if _note(bank))
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
    head = ("Round", "Status", "Accepted", "Train loss", "Held-out loss", "Update norm", "Sent", "Received", "Time")
    rows = []
    for record in run.rounds:
        banks = banks_of(record)
        figures = [
            f"{sum(bank.get('status') == 'ok' for bank in banks)} of {len(banks)}",
            decimal(record.get("train_loss")),
            decimal(record.get("holdout_loss")),
            decimal(record.get("update_norm")),
            size(record.get("bytes_up")),
            size(record.get("bytes_down")),
            seconds(timings_of(record).get("total_s")),
        ]
        cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
        rows.append(
            f'<tr><th scope="row">{text(record.get("round", DASH))}</th><td>{text(record.get("status", DASH))}</td>{cells}</tr>'
        )
    return details(
        "Figures by round",
        plural(len(rows), "round"),
        plain_table("Figures by round", head, "".join(rows), words=("Round", "Status")),
    )


def _skipped(run: Run, catalogue: Sequence[BenchmarkInfo]) -> str:
    if not run.skipped:
        return ""
    titles = {benchmark.key: benchmark.title for benchmark in catalogue}
    items = "".join(f"<li><b>{text(titles.get(key, key))}</b>: {text(reason)}</li>" for key, reason in run.skipped.items())
    return details("Benchmarks not scored", plural(len(run.skipped), "benchmark"), f"<ul>{items}</ul>")


def _privacy(run: Run) -> str:
    if not run.privacy:
        return ""
    return f"<h3>Privacy</h3>{_pairs('Privacy', run.privacy)}"


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
