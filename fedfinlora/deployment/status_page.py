"""The aggregator's status page: one HTML page made anew at each look from the run folders, in the report's style and with its charts.

It is read only, loads nothing, and works without JavaScript (the browser then loads it again every few seconds; with JavaScript the changed part
is replaced in place). What comes from a run folder is untrusted and escaped.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs

from fedfinlora.deployment.certificates import WARN_DAYS, days_left
from fedfinlora.deployment.connections import connections
from fedfinlora.deployment.local_server import Answer
from fedfinlora.deployment.run_list import Replies, Watched, last_epsilon, watched_runs
from fedfinlora.errors import UserError
from fedfinlora.progress import BankLine
from fedfinlora.report.curves import run_charts
from fedfinlora.report.drawing import legend_list, picture
from fedfinlora.report.markup import DASH, count, decimal, number, percent, plain_table, plural, seconds, size, text
from fedfinlora.report.scores import systems_of, with_unlisted
from fedfinlora.report.style import STYLE as REPORT_STYLE
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.records import RoundLine
from fedfinlora.runfolder import ROUND_LABEL

REFRESH_S = 5
STYLE = (
    REPORT_STYLE
    + """
h2:first-of-type { margin-top: 32px; }
progress { width: 100%; height: 10px; accent-color: var(--accent); margin: 16px 0 0; }
.state { font-weight: 600; white-space: nowrap; }
.state::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%; background: var(--quiet); margin-right: 7px; }
.state.good::before { background: var(--gain); }
.state.busy::before { background: var(--accent); }
.state.bad::before { background: var(--fail); border-radius: 1px; }
.state.wait::before { background: none; border: 2px solid var(--quiet); }
.state small { white-space: normal; }
"""
)
SCRIPT = f""""use strict";
setInterval(async () => {{
  if (document.hidden) return;
  try {{
    const answer = await fetch(location.href, {{cache: "no-store"}});
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!answer.ok || !fresh) return;
    const scrolled = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    document.querySelector("main").replaceWith(fresh);
    document.querySelectorAll(".scroll").forEach((box, place) => {{ box.scrollLeft = scrolled[place] || 0; }});
    document.title = page.title;
    document.documentElement.dataset.refreshed = String(Number(document.documentElement.dataset.refreshed || 0) + 1);
  }} catch {{
    document.querySelector("#gone").hidden = false;
  }}
}}, {1000 * REFRESH_S});
"""
LOOKS = {
    "ok": "good", "online": "good", "completed": "good", "running": "busy", "training": "busy", "waiting": "wait", "offline": "bad",
    "failed": "bad", "died": "bad", "late": "bad", "error": "bad", "rejected": "bad", "refused": "bad",
}  # fmt: skip
"""State -> how it is marked, beside its name."""


def answer(home: Path, title: str, query: str) -> Answer:
    """The page as `fedfinlora.deployment.local_server` sends it; `run=N` in the query chooses the run to show."""
    runs = watched_runs(home)
    wanted = parse_qs(query).get("run", [""])[0]
    shown = next((one for one in runs if str(one.number) == wanted), runs[0] if runs else None)
    html = status_page(title, runs, shown, connections(home), certificate_warnings(home), time.time())
    return Answer(html, "text/html; charset=utf-8", headers={"Content-Security-Policy": _policy()})


def status_page(
    title: str, runs: Sequence[Watched], shown: Watched | None, states: Mapping[str, str], warnings: Sequence[str], now: float
) -> str:
    """The page as HTML text. `states` are the enrolled banks' connections; `now` is in Unix seconds."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    body = [
        f'<header><p class="kicker">fedfinlora aggregator</p><h1>{text(title)}</h1>'
        f'<p class="subtitle">{clock}, every {REFRESH_S} seconds anew. Read only.</p></header>'
        '<div class="banner failure" id="gone" hidden><b>No answer from the aggregator.</b> This page is not up to date.</div>',
        *(f'<div class="banner warning"><b>Certificate</b><p>{text(words)}</p></div>' for words in warnings),
        _present(shown, now) if shown else "<h2>No run yet</h2><p>Start one: python -m fedfinlora coordinator run …</p>",
        _banks(runs, shown, states),
        _refusals(shown) if shown else "",
        _scores(shown) if shown else "",
        _charts(shown) if shown else "",
        _runs(runs, shown),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>'
        f'<link rel="icon" href="data:,"><title>{text(_tab_title(title, shown))}</title><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


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


