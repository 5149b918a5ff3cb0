"""A coordinator and two banks as processes of their own, over TLS with node authentication, by the documented
commands. What is started or run is a process; the other commands are typed in this one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from fake_grid import FakeGrid
from parties import SOON, TINY, Machine, certifies, until, when
from tiny_runs import rounds_of, write_lines, write_rows

from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.deployment.bank_settings import read_settings
from fedfinlora.deployment.certificates import make_authority
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.errors import UserError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.history import read_history
from fedfinlora.privacy.ledger import Rows, Spending, book
from server_app.federated import run_federated

AS_JSON = {"FEDFINLORA_LOG": "json"}


def metrics_of(port: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def json_lines(log: Path) -> list[dict[str, object]]:
    """The project's own lines of a log; Flower's stand between them as text."""
    found = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith('{"time"')]
    assert found
    return found


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    found = {name: Machine(tmp_path / name) for name in ("aggregator", "north", "south", "stranger")}
    yield found
    for machine in reversed(found.values()):
        machine.ends()


@pytest.mark.slow
def test_a_federation_from_nothing(machines: dict[str, Machine], tmp_path: Path) -> None:
    aggregator, north, south, stranger = machines.values()
    port = str(free_port())
    done = aggregator.enters("coordinator", "init", "--listen", "127.0.0.1", "--port", port)
    assert done.returncode == 0, done.stderr
    authority = aggregator.home / ".fedfinlora" / "coordinator" / "ca.crt"
    again = aggregator.enters("coordinator", "init")
    assert (again.returncode, "Nothing was changed" in again.stderr) == (1, True)

    for machine, name in ((north, "north"), (south, "south"), (stranger, "stranger")):
        rows = write_rows(machine.home / "rows", train=40, word=name)
        init = [
            "bank",
            "init",
            "--name",
            name,
            "--data",
            str(rows),
            "--coordinator",
            f"127.0.0.1:{port}",
            "--ca",
            str(authority),
        ]
        done = machine.enters(*init, *TINY)
        assert done.returncode == 0, done.stderr
        assert "one step on 4 rows" in done.stdout
        assert "budget: epsilon 8 for any row, over all runs; only private rounds may run" in done.stdout
        assert "fpb:40" in done.stdout
    key = "{}/.fedfinlora/bank/node.key.pub"
    done = aggregator.enters("coordinator", "enroll", key.format(north.home), "--name", "north")
    assert done.returncode == 0, done.stderr
    enrolled = aggregator.home / ".fedfinlora" / "coordinator" / "enrolled"
    assert f"send {enrolled / 'north.crt'} to the bank" in done.stdout
    assert "of the authority" not in north.enters("bank", "accept", str(enrolled / "north.crt")).stderr
    assert "not for this bank's node.key" in south.enters("bank", "accept", str(enrolled / "north.crt")).stderr
    assert (
        "must not leave its bank"
        in aggregator.enters("coordinator", "enroll", key.format(north.home)[:-4], "--name", "n").stderr
    )
    assert "another key" in aggregator.enters("coordinator", "enroll", key.format(south.home), "--name", "north").stderr
    assert (
        "already enrolled"
        in aggregator.enters("coordinator", "enroll", key.format(north.home), "--name", "twin").stderr
    )

    page, own_page = str(free_port()), str(free_port())
    aggregator.starts("coordinator", "start", "--metrics-port", page, also=AS_JSON)
    until("coordinator is up", aggregator, "coordinator start")
    assert aggregator.enters("coordinator", "enroll", key.format(south.home), "--name", "south").returncode == 0
    assert south.enters("bank", "accept", str(enrolled / "south.crt")).returncode == 0

    # South allows adapters of rank 2 only.
    settings = south.home / ".fedfinlora" / "bank" / "bank.yaml"
    allowing = settings.read_text()
    settings.write_text(allowing.replace("max_rank: 64", "max_rank: 2"))
    north.starts("bank", "start", "--metrics-port", own_page, also=AS_JSON | SOON)
    south.starts("bank", "start", also=AS_JSON | SOON)

    # Neither a bank that was not enrolled nor one with another authority's certificate gets in.
    outsider = stranger.starts("bank", "start")
    assert outsider.wait(timeout=240) == 1
    assert "has not enrolled" in stranger.said("bank start")
    make_authority(tmp_path / "other", 10)
    certifies(stranger.bank, "stranger", tmp_path / "other")
    refused = stranger.enters("bank", "start")
    assert (refused.returncode, "was not issued by the authority of" in refused.stderr) == (1, True)

    # South refuses round 1, and the run continues with north; then south allows it.
    small = ("evaluation=none", "train.steps_per_round=1", "train.batch_rows=4")
    private = ("privacy=example", "privacy.epsilon=2", "run_name=private", "num_server_rounds=3")
    run = aggregator.starts("coordinator", "run", *TINY, *small, *private)
    when(lambda: (1, "refused") in south.history(), "south has refused")
    settings.write_text(allowing)
    assert run.wait(timeout=240) == 0, aggregator.said("coordinator run")
    runs = aggregator.home / ".fedfinlora" / "runs"
    lines = rounds_of(runs / "private")
    codes = [[(bank["bank"], bank["code"]) for bank in line["banks"]] for line in lines]
    assert codes == [[("north", ""), ("south", "policy-max_rank")], *[[("north", ""), ("south", "")]] * 2]
    reported = south.enters("bank", "history").stdout
    assert "refused policy-max_rank" in reported

    # A run without privacy is refused by both: they have a budget, as `bank init` sets one.
    banks = {
        number: {
            "settings": str(machine.bank / "bank.yaml"),
            "state-dir": str(tmp_path / f"state-{number}"),
            "ledger-dir": str(tmp_path / f"ledger-{number}"),
        }
        for number, machine in enumerate((north, south), 1)
    }
    plain = compose(
        [*TINY, "num_server_rounds=1", *small, "train.holdout_max_rows=0", f"output_dir={tmp_path}", "banks=2"]
    )
    with pytest.raises(UserError) as refusal:
        run_federated(FakeGrid(banks), plain)
    for name in ("north", "south"):
        assert f"{name}: The bank's policy does not allow this privacy mode (rule: privacy)" in str(refusal.value)

    outcomes = [
        line["outcome"]
        for line in read_history(north.home / ".fedfinlora" / "bank" / "state" / "history" / "north.jsonl")
    ]
    assert outcomes == ["begun", "booked", "sent"] * 3
    assert "epsilon spent" in north.enters("bank", "status").stdout

    # The coordinator has seen how far the banks' ledgers had come.
    witnessed = json.loads((aggregator.home / ".fedfinlora" / "coordinator" / "witness" / "heads.json").read_text())
    assert {name: seen["number"] for name, seen in witnessed.items()} == {"north": 3, "south": 2}
    assert [bank["ledger"] for bank in lines[-1]["banks"]] == [witnessed["north"], witnessed["south"]]

    # Who said it: anybody who has ca.crt can check the run and its adapter, and north what it was asked.
    done = stranger.enters("verify", str(runs / "private"), "--ca", str(authority), "--enrolled", str(enrolled))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2: 2 banks asked, 2 requests and 2 replies signed" in done.stdout
    assert "adapters/final: signed by CN=fedfinlora coordinator" in done.stdout
    done = north.enters("verify", str(north.home / ".fedfinlora" / "bank"))
    assert (done.returncode, "3 requests signed by the coordinator, 3 answers signed by north" in done.stdout) == (
        0,
        True,
    )

    # A worker of the bank's kept the model: it was loaded for the first round, not for the second.
    loads = [line["timings"]["banks"]["north"]["load_s"] for line in lines]
    assert loads[1] < 0.1 < loads[0]
    assert "listens on" in (north.home / ".fedfinlora" / "bank" / "state" / "worker.log").read_text("utf-8")

    # What aggregator and bank show of it while they run, and what their logs say they belong to.
    shown = metrics_of(page)
    assert 'fedfinlora_run_state{run="private",state="completed"} 1.0' in shown
    assert 'fedfinlora_refusals_total{bank="south",rule="max_rank",run="private"} 1.0' in shown
    assert 'fedfinlora_bank_online{bank="north"} 1.0' in shown
    assert 'fedfinlora_resident_memory_bytes{program="flower-superlink"}' in shown
    own = metrics_of(own_page)
    assert 'fedfinlora_bank_requests_total{code="",outcome="sent"} 3.0' in own
    assert 'fedfinlora_resident_memory_bytes{program="client_app.worker"}' in own
    for line in json_lines(runs / "private" / "state" / "server.log"):
        assert line["run"]
    for line in json_lines(south.home / ".fedfinlora" / "bank" / "state" / "worker.log"):
        assert line["bank"] == "south"
        assert "listens" in line["message"] or (line["run"] and line["round"])

    # Nothing of the rows, no path and no key is in what the aggregator holds.
    held = b"".join(file.read_bytes() for file in (aggregator.home / ".fedfinlora").rglob("*") if file.is_file())
    private_key = (north.home / ".fedfinlora" / "bank" / "node.key").read_bytes().splitlines()[2]
    for secret in (b"train north item", b"train south item", str(north.home).encode(), private_key):
        assert secret not in held

    status = aggregator.enters("coordinator", "status")
    assert status.returncode == 0
    assert "bank north: online" in status.stdout
    assert aggregator.enters("coordinator", "revoke", "south").returncode == 0
    until("has revoked it", south, "bank start")


def test_a_certificate_that_ends_soon_is_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "c")]
    assert main(["coordinator", "init", *home, "--host", "aggregator.example", "--days", "5"]) == 0
    authority = (tmp_path / "c" / "ca.crt").read_bytes()
    assert main(["coordinator", "renew", *home]) == 0
    assert "good for 365 more days" in capsys.readouterr().out
    assert (tmp_path / "c" / "ca.crt").read_bytes() == authority


@pytest.fixture
def bank_init(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """bank_init(word, …): (exit status, bank.yaml) of `bank init` on 137 and 40 rows."""
    make_authority(tmp_path / "authority", 10)
    rows = write_rows(tmp_path / "rows", train=137)
    shutil.copy(
        write_rows(tmp_path / "others", train=40) / "train" / "fpb_train.jsonl", rows / "train" / "fiqa_train.jsonl"
    )

    def init(*words: str) -> tuple[int, Path]:
        home = tmp_path / "home"
        given = (
            "--name",
            "north",
            "--data",
            str(rows),
            "--coordinator",
            "host:1",
            "--ca",
            str(tmp_path / "authority" / "ca.crt"),
        )
        return main(["bank", "init", "--home", str(home), *given, *words, *TINY]), home / "bank.yaml"

    return init


InitBank = Callable[..., tuple[int, Path]]


class TestBankInit:
    def test_rows_of_all_tasks_are_counted_and_declared_rounded(
        self, bank_init: InitBank, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, file = bank_init("dataset.tasks=[fiqa]", "dataset.max_rows_per_task=5")
        assert status == 0
        assert read_settings(file)[0].declared_rows == ("fiqa:40", "fpb:140")
        assert (
            "declared rows (rounded; the aggregator may come to know them): fiqa:40, fpb:140" in capsys.readouterr().out
        )

    def test_customers_are_counted_over_all_tasks(self, bank_init: InitBank, tmp_path: Path) -> None:
        names = [("Acme", 3), ("acme", 4), ("Bolt", 5)]
        lines = [
            {"context": f"about {name} {number}. Answer: ", "target": "neutral", "issuer": name}
            for name, number in names
        ]
        write_lines(tmp_path / "rows" / "train" / "tfns_train.jsonl", [json.dumps(line) for line in lines])
        assert read_settings(bank_init()[1])[0].declared_rows == ("fiqa:40", "fpb:140", "tfns:3", "customers:2")

    def test_without_a_terminal_there_is_a_budget_and_no_round_without_noise(self, bank_init: InitBank) -> None:
        settings, _ = read_settings(bank_init()[1])
        assert settings.budget_epsilon == 8
        assert settings.policy.privacy == ("example",)

    def test_on_a_terminal_it_is_asked_for(self, bank_init: InitBank, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        asked: list[str] = []
        monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "3.5")
        assert read_settings(bank_init()[1])[0].budget_epsilon == 3.5
        assert asked == ["budget_epsilon [8]: "]

    @pytest.mark.parametrize("typed", ["much", "-1", "nan", "inf"])
    def test_a_budget_that_is_none_leaves_nothing(
        self, bank_init: InitBank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str
    ) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda text: typed)
        status, file = bank_init()
        assert status == 2
        assert "budget_epsilon must be" in capsys.readouterr().err
        assert not file.exists()

    def test_no_budget_only_where_it_is_said(self, bank_init: InitBank, capsys: pytest.CaptureFixture[str]) -> None:
        settings, _ = read_settings(bank_init("--budget-epsilon", "0")[1])
        assert (settings.budget_epsilon, settings.policy.privacy) == (0, ("none", "example"))
        assert "budget: NONE" in capsys.readouterr().out

    def test_status_says_what_is_spent_of_the_budget(
        self, bank_init: InitBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bank_init("--budget-epsilon", "5")
        home = str(tmp_path / "home")
        assert main(["bank", "status", "--home", home]) == 0
        assert "largest epsilon" not in capsys.readouterr().out
        spending = Spending("run", 1, "north", "example-level DP-SGD", "example", Steps(1.0, 4.0, 3))
        book(tmp_path / "home" / "ledger", Rows(("one", "two")), spending, delta=1e-5)
        assert main(["bank", "status", "--home", home]) == 0
        reported = capsys.readouterr().out
        assert "budget: epsilon 5 for any row" in reported
        spent = epsilon([Steps(1.0, 4.0, 3)], 1e-5)
        assert f"largest epsilon spent on any row: {spent:.3g} at delta 1.0e-05" in reported


def test_commands_before_init_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["coordinator", "start"], ["coordinator", "status"], ["bank", "start"], ["bank", "history"]):
        assert main([*words, "--home", str(tmp_path)]) == 1
        assert "init` first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--coordinator": "host"}, "HOST:PORT"),
        ({"--data": "/nowhere"}, "is not a folder"),
        ({"--name": "a/b"}, "plain name"),
        ({"--ca": "/nowhere"}, "no certificate"),
    ],
)
def test_a_bank_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], named: str
) -> None:
    make_authority(tmp_path / "authority", 10)
    rows = write_rows(tmp_path / "rows")
    given = {
        "--name": "north",
        "--data": str(rows),
        "--coordinator": "host:1",
        "--ca": str(tmp_path / "authority" / "ca.crt"),
        **change,
    }
    words = [word for pair in given.items() for word in pair]
    assert main(["bank", "init", "--home", str(tmp_path / "home"), *words, *TINY]) in (1, 2)
    assert named in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
