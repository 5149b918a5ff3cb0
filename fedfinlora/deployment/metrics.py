"""Prometheus metrics of an aggregator and of a bank, computed at each scrape from what is on disk.

No metric holds text of a row, a path or a key. Names of runs and banks are labels at the aggregator; a bank's own have
neither. Alert rules and a dashboard over them: docs/deploy/alerts.yaml, docs/deploy/grafana-dashboard.json.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from fedfinlora.deployment.bank_settings import SETTINGS, read_settings
from fedfinlora.deployment.certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SIGNING_CERTIFICATE, days_left
from fedfinlora.deployment.connections import connections
from fedfinlora.deployment.coordinator_home import enrolled
from fedfinlora.deployment.local_server import Response
from fedfinlora.deployment.processes import resident
from fedfinlora.deployment.reach import AUTHORITY, CERTIFICATE
from fedfinlora.deployment.run_list import Watched, watched_runs
from fedfinlora.errors import UserError
from fedfinlora.files import changed_t
from fedfinlora.privacy.history import history_file, read_history
from fedfinlora.privacy.ledger_files import read_head
from fedfinlora.report.formats import number
from fedfinlora.run.progress import FILE_NAME
from fedfinlora.wire.reasons import UNREAD

PARTS = {"round": "total_s", "train": "train_s", "aggregate": "aggregate_s"}
"""Part of a round -> its name in a line's timings. `train` is the wait for all replies."""


@dataclass
class _Samples:
    """Label values -> a sum and how many were added."""

    sums: dict[tuple[str, ...], float] = field(default_factory=dict)
    counts: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, labels: tuple[str, ...], value: object, times: int = 1) -> None:
        self.sums[labels] = self.sums.get(labels, 0.0) + (number(value) or 0.0)
        self.counts[labels] = self.counts.get(labels, 0) + times

    def counter(self, name: str, meaning: str, labels: Sequence[str]) -> Metric:
        return _filled(CounterMetricFamily(name, meaning, labels=labels), self.sums)

    def summary(self, name: str, meaning: str, labels: Sequence[str]) -> Metric:
        family = SummaryMetricFamily(name, meaning, labels=labels)
        for values, total in self.sums.items():
            family.add_metric(values, count_value=self.counts[values], sum_value=total)
        return family


class CoordinatorMetrics(Collector):
    def __init__(self, home: Path) -> None:
        self.home = home

    def collect(self) -> Iterator[Metric]:
        runs = watched_runs(self.home)
        yield from _of_runs(runs)
        yield from _of_rounds(runs)
        states = connections(self.home)
        online = {(bank,): float(state == "online") for bank, state in states.items()}
        yield _gauge("fedfinlora_bank_online", "1 while the SuperLink gets the bank's heartbeat", ("bank",), online)
        banks = [f"enrolled/{bank}.crt" for bank in enrolled(self.home)]
        names = (CA_CERTIFICATE, SERVER_CERTIFICATE, SIGNING_CERTIFICATE, *banks)
        certificates = {name: self.home / name for name in names}
        folders = {"home": self.home} | ({"runs": runs[0].run.folder} if runs else {})
        yield from _of_the_machine(certificates, folders)


class BankMetrics(Collector):
    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name

    def collect(self) -> Iterator[Metric]:
        state = self.home / "state"
        history = read_history(history_file(state, self.name))
        yield from _of_history(history)
        yield from _of_bookings(history)
        yield from _of_the_budget(self.home)
        certificates = {name: self.home / name for name in (AUTHORITY, CERTIFICATE)}
        yield from _of_the_machine(certificates, {"home": self.home}, state / "worker.pid")


def page(collector: Collector) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return Response(generate_latest(registry).decode(), CONTENT_TYPE_LATEST)