def _policy() -> str:
    """The browser runs this script and this style, asks this server alone, and loads nothing."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(STYLE)}; script-src {digest(SCRIPT)}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    )


def _tab_title(title: str, shown: Watched | None) -> str:
    if shown is None:
        return title
    progress = f" {shown.progress.rounds_done}/{shown.progress.rounds}" if shown.state == "running" else ""
    return f"{shown.state}{progress} – {title}"


def _state(word: str, note: str = "") -> str:
    small = f" <small>{text(note)}</small>" if note else ""
    return f'<span class="state {LOOKS.get(word, "")}">{text(word)}</span>{small}'


def _present(one: Watched, now: float) -> str:
    """The chosen run: where it is, how far, how long still."""
    progress = one.progress
    planned = progress.rounds or int(number(one.run.config.get("num_server_rounds")) or 0)
    reason = one.run.reason if one.state in ("failed", "stopped") else ""
    words = {"waiting": "waiting for banks", "died": "its process has ended without a result; resume it"}.get(one.state, "")
    failed = f'<div class="banner failure"><b>The run {text(one.state)}</b><p>{text(reason)}</p></div>' if reason else ""
    figures = [("Rounds done", f"{progress.rounds_done} of {planned or DASH}", _round_words(one))]
    if one.state == "running":
        elapsed = now - (progress.started_t or now)
        figures.append(("Phase", text(progress.phase), _evaluating(one)))
        figures.append(("Banks awaited", str(len(one.awaited)), ", ".join(one.awaited)))
        figures.append(("Time left, about", seconds(progress.seconds_left(now)), f"after {seconds(elapsed)}"))
    else:
        figures.append(("Wall time", seconds(one.run.result.wall_s.total), one.run.result.finished_at))
    last = one.run.rounds[-1] if one.run.rounds else RoundLine(0)
    figures.append(("Train loss", decimal(last.train_loss), f"held-out {decimal(last.holdout_loss)}"))
    up, down = (sum(line.bytes_up for line in one.run.rounds), sum(line.bytes_down for line in one.run.rounds))
    figures.append(("Sent by banks", size(up), f"received {size(down)}"))
    spent = [value for value, _ in one.epsilon.values() if value is not None]
    if spent:
        planned_most = max((value for _, value in one.epsilon.values() if value is not None), default=0.0)
        figures.append(("Epsilon spent, most", f"{max(spent):.3g}", f"planned for this run {planned_most:.3g}"))
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{value}<small>{text(note)}</small></dd></div>" for name, value, note in figures
    )
    bar = (
        f'<progress aria-label="rounds" max="{planned}" value="{min(progress.rounds_done, planned)}"></progress>'
        if planned
        else ""
    )
    described = ", ".join(filter(None, (one.run.model, progress.peft, progress.strategy)))
    return (
        f'<section id="present"><h2>{text(one.name)}</h2><p>{_state(one.state, words)}</p><p class="subtitle">{text(described)}</p>{failed}{bar}'
        f'<dl class="figures">{items}</dl></section>'
    )


def _round_words(one: Watched) -> str:
    progress = one.progress
    if one.state == "running" and progress.round > progress.rounds_done:
        return f"round {progress.round} is going on"
    return "stopped early: validation got no better" if progress.stopped_early else ""


def _evaluating(one: Watched) -> str:
    event = one.progress.evaluation
    return f"{event.get('label')}, {event.get('benchmark')} ({event.get('index')} of {event.get('of')})" if event else ""


def _banks(runs: Sequence[Watched], shown: Watched | None, states: Mapping[str, str]) -> str:
    """Every enrolled bank and every one of the chosen run: its connection, its part in the present round, what became of its last request."""
    replies = shown.replies if shown else {}
    lines = shown.progress.banks if shown else {}
    epsilon = last_epsilon(list(runs))
    private = bool(epsilon)
    head = ["Bank", "Connection", "This round", "Last outcome", "Round", "Accepted", "Rows", "Loss", "Training"]
    rows = "".join(
        _bank_row(name, states.get(name, ""), lines.get(name), replies.get(name), epsilon.get(name), private, shown)
        for name in sorted({*states, *replies, *lines})
    )
    if not rows:
        return '<section id="banks"><h2>Banks</h2><p>No bank is enrolled.</p></section>'
    table = plain_table("Banks", [*head, *(["ε spent"] if private else [])], rows, words=tuple(head[:4]))
    return f'<section id="banks"><h2>Banks</h2>{table}</section>'


def _bank_row(
    name: str, connection: str, line: BankLine | None, replied: Replies | None, spent: float | None, private: bool, shown: Watched | None
) -> str:  # fmt: skip
    line = line or BankLine(status="")
    in_round = line.status if shown and shown.state == "running" and shown.progress.round > shown.progress.rounds_done else ""
    accepted = DASH
    last, at, reason = "", DASH, ""
    if replied:
        accepted = f"{replied.outcomes.get('ok', 0)} of {sum(replied.outcomes.values())}"
        last, at, reason = replied.last_outcome, str(replied.last_round), replied.last_reason
    figures = [at, accepted, count(line.rows), decimal(line.train_loss), seconds(line.seconds)]
    figures += [DASH if spent is None else f"{spent:.3g}"] if private else []
    cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
    states = (_state(connection) if connection else "not enrolled", _state(in_round) if in_round else DASH)
    outcome = _state(last, reason) if last else DASH
    return f'<tr><th scope="row">{text(name)}</th><td>{states[0]}</td><td>{states[1]}</td><td class="reason">{outcome}</td>{cells}</tr>'


def _refusals(one: Watched) -> str:
    if not one.refusals:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(refused.bank)}</th><td><code>{text(refused.rule)}</code></td>'
        f'<td class="number">{refused.rounds}</td><td class="number">{refused.last_round}</td></tr>'
        for refused in one.refusals
    )
    table = plain_table("Refusals", ("Bank", "Rule", "Times", "Last round"), rows, words=("Bank", "Rule"))
    return f'<section id="refusals"><h2>Refused by banks</h2>{table}</section>'


def _scores(one: Watched) -> str:
    """Mean accuracy of every evaluation so far, over the benchmarks that it has: the base model, rounds, the rest."""
    whole = {label: _accuracies(scores) for label, scores in one.run.scores.items()}
    for label, values in one.progress.scores.items():
        if not ROUND_LABEL.fullmatch(label):
            whole.setdefault(label, {key: value for key, value in values.items() if value is not None})
    by_round = {f"round {line.round}": _accuracies(line.scores) for line in one.run.rounds}
    base = {label: whole.pop(label) for label in ("base",) if label in whole}
    found = {label: values for label, values in {**base, **by_round, **whole}.items() if values}
    if not found:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(label)}</th><td class="number">{percent(sum(values.values()) / len(values))}</td>'
        f'<td class="number">{len(values)}</td></tr>'
        for label, values in found.items()
    )
    table = plain_table("Scores", ("Adapter", "Mean accuracy, %", "Benchmarks"), rows, words=("Adapter",))
    return f'<section id="scores"><h2>Scores</h2>{table}</section>'


def _accuracies(scores: Scores) -> dict[str, float]:
    found = {key: metrics.value("accuracy") for key, metrics in scores.items()}
    return {key: value for key, value in found.items() if value is not None}


def _charts(one: Watched) -> str:
    charts = run_charts(one.run, with_unlisted([], systems_of([one.run])))
    drawn = "".join(
        f"<figure><figcaption><b>{text(chart.title)}</b> <span>{text(chart.subtitle)}</span></figcaption>{picture(chart)}"
        f"{legend_list(chart.legend)}</figure>"
        for chart in charts
    )
    return f'<section id="curves"><h2>Round by round</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _runs(runs: Sequence[Watched], shown: Watched | None) -> str:
    if not runs:
        return ""
    rows = []
    for one in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.listed_t))
        here = " aria-current=true" if one is shown else ""
        figures = [
            f"{one.progress.rounds_done} of {one.progress.rounds or DASH}",
            count(len(one.replies)),
            count(sum(r.rounds for r in one.refusals)),
        ]
        cells = "".join(f'<td class="number">{text(figure)}</td>' for figure in figures)
        rows.append(
            f'<tr><th scope="row"><a href="?run={one.number}"{here}>{text(one.name)}</a></th><td>{_state(one.state)}</td>{cells}'
            f"<td>{started}</td><td>{text(one.run.model)}</td></tr>"
        )
    head = ("Run", "State", "Rounds", "Banks", "Refusals", "Started", "Model")
    table = plain_table("Runs", head, "".join(rows), words=("Run", "State", "Started", "Model"))
    return f'<section id="runs"><h2>Runs</h2><p>{plural(len(runs), "run")}, the last one first.</p>{table}</section>'
