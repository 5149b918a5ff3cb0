"""Alerts, runbook, dashboard and metrics belong together: every query names metrics that are exported, every alert has
a page, every command in a page is one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.core import Metric
from watched_runs import a_bank_that_has_worked, make_home

from fedfinlora.cli import parser
from fedfinlora.deployment.metrics import BankMetrics, CoordinatorMetrics, page

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, RUNBOOK = ROOT / "docs" / "deploy", ROOT / "docs" / "runbook"
PROMTOOL = shutil.which("promtool")
OF_PROMETHEUS = {"up"}
"""Made by Prometheus itself."""
PROGRAMS = {"curl", "df", "du", "journalctl", "nvidia-smi", "systemctl", "tail", "timedatectl"}
UNITLESS = {"fedfinlora_loss", "fedfinlora_run_state"}
BASE_UNITS = ("_seconds", "_bytes")
NOT_BASE = (
    "_milliseconds",
    "_ms",
    "_minutes",
    "_hours",
    "_days",
    "_percent",
    "_kilobytes",
    "_mb",
    "_gib",
    "_mib",
    "_kib",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """Every series that either role can show: name -> (type, its labels, `instance` and `job` among them)."""
    folder = tmp_path_factory.mktemp("exported")
    found: dict[str, tuple[str, set[str]]] = {}
    for family in families(folder):
        labels = set(getattr(family, "_labelnames", ())) | {label for one in family.samples for label in one.labels}
        names = {one.name for one in family.samples} or {family.name + ("_total" if family.type == "counter" else "")}
        for name in names:
            found[name] = (family.type, labels | {"instance", "job"})
    return found


def families(folder: Path) -> Iterator[Metric]:
    yield from CoordinatorMetrics(make_home(folder / "coordinator")).collect()
    yield from BankMetrics(a_bank_that_has_worked(folder / "bank"), "north").collect()


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))
    return found


def queries() -> list[tuple[str, str]]:
    """(panel, PromQL) of the dashboard, with Grafana's own interval replaced by one."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "5m"))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels that are matched) of a query. ValueError where it is no PromQL."""
    yield from _walk(promql_parser.parse(query))


def _walk(node: Any) -> Iterator[tuple[str, set[str]]]:
    if isinstance(node, promql_parser.VectorSelector):
        matched = {one.name for one in node.matchers.matchers}
        yield str(node.name), matched
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _walk(node.vector_selector)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from _walk(node.lhs)
        yield from _walk(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _walk(argument)
    elif isinstance(
        node,
        (promql_parser.AggregateExpr, promql_parser.ParenExpr, promql_parser.UnaryExpr, promql_parser.SubqueryExpr),
    ):
        yield from _walk(node.expr)
    else:
        assert isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)), type(node)


def check(query: str, exported: dict[str, tuple[str, set[str]]]) -> None:
    found = list(selectors(query))
    assert found, query
    for name, matched in found:
        if name not in OF_PROMETHEUS:
            assert name in exported, f"{name} is not exported: {query}"
            assert matched <= exported[name][1], (name, matched, exported[name][1])


def test_every_alert_asks_for_metrics_that_exist(exported: dict[str, tuple[str, set[str]]]) -> None:
    for rule in rules():
        check(rule["expr"], exported)


def test_every_panel_asks_for_metrics_that_exist(exported: dict[str, tuple[str, set[str]]]) -> None:
    found = queries()
    assert len(found) >= 20
    for _, query in found:
        check(query, exported)
    (run,) = [one for one in dashboard()["templating"]["list"] if one["name"] == "run"]
    assert run["query"]["query"] == "label_values(fedfinlora_run_state, run)"
    assert "run" in exported["fedfinlora_run_state"][1]


def test_a_query_of_a_metric_that_does_not_exist_is_found(exported: dict[str, tuple[str, set[str]]]) -> None:
    for query in ("sum(rate(fedfinlora_bank_mistakes_total[5m])) > 0", 'fedfinlora_bank_online{colour="red"} == 0'):
        with pytest.raises(AssertionError, match=r"is not exported|colour"):
            check(query, exported)


def test_every_metric_is_shown_or_watched(exported: dict[str, tuple[str, set[str]]]) -> None:
    asked = {
        name
        for query in [*(one for _, one in queries()), *(rule["expr"] for rule in rules())]
        for name, _ in selectors(query)
    }
    assert exported.keys() - asked == set()


