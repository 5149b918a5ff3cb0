"""The aggregator's status page: made from the run folders at each look, in the report's style.

It loads nothing, and works without JavaScript (the browser then loads it again every few seconds). What comes from a
run folder is untrusted and escaped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fedfinlora.deployment.certificates import WARN_DAYS, days_left
from fedfinlora.deployment.connections import connections
from fedfinlora.deployment.local_server import Response
from fedfinlora.deployment.run_list import Replies, Watched, last_epsilon, watched_runs
from fedfinlora.errors import UserError
from fedfinlora.report.benchmarks import with_unlisted
from fedfinlora.report.curves import run_charts
from fedfinlora.report.formats import DASH, count, decimal, percent, seconds, significant, size
from fedfinlora.report.systems import systems_of
from fedfinlora.report.tables import Table
from fedfinlora.report.templates import allowed, render
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.events import BankDone
from fedfinlora.run.folder import ROUND_LABEL
from fedfinlora.run.records import RoundLine

REFRESH_S = 5
STYLE, SCRIPT = render("style.css"), render("status.js", refresh_s=REFRESH_S)
POLICY = allowed(STYLE, SCRIPT, "connect-src 'self'", "frame-ancestors 'self'")
"""The browser asks this server alone."""
LOOKS = {
    "ok": "good", "online": "good", "completed": "good", "running": "busy", "training": "busy", "waiting": "wait",
    "offline": "bad", "failed": "bad", "died": "bad", "late": "bad", "error": "bad", "rejected": "bad",
    "refused": "bad",
}  # fmt: skip
"""State -> how it is marked, next to its name."""


def answer(home: Path, title: str, query: str) -> Response:
    """`run=N` in the query chooses the run to show."""
    runs = watched_runs(home)
    wanted = parse_qs(query).get("run", [""])[0]
    shown = next((one for one in runs if str(one.number) == wanted), runs[0] if runs else None)
    html = status_page(title, runs, shown, connections(home), certificate_warnings(home), time.time())
    return Response(html, "text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})


def status_page(
    title: str,
    runs: Sequence[Watched],
    shown: Watched | None,
    states: Mapping[str, str],
    warnings: Sequence[str],
    now: float,
) -> str:
    """`states` are the enrolled banks' connections; `now` is in Unix seconds."""
    epsilon = last_epsilon(list(runs))
    columns = ("Connection", "This round", "Last outcome", "Round", "Accepted", "Rows", "Loss", "Training")
    return render(
        "status.html",
        title=title,
        tab=_tab_title(title, shown),
        style=STYLE,
        script=SCRIPT,
        refresh_s=REFRESH_S,
        clock=_local_time(now, "%Y-%m-%d %H:%M:%S %Z"),
        warnings=warnings,
        looks=LOOKS,
        runs=runs,
        shown=shown,
        present=_present(shown, now) if shown else None,
        banks=_banks(shown, states, epsilon),
        bank_head=("Bank", *columns, *(["ε spent"] if epsilon else [])),
        scores=_scores(shown) if shown else None,
        charts=run_charts(shown.run, with_unlisted([], (key for one in systems_of([shown.run]) for key in one.scores)))
        if shown
        else [],
        started={one.number: _local_time(one.listed_t, "%Y-%m-%d %H:%M") for one in runs},
    )


def _local_time(t: float, form: str) -> str:
    return time.strftime(form, time.localtime(t))


def certificate_warnings(home: Path) -> list[str]:
    """A sentence for each certificate that has ended or will soon."""
    found = []
    renew = "python -m fedfinlora coordinator renew"
    for name, advice in (("ca.crt", "make a new authority"), ("server.crt", renew), ("signing.crt", renew)):
        try:
            left = days_left(home / name)
        except UserError:
            found.append(f"{name} cannot be read.")
            continue
        if left < WARN_DAYS:
            when = f"ended {-left:.0f} days ago" if left < 0 else f"ends in {left:.0f} days"
            found.append(f"{name} {when}: {advice} (docs/deployment.md).")
    return found


def _tab_title(title: str, shown: Watched | None) -> str:
    if shown is None:
        return title
    progress = f" {shown.progress.rounds_done}/{shown.progress.rounds}" if shown.state == "running" else ""
    return f"{shown.state}{progress} – {title}"