def _of_runs(runs: Iterable[Watched]) -> Iterator[Metric]:
    states: dict[tuple[str, ...], float] = {}
    planned: dict[tuple[str, ...], float] = {}
    awaited: dict[tuple[str, ...], float] = {}
    replies: dict[tuple[str, ...], float] = {}
    refusals: dict[tuple[str, ...], float] = {}
    epsilon: dict[tuple[str, ...], float] = {}
    written: dict[tuple[str, ...], float] = {}
    for one in runs:
        if one.state == "running":
            written[(one.name,)] = changed_t(one.run.folder / FILE_NAME)
        states[(one.name, one.state)] = 1.0
        planned[(one.name,)] = float(one.rounds)
        awaited[(one.name,)] = float(len(one.awaited))
        for bank, replied in one.replies.items():
            replies |= {(one.name, bank, outcome): float(times) for outcome, times in replied.outcomes.items()}
        refusals |= {(one.name, refused.bank, refused.rule): float(refused.rounds) for refused in one.refusals}
        epsilon |= {(one.name, bank): spent for bank, (spent, _) in one.epsilon.items() if spent is not None}
    yield _gauge("fedfinlora_run_state", "1 for the state that a run is in", ("run", "state"), states)
    meaning = "When the server of a running run last wrote an event"
    yield _gauge("fedfinlora_run_last_event_timestamp_seconds", meaning, ("run",), written)
    yield _gauge("fedfinlora_rounds_planned", "Rounds that a run is to have", ("run",), planned)
    yield _gauge("fedfinlora_banks_awaited", "Banks still to answer in the present round", ("run",), awaited)
    family = CounterMetricFamily(
        "fedfinlora_replies", "Requests by what became of them: ok, late, error, rejected, refused",
        labels=("run", "bank", "outcome")
    )  # fmt: skip
    yield _filled(family, replies)
    family = CounterMetricFamily("fedfinlora_refusals", "Refusals by the bank's rule", labels=("run", "bank", "rule"))
    yield _filled(family, refusals)
    yield _gauge(
        "fedfinlora_epsilon_spent",
        "Epsilon that a bank has spent over all runs, as last reported",
        ("run", "bank"),
        epsilon,
    )


def _of_rounds(runs: Iterable[Watched]) -> Iterator[Metric]:
    rounds, moved, took, trained, rejected = _Samples(), _Samples(), _Samples(), _Samples(), _Samples()
    loss: dict[tuple[str, ...], float] = {}
    for one in runs:
        rounds.add((one.name,), len(one.run.rounds))
        for line in one.run.rounds:
            for part, name in PARTS.items():
                took.add((one.name, part), getattr(line.timings, name))
            for entry in line.banks:
                who = (one.name, entry.bank)
                moved.add((*who, "up"), entry.bytes_up)
                moved.add((*who, "down"), entry.bytes_down)
                if entry.is_ok:
                    trained.add(who, line.timings.of(entry.bank).train_s)
                if entry.status == "rejected":
                    rejected.add((*who, entry.code), 1)
            for kind, value in (("train", line.train_loss), ("holdout", line.holdout_loss)):
                loss |= {} if value is None else {(one.name, kind): value}
    yield rounds.counter("fedfinlora_rounds", "Rounds that are done and saved", ("run",))
    yield moved.counter(
        "fedfinlora_bytes", "Adapter bytes from banks (up) and to banks (down)", ("run", "bank", "direction")
    )
    meaning = "Replies that the server's checks rejected, in rounds that are done, by the check"
    yield rejected.counter("fedfinlora_rejections", meaning, ("run", "bank", "code"))
    yield took.summary("fedfinlora_round_seconds",
        "Seconds of a round: all of it, the wait for replies (train), the server's step", ("run", "part"))  # fmt: skip
    yield trained.summary(
        "fedfinlora_bank_train_seconds", "Seconds that a bank says it trained in a round", ("run", "bank")
    )
    yield _gauge("fedfinlora_loss", "Loss of the last round, mean over answer tokens", ("run", "rows"), loss)