def test_names_follow_prometheus_conventions(tmp_path: Path) -> None:
    for family in families(tmp_path):
        assert re.fullmatch(r"fedfinlora_[a-z][a-z_]*[a-z]", family.name)
        assert not family.name.endswith((*NOT_BASE, "_total", "_count", "_sum", "_bucket", "_info"))
        assert family.documentation
        assert not family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert all(
                re.fullmatch(r"[a-z][a-z_]*", label) and label not in ("job", "instance", "le", "quantile")
                for label in sample.labels
            )
        if "timestamp" in family.name:
            assert family.name.endswith("_timestamp_seconds")
            assert family.type == "gauge"
        if (
            re.search(r"second|minute|hour|Bytes|bytes", family.documentation.split(",")[0])
            and family.name not in UNITLESS
        ):
            assert family.name.endswith(BASE_UNITS) or family.name.removesuffix("_sent").removesuffix(
                "_received"
            ).endswith("_bytes"), family.name


def test_a_bank_away_a_budget_near_and_the_rest_of_the_list_have_an_alert() -> None:
    wanted = {
        "BankAway",
        "Refusals",
        "BankBudgetNear",
        "CertificateExpiring",
        "RoundStuck",
        "DiskNearlyFull",
        "BankLedgerBehind",
        "LedgerTakenBack",
    }
    assert {f"Fedfinlora{name}" for name in wanted} <= {rule["alert"] for rule in rules()}


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    names = {rule["alert"] for rule in rules()}
    assert {file.stem for file in RUNBOOK.glob("*.md")} - {"README"} == names
    assert (
        set(re.findall(r"^\| \[(\w+)\]\(\w+\.md\)", (RUNBOOK / "README.md").read_text("utf-8"), re.MULTILINE)) == names
    )
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook/{rule['alert']}.md"
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}


@pytest.mark.parametrize("file", sorted(RUNBOOK.glob("F*.md")), ids=lambda file: file.stem)
def test_a_page_says_what_it_means_what_to_look_at_and_what_to_type(
    file: Path, exported: dict[str, tuple[str, set[str]]]
) -> None:
    content = file.read_text("utf-8")
    assert re.findall(r"^#+ .+", content, re.MULTILINE) == [
        f"# {file.stem}",
        "## What it means",
        "## What to look at",
        "## What to type",
    ]
    named = set(re.findall(r"`(fedfinlora_[a-z_]+)`", content))
    assert named <= exported.keys()
    (block,) = re.findall(r"```console\n(.*?)```", content, re.DOTALL)
    lines = block.splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        if words[0] == "python":
            assert words[1:3] == ["-m", "fedfinlora"]
            if words[-1] != "--help":
                parser().parse_args(words[3:])
            continue
        assert words[0] in PROGRAMS, line
        if words[0] == "systemctl":
            assert (DEPLOY / f"{words[2]}.service").is_file()


def test_a_label_that_an_alert_prints_is_one_that_its_metric_has(exported: dict[str, tuple[str, set[str]]]) -> None:
    for rule in rules():
        named = {name for name, _ in selectors(rule["expr"])} - OF_PROMETHEUS
        known = set.intersection(*(exported[name][1] for name in named)) if named else {"instance", "job"}
        printed = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert printed <= known, rule["alert"]


def test_the_dashboard_is_one_that_grafana_can_place() -> None:
    found = dashboard()
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_promtool_finds_nothing_against_alerts_and_metrics(tmp_path: Path) -> None:
    """With promtool (Debian: apt-get install prometheus) the alerts are played too; without it the other tests of this
    file have parsed them.
    """
    for collector in (
        CoordinatorMetrics(make_home(tmp_path / "home")),
        BankMetrics(a_bank_that_has_worked(tmp_path / "bank"), "north"),
    ):
        text = page(collector).body
        if PROMTOOL:
            done = subprocess.run(
                [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
    played = yaml.safe_load((DEPLOY / "alerts-test.yaml").read_text("utf-8"))
    names = {
        case["alertname"] for test in played["tests"] for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    assert names == {rule["alert"] for rule in rules()}
    if PROMTOOL:
        for words in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]):
            done = subprocess.run(
                [PROMTOOL, *words], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