def _present(one: Watched, now: float) -> dict[str, Any]:
    """The chosen run: where it is, how far, how long still."""
    progress, result = one.progress, one.run.result
    planned = one.rounds
    figures = [("Rounds done", f"{progress.rounds_done} of {planned or DASH}", _round_words(one))]
    if one.state == "running":
        elapsed = now - (progress.started_t or now)
        figures.append(("Phase", progress.phase, _evaluating(one)))
        figures.append(("Banks awaited", str(len(one.awaited)), ", ".join(one.awaited)))
        figures.append(("Time left, about", seconds(progress.seconds_left(now)), f"after {seconds(elapsed)}"))
    else:
        figures.append(("Wall time", seconds(result.wall_s.total), result.finished_at))
    last = one.run.rounds[-1] if one.run.rounds else RoundLine(0)
    figures.append(("Train loss", decimal(last.train_loss), f"held-out {decimal(last.holdout_loss)}"))
    up, down = (sum(line.bytes_up for line in one.run.rounds), sum(line.bytes_down for line in one.run.rounds))
    figures.append(("Sent by banks", size(up), f"received {size(down)}"))
    spent = [value for value, _ in one.epsilon.values() if value is not None]
    if spent:
        most = max((value for _, value in one.epsilon.values() if value is not None), default=0.0)
        figures.append(("Epsilon spent, most", significant(max(spent)), f"planned for this run {significant(most)}"))
    return {
        "note": {"waiting": "waiting for banks", "died": "its process has ended without a result; resume it"}.get(
            one.state, ""
        ),
        "described": ", ".join(filter(None, (one.run.model, progress.peft, progress.strategy))),
        "reason": one.run.reason if one.state in ("failed", "stopped") else "",
        "planned": planned,
        "done": min(progress.rounds_done, planned),
        "figures": figures,
    }


def _round_words(one: Watched) -> str:
    progress = one.progress
    if one.state == "running" and progress.round > progress.rounds_done:
        return f"round {progress.round} is running"
    return "stopped early: validation got no better" if progress.stopped_early else ""


def _evaluating(one: Watched) -> str:
    event = one.progress.evaluation
    return f"{event.label}, {event.benchmark} ({event.index} of {event.of})" if event else ""


def _banks(shown: Watched | None, states: Mapping[str, str], epsilon: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every enrolled bank and every one of the chosen run. `epsilon` is what each has spent."""
    replies, lines = (shown.replies, shown.progress.banks) if shown else ({}, {})
    in_round = shown is not None and shown.state == "running" and shown.progress.round > shown.progress.rounds_done
    found = []
    for name in sorted({*states, *replies, *lines}):
        line, replied = lines.get(name, BankDone()), replies.get(name, Replies({}))
        asked = sum(replied.outcomes.values())
        figures = [str(replied.last_round), f"{replied.outcomes.get('ok', 0)} of {asked}"] if asked else [DASH, DASH]
        figures += [count(line.rows), decimal(line.train_loss), seconds(line.seconds)]
        figures += [significant(epsilon.get(name))] if epsilon else []
        status = line.status if in_round else ""
        found.append(
            {"name": name, "connection": states.get(name, ""), "in_round": status, "last": replied, "figures": figures}
        )
    return found


def _scores(one: Watched) -> Table:
    """Mean accuracy of every evaluation so far, over the benchmarks that it has."""
    whole = {label: _accuracies(scores) for label, scores in one.run.scores.items()}
    for label, values in one.progress.scores.items():
        if not ROUND_LABEL.fullmatch(label):
            whole.setdefault(label, {key: value for key, value in values.items() if value is not None})
    by_round = {f"round {line.round}": _accuracies(line.scores) for line in one.run.rounds}
    base = {label: whole.pop(label) for label in ("base",) if label in whole}
    rows = [
        [label, percent(sum(values.values()) / len(values)), str(len(values))]
        for label, values in {**base, **by_round, **whole}.items()
        if values
    ]
    return Table("Scores", ("Adapter", "Mean accuracy, %", "Benchmarks"), rows)


def _accuracies(scores: Scores) -> dict[str, float]:
    found = {key: metrics.value("accuracy") for key, metrics in scores.items()}
    return {key: value for key, value in found.items() if value is not None}