def _of_history(lines: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    requests, work, took = _Samples(), _Samples(), _Samples()
    begun: tuple[Any, float] | None = None
    for line in lines:
        request, outcome, at = (line.get("run"), line.get("round")), str(line.get("outcome")), _seconds_of(line)
        if outcome == "begun":
            begun = (request, at)
        if outcome in ("begun", "booked"):
            continue
        requests.add((outcome, str(line.get("code") or "").removeprefix("policy-")), 1)
        if line.get("unread"):
            requests.add(("refused", UNREAD), line["unread"])
        for name in ("rows", "steps", "bytes_sent", "bytes_received"):
            work.add((name,), line.get(name))
        if begun is not None and begun[0] == request:
            took.add((outcome,), at - begun[1])
            begun = None
    meaning = "Requests that reached the bank, by outcome (sent, refused, failed) and by rule or code"
    yield requests.counter("fedfinlora_bank_requests", meaning, ("outcome", "code"))
    for name, meaning in (
        ("rows", "Rows trained on, repeats counted"), ("steps", "Optimiser steps"),
        ("bytes_sent", "Bytes of deltas that left"),
        ("bytes_received", "Bytes of adapters that came"),
    ):  # fmt: skip
        yield CounterMetricFamily(f"fedfinlora_bank_{name}", meaning, value=work.sums.get((name,), 0.0))
    yield took.summary(
        "fedfinlora_bank_request_seconds", "From begun to the end of a request, in whole seconds", ("outcome",)
    )
    yield GaugeMetricFamily(
        "fedfinlora_bank_requests_open", "1 while a request is being worked on", value=float(begun is not None)
    )
    last = _seconds_of(lines[-1]) if lines else 0.0
    yield GaugeMetricFamily(
        "fedfinlora_bank_last_request_timestamp_seconds", "When the history was last added to", value=last
    )


def _of_bookings(lines: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """What the last booked round says. The ledger itself is checked where it is spent, and by `privacy ledger`."""
    booked = [line for line in lines if line.get("ledger_number") is not None]
    last = booked[-1] if booked else {}
    sent = [line for line in booked if line.get("outcome") == "sent"]
    epsilon = number(sent[-1].get("epsilon_spent")) if sent else 0.0
    if epsilon is None:
        epsilon = math.inf
    meaning = "Largest epsilon of the rows in the last round that was booked and sent, over all runs"
    yield GaugeMetricFamily("fedfinlora_bank_epsilon_spent", meaning, value=epsilon)
    meaning = "Lines of the bank's privacy ledger after the last booked round"
    yield GaugeMetricFamily("fedfinlora_bank_ledger_lines", meaning, value=number(last.get("ledger_number")) or 0.0)
    meaning = "Units excluded from the last booked round, their budget spent"
    yield GaugeMetricFamily("fedfinlora_bank_units_left_out", meaning, value=number(last.get("left_out")) or 0.0)


def _of_the_budget(home: Path) -> Iterator[Metric]:
    """What may be spent, and how far the ledger on the disk has come. Neither is there before `bank init` has ended."""
    try:
        budget = read_settings(home / SETTINGS)[0].budget_epsilon
    except UserError:
        budget = 0.0
    meaning = "The most epsilon that may be spent on any row, over all runs; none without a budget"
    yield _gauge("fedfinlora_bank_epsilon_budget", meaning, (), {(): budget} if budget else {})
    head = read_head(home / "ledger")
    meaning = "Lines of the bank's privacy ledger as its own head file says; none without one"
    yield _gauge("fedfinlora_bank_ledger_head_lines", meaning, (), {(): float(head.number)} if head else {})


def _of_the_machine(
    certificates: Mapping[str, Path], folders: Mapping[str, Path], worker_file: Path | None = None
) -> Iterator[Metric]:
    """`certificates`, `folders`: label -> where it is. What cannot be read has no sample."""
    found = resident(worker_file)
    rss = {(program,): float(one.rss_bytes) for program, one in found.items()}
    yield _gauge(
        "fedfinlora_resident_memory_bytes", "Resident memory (RSS) of this party's processes", ("program",), rss
    )
    counts = {(program,): float(one.processes) for program, one in found.items()}
    yield _gauge("fedfinlora_processes", "This party's processes", ("program",), counts)
    ends, free, size = {}, {}, {}
    for label, file in certificates.items():
        try:
            ends[(label,)] = float(round(time.time() + 86400 * days_left(file)))
        except UserError:
            continue
    meaning = "When a certificate ends, Unix seconds"
    yield _gauge("fedfinlora_certificate_expiry_timestamp_seconds", meaning, ("certificate",), ends)
    for label, folder in folders.items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        free[(label,)], size[(label,)] = float(usage.free), float(usage.total)
    meaning = "Free bytes of the file system that holds the folder"
    yield _gauge("fedfinlora_filesystem_free_bytes", meaning, ("folder",), free)
    yield _gauge("fedfinlora_filesystem_size_bytes", "Size of the file system that holds the folder", ("folder",), size)


def _gauge(name: str, meaning: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    return _filled(GaugeMetricFamily(name, meaning, labels=labels), values)


def _filled(family: Any, values: Mapping[Any, float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    filled: Metric = family
    return filled


def _seconds_of(line: Mapping[str, Any]) -> float:
    """The time of a line of the history as Unix seconds; 0 where it has none."""
    try:
        return datetime.strptime(str(line.get("time")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return 0.0
