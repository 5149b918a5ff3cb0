"""The metrics of aggregator and bank say what lies in run folders, history and ledgers, and the server that shows them
only reads.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from watched_runs import a_bank_that_has_worked, make_home, without_the_run_folder

from fedfinlora.deployment import status_page
from fedfinlora.deployment.connections import connections
from fedfinlora.deployment.local_server import close, serve
from fedfinlora.deployment.metrics import BankMetrics, CoordinatorMetrics, page
from fedfinlora.deployment.processes import resident
from fedfinlora.deployment.run_list import note_run, watched_runs
from fedfinlora.deployment.watching import Listen, watch_bank, watch_coordinator
from fedfinlora.errors import UserError
from fedfinlora.privacy.history import Event, record

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[(name, frozenset(labels.items()))]


def test_an_aggregators_metrics_are_those_of_its_run_folders(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    found = samples(page(CoordinatorMetrics(home)).body)
    assert value(found, "fedfinlora_run_state", run="finished", state="completed") == 1
    assert value(found, "fedfinlora_run_state", run="going-on", state="running") == 1
    assert value(found, "fedfinlora_rounds_total", run="finished") == 3
    assert value(found, "fedfinlora_rounds_planned", run="going-on") == 4
    assert value(found, "fedfinlora_banks_awaited", run="going-on") == 1
    assert value(found, "fedfinlora_banks_awaited", run="finished") == 0
    # Both attempts of the resumed run count.
    assert value(found, "fedfinlora_replies_total", run="going-on", bank="bank-1", outcome="ok") == 1
    assert value(found, "fedfinlora_replies_total", run="finished", bank="bank-1", outcome="refused") == 1
    assert value(found, "fedfinlora_refusals_total", run="finished", bank="bank-1", rule="max_rank") == 1
    assert value(found, "fedfinlora_bytes_total", run="finished", bank="bank-0", direction="up") == 3 * 1_843_200
    assert value(found, "fedfinlora_round_seconds_sum", run="finished", part="round") == pytest.approx(36.3)
    assert value(found, "fedfinlora_round_seconds_count", run="finished", part="aggregate") == 3
    assert value(found, "fedfinlora_epsilon_spent", run="going-on", bank="bank-1") == 1.25
    assert value(found, "fedfinlora_loss", run="finished", rows="train") == pytest.approx(0.8)
    assert value(found, "fedfinlora_bank_online", bank="bank-0") == 1
    assert value(found, "fedfinlora_bank_online", bank="bank-1") == 0
    assert any(name == "fedfinlora_resident_memory_bytes" and rss > 2**20 for (name, _), rss in found.items())
    assert str(tmp_path) not in page(CoordinatorMetrics(home)).body


def test_metrics_follow_the_files_and_survive_folders_that_go(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    before = samples(page(CoordinatorMetrics(home)).body)
    folder = tmp_path / "runs" / "finished"
    with open(folder / "rounds.jsonl", "a") as lines:
        lines.write(json.dumps({"round": 4, "banks": [], "timings": {}}) + "\n")
    after = samples(page(CoordinatorMetrics(home)).body)
    assert value(after, "fedfinlora_rounds_total", run="finished") == 1 + value(
        before, "fedfinlora_rounds_total", run="finished"
    )
    without_the_run_folder(home, "finished")
    assert [one.name for one in watched_runs(home)] == ["going-on"]


def test_a_run_without_its_process_is_dead_and_without_a_server_waits(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    home = make_home(tmp_path / "home", process=ended.pid)
    (tmp_path / "runs" / "new").mkdir()
    note_run(home, tmp_path / "runs" / "new")
    assert {one.name: one.state for one in watched_runs(home)} == {
        "new": "waiting",
        "going-on": "died",
        "finished": "completed",
    }


def test_connections_are_unknown_without_a_database(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    assert connections(home) == {"bank-0": "online", "bank-1": "offline", "bank-2": "not registered"}
    (home / "state.db").write_text("not a database")
    assert set(connections(home).values()) == {"unknown"}


def test_a_banks_metrics_are_those_of_its_history(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history" / "north.jsonl"
    common = {"bytes_received": 400}
    for event in (
        Event("secret-run", 1, "begun", **common),
        Event(
            "secret-run",
            1,
            "sent",
            rows=8,
            steps=2,
            bytes_sent=400,
            **common,
            ledger_number=3,
            epsilon_spent=1.5,
            left_out=2,
        ),
        Event("secret-run", 2, "refused", code="policy-max_rank", **common),
        Event("secret-run", 3, "begun", **common),
        Event("secret-run", 3, "booked", **common, ledger_number=4, noise_multiplier=0.7, left_out=2),
    ):
        record(file, event)
    text = page(BankMetrics(tmp_path, "north")).body
    found = samples(text)
    assert value(found, "fedfinlora_bank_requests_total", outcome="sent", code="") == 1
    assert value(found, "fedfinlora_bank_requests_total", outcome="refused", code="max_rank") == 1
    assert value(found, "fedfinlora_bank_rows_total") == 8
    assert value(found, "fedfinlora_bank_bytes_sent_total") == 400
    assert value(found, "fedfinlora_bank_bytes_received_total") == 800
    assert not [name for name, labels in found if ("outcome", "booked") in labels]
    assert value(found, "fedfinlora_bank_requests_open") == 1
    assert value(found, "fedfinlora_bank_request_seconds_count", outcome="sent") == 1
    assert value(found, "fedfinlora_bank_epsilon_spent") == 1.5
    assert value(found, "fedfinlora_bank_ledger_lines") == 4
    assert value(found, "fedfinlora_bank_units_left_out") == 2
    for private in ("secret-run", "north", str(tmp_path)):
        assert private not in text


def test_a_round_that_was_booked_without_noise_shows_an_infinite_epsilon(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history" / "north.jsonl"
    assert value(samples(page(BankMetrics(tmp_path, "north")).body), "fedfinlora_bank_epsilon_spent") == 0
    record(file, Event("run", 1, "sent", ledger_number=1, noise_multiplier=0.0))
    assert value(samples(page(BankMetrics(tmp_path, "north")).body), "fedfinlora_bank_epsilon_spent") == float("inf")


def test_a_banks_budget_ledger_certificates_and_disk_are_shown(tmp_path: Path) -> None:
    home = a_bank_that_has_worked(tmp_path / "bank")
    text = page(BankMetrics(home, "north")).body
    found = samples(text)
    assert value(found, "fedfinlora_bank_epsilon_budget") == 8
    assert value(found, "fedfinlora_bank_epsilon_spent") == 6.5
    assert value(found, "fedfinlora_bank_ledger_head_lines") == value(found, "fedfinlora_bank_ledger_lines") == 3
    for name in ("ca.crt", "bank.crt"):
        ends = value(found, "fedfinlora_certificate_expiry_timestamp_seconds", certificate=name)
        assert ends == pytest.approx(time.time() + 86400 * 3650, abs=86400)
    free, size = (value(found, f"fedfinlora_filesystem_{what}_bytes", folder="home") for what in ("free", "size"))
    assert 0 < free < size
    for private in ("north", "/rows", str(tmp_path)):
        assert private not in text


def test_a_bank_without_a_budget_a_ledger_or_settings_shows_none(tmp_path: Path) -> None:
    home = a_bank_that_has_worked(tmp_path / "bank", budget_epsilon=0.0)
    (home / "ledger" / "head.json").unlink()
    names = {name for name, _ in samples(page(BankMetrics(home, "north")).body)}
    assert not {"fedfinlora_bank_epsilon_budget", "fedfinlora_bank_ledger_head_lines"} & names
    assert (
        "fedfinlora_bank_ledger_lines" in names
    )  # known to the history: the alert that the ledger is behind sees the difference
    (home / "bank.yaml").write_text("budget_epsilon: [")
    assert samples(page(BankMetrics(home, "north")).body)


def test_certificates_of_enrolled_banks_are_shown_but_not_of_revoked_ones(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    shutil.copy(home / "ca.crt", home / "enrolled" / "bank-0.crt")
    (home / "enrolled" / "bank-9.revoked-1").write_bytes(b"key")
    shutil.copy(home / "ca.crt", home / "enrolled" / "bank-9.revoked-1.crt")
    found = samples(page(CoordinatorMetrics(home)).body)
    name = "fedfinlora_certificate_expiry_timestamp_seconds"
    shown = {dict(labels)["certificate"] for each, labels in found if each == name}
    assert shown >= {"ca.crt", "server.crt", "enrolled/bank-0.crt"}
    assert not [label for label in shown if "bank-9" in label]


def test_a_running_run_shows_when_it_last_wrote_and_a_rejection_its_check(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    folder = tmp_path / "runs" / "going-on"
    os.utime(folder / "progress.jsonl", (1000.0, 1000.0))
    line = {"round": 2, "banks": [{"bank": "bank-0", "status": "rejected", "code": "ledger"}], "timings": {}}
    with open(folder / "rounds.jsonl", "a") as lines:
        lines.write(json.dumps(line) + "\n")
    found = samples(page(CoordinatorMetrics(home)).body)
    assert value(found, "fedfinlora_run_last_event_timestamp_seconds", run="going-on") == 1000
    assert ("fedfinlora_run_last_event_timestamp_seconds", frozenset({("run", "finished")})) not in found
    assert value(found, "fedfinlora_rejections_total", run="going-on", bank="bank-0", code="ledger") == 1
    for what in ("home", "runs"):
        assert value(found, "fedfinlora_filesystem_size_bytes", folder=what) > 0


def test_a_banks_detached_worker_is_counted(tmp_path: Path) -> None:
    (tmp_path / "worker.pid").write_text(str(os.getppid()))
    assert sum(one.processes for one in resident(tmp_path / "worker.pid").values()) > sum(
        one.processes for one in resident().values()
    )
    (tmp_path / "worker.pid").write_text("none")
    assert resident(tmp_path / "worker.pid")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    health = iter((False, True))
    found = watch_coordinator(make_home(tmp_path / "home"), "aggregator.example", lambda: next(health), _free())
    assert found is not None
    yield found
    close(found)


def _free() -> Listen:
    probe = serve({}, 0)
    close(probe)
    return Listen(probe.server_port)


def ask(server: ThreadingHTTPServer, path: str, method: str = "GET", host: str = "") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers={"Host": host} if host else {})
    return connection.getresponse()


def test_the_server_reads_only_and_answers_this_machine_alone(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        answer = ask(server, "/", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert ask(server, "/", host="evil.example").status == 403
    assert ask(server, "/../etc/passwd").status == 404
    head = ask(server, "/metrics", "HEAD")
    assert (head.status, head.read()) == (200, b"")
    assert [ask(server, "/healthz").status for _ in range(2)] == [503, 200]
    assert ask(server, "/healthz").status == 500  # the check itself has failed: said, not hidden


def test_pages_forbid_what_they_do_not_need(server: ThreadingHTTPServer) -> None:
    answer = ask(server, "/")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Python" not in str(answer.headers["Server"])
    assert status_page.SCRIPT in answer.read().decode()


def test_a_port_that_is_taken_is_an_error_and_0_is_none(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--metrics-port"):
        watch_bank(tmp_path, "north", lambda: True, Listen(server.server_port))
    assert watch_bank(tmp_path, "north", lambda: True, Listen()) is None
