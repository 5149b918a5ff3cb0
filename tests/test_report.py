"""report.html from run folders that are built here: what it says, that it loads nothing, and that it fits a phone."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.config import build, to_plain
from fedfinlora.errors import UserError
from fedfinlora.report import BenchmarkInfo, write_report
from fedfinlora.report.charts import Series, bar_chart, line_chart, nice_ticks
from fedfinlora.report.markup import points, seconds, size
from fedfinlora.report.reading import read_run, read_runs
from fedfinlora.report.reproduce import command_line
from fedfinlora.report.scores import systems_of

GROUP_KEYS = {
    "general": ("fpb", "fiqa", "tfns", "nwgi", "headline", "ner"),
    "certificate": ("cfa_level1", "cfa_level2", "cfa_level3", "cpa_reg"),
    "reporting": ("xbrl_finer", "xbrl_fnxl", "xbrl_term"),
    "analysis": (
        "xbrl_tags_extract",
        "xbrl_value_extract",
        "xbrl_formula_extract",
        "xbrl_formula_calc_extract",
        "financebench",
        "formula",
    ),
}
BERTSCORE_KEYS = ("xbrl_term", "financebench")
ACCURACY_KEYS = [key for keys in GROUP_KEYS.values() for key in keys if key not in BERTSCORE_KEYS]
VOID_TAGS = {"meta", "link", "br", "circle", "rect", "line", "polyline", "polygon", "path"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
)


def catalogue() -> list[BenchmarkInfo]:
    return [
        BenchmarkInfo(
            key, key.upper(), group, {"Base": (None if key in BERTSCORE_KEYS else 40.0, 0.5), "LoRA 8-bit": (80.0, 0.9)}
        )
        for group, keys in GROUP_KEYS.items()
        for key in keys
    ]


def metrics(accuracy: float, n: int = 24) -> dict[str, Any]:
    spread = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0.01) / n)
    return {
        "n": n,
        "unparsed": 3,
        "unparsed_share": 3 / n,
        "accuracy": accuracy,
        "accuracy_ci95": [max(accuracy - spread, 0.0), min(accuracy + spread, 1.0)],
        "f1_macro": accuracy,
        "f1_weighted": accuracy,
        "finlora_accuracy": accuracy,
        "finlora_f1": 2 * accuracy / (1 + accuracy),
        "finlora_ambiguous": 1,
    }


def bertscore_metrics(f1: float, n: int = 24) -> dict[str, Any]:
    return {
        "n": n,
        "unparsed": 0,
        "bertscore_precision": f1,
        "bertscore_recall": f1,
        "bertscore_f1": f1,
        "bertscore_model": "all-MiniLM-L6-v2",
        "bertscore_layer": 5,
    }


def all_scores(accuracy: float) -> dict[str, Any]:
    accuracies = {key: metrics(min(accuracy + 0.02 * (index % 5), 1.0)) for index, key in enumerate(ACCURACY_KEYS)}
    return {**accuracies, **{key: bertscore_metrics(0.3 + accuracy / 2) for key in BERTSCORE_KEYS}}


def round_record(number: int, banks: int, reason: str = "") -> dict[str, Any]:
    """One line of rounds.jsonl; with a reason, the last bank is rejected."""
    replies = [
        {
            "bank": f"bank-{index}",
            "status": "ok",
            "code": "",
            "reason": "",
            "rows": 160,
            "steps": 10,
            "tokens": 9000 + 100 * index,
            "answer_tokens": 320,
            "train_loss": 2.4 / number + 0.1 * index,
            "holdout_loss": 2.6 / number + 0.15 * index,
            "holdout_rows": 16,
            "delta_norm": 0.8,
            "bytes_up": 1_843_200,
            "bytes_down": 1_843_200,
        }
        for index in range(banks)
    ]
    if reason:
        replies[-1] |= {"status": "rejected", "code": "norm", "reason": reason, "train_loss": None, "holdout_loss": None}
    return {
        "round": number,
        "status": "ok",
        "banks": replies,
        "train_loss": 2.4 / number,
        "holdout_loss": 2.6 / number,
        "update_norm": 0.7,
        "bytes_up": 1_843_200 * banks,
        "bytes_down": 1_843_200 * banks,
        "adapter_sha256": "ab" * 32,
        "scores": {"fpb": metrics(0.2 * number), "fiqa": metrics(0.15 * number)} if number % 2 else {},
        "timings": {
            "total_s": 12.1,
            "train_s": 11.0,
            "aggregate_s": 0.01,
            "evaluate_s": 0.0,
            "banks": {f"bank-{index}": {"train_s": 5.5 + index, "tokens_per_s": 800.0} for index in range(banks)},
        },
    }


def make_run(
    folder: Path,
    mode: str = "federated",
    base: float | None = 0.2,
    final: float | None = 0.45,
    rounds: int = 3,
    banks: int = 2,
    result: Mapping[str, Any] | None = None,
    reason: str = "",
) -> Path:
    """A complete run folder, as a finished run leaves it; `result` replaces single entries of result.json."""
    folder.mkdir(parents=True)
    scores = {label: all_scores(value) for label, value in (("base", base), ("final", final)) if value is not None}
    values = {
        "schema_version": 1,
        "mode": mode,
        "status": "completed",
        "run": folder.name,
        "model": "smollm2-135m",
        "peft": "lora",
        "strategy": "fedavg",
        "rounds": rounds,
        "banks": banks,
        "seed": 0,
        "rows_trained": 160 * rounds * banks,
        "tokens_trained": 9000 * rounds * banks,
        "wall_s": {"total": 171.0, "train": 96.0, "evaluate": 70.0, "aggregate": 0.1},
        "bytes_up": 1_843_200 * rounds * banks,
        "bytes_down": 1_843_200 * rounds * banks,
        "privacy": None,
        "scores": scores,
        "skipped": {},
        "synthetic": False,
        "config_sha256": "cd" * 32,
        "finished_at": "2025-11-23T01:00:00Z",
        **(result or {}),
    }
    (folder / "result.json").write_text(json.dumps(values), encoding="utf-8")
    records = [round_record(number, banks, reason if number == rounds else "") for number in range(1, rounds + 1)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = to_plain(build({"num_server_rounds": rounds + 1, "run_name": folder.name, "dataset": {"tasks": ["fpb", "fiqa"]}}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    manifest = {
        "versions": {"torch": "2.13.0"},
        "python": "3.11",
        "seed": 0,
        "source_sha256": "ef" * 32,
        "data_sha256": {"a": "01"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The structure of a page: its tags in order, its attributes, its text; raises when tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(tmp_path: Path, *runs: Path) -> str:
    return write_report(runs, tmp_path / "report.html", catalogue()).read_text(encoding="utf-8")


def test_report_of_one_run_states_its_verdict_and_parses(tmp_path: Path) -> None:
    page = Page(report(tmp_path, make_run(tmp_path / "demo")))
    # Accuracies are base + 0.02 x (0, 1, 2, 3, 4, …), 17 of them: the mean is 3.76 points above.
    assert "2 banks, 3 rounds, smollm2-135m nf4 lora: mean accuracy 24 % → 49 % over 17 benchmarks." in page.text
    for heading in ("Scores", "Training, round by round", "Banks", "Configuration", "How to reproduce"):
        assert heading in page.text
    assert "synthetic" not in page.text.lower()


def test_report_is_small_and_loads_nothing(tmp_path: Path) -> None:
    html = report(tmp_path, make_run(tmp_path / "demo", rounds=50, banks=10))
    assert len(html.encode()) < 1_000_000
    loading = [value for _, name, value in Page(html).attributes if name in ("src", "href", "action", "srcset", "data")]
    assert loading == ["data:,"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    assert report(tmp_path, run) == report(tmp_path, run)


def test_markup_in_names_and_reasons_is_shown_as_text(tmp_path: Path) -> None:
    injected = '<script>alert("1")</script>'
    run = make_run(tmp_path / "demo", reason=injected, result={"run": injected, "skipped": {"cfa_level1": injected}})
    html = report(tmp_path, run)
    assert injected not in html
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in html
    assert Page(html).tags.count("script") == 1


@settings(max_examples=25, deadline=None)
@given(untrusted=st.text(min_size=1, max_size=40).filter(lambda text: text.strip()))
def test_untrusted_text_never_changes_the_structure(tmp_path_factory: pytest.TempPathFactory, untrusted: str) -> None:
    def tags(value: str) -> list[str]:
        folder = tmp_path_factory.mktemp("run")
        run = make_run(
            folder / "demo", rounds=1, reason=value, result={"run": value, "model": value, "status": "failed", "reason": value}
        )
        return Page(report(folder, run)).tags

    assert tags(untrusted) == tags("plain")


def test_synthetic_scores_carry_a_banner(tmp_path: Path) -> None:
    text = Page(report(tmp_path, make_run(tmp_path / "demo", result={"synthetic": True}))).text
    assert "Scores come from the bundled synthetic sample: they show that the machinery works, not quality." in text


def test_rejected_bank_is_listed_with_its_reason(tmp_path: Path) -> None:
    text = Page(report(tmp_path, make_run(tmp_path / "demo", reason="update norm 900 is above 100"))).text
    assert "rejected: update norm 900 is above 100" in text
    assert "5 of 6" in text


def test_skipped_benchmark_says_why_and_keeps_its_published_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    result = json.loads((run / "result.json").read_text())
    for label in ("base", "final"):
        del result["scores"][label]["cfa_level1"]
    result["skipped"] = {"cfa_level1": "no rows: never released"}
    (run / "result.json").write_text(json.dumps(result))
    text = Page(report(tmp_path, run)).text
    assert "CFA_LEVEL1 cfa_level1 Not scored: no rows: never released 40.0 / .500 80.0 / .900" in text


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "federated", base=0.2, final=0.45),
        make_run(tmp_path / "centralized", mode="centralized", base=None, final=0.5),
        make_run(tmp_path / "alone" / "bank-0", mode="local", base=None, final=0.3),
        make_run(tmp_path / "alone" / "bank-1", mode="local", base=None, final=0.4),
    ]
    text = Page(report(tmp_path, *runs)).text
    assert "mean accuracy over 17 benchmarks: base 24 %, local 39 %, federated 49 %, centralized 54 %." in text
    assert "Federated is 5.0 points behind centralized." in text
    assert "mean of 2 banks alone" in text


def test_folder_of_runs_stands_for_the_runs_in_it(tmp_path: Path) -> None:
    for bank in ("bank-0", "bank-1"):
        make_run(tmp_path / "alone" / bank, mode="local")
    assert [run.name for run in read_runs([tmp_path / "alone"])] == ["bank-0", "bank-1"]


def test_unequal_budgets_are_pointed_out(tmp_path: Path) -> None:
    federated = make_run(tmp_path / "a", result={"rows_trained": 100})
    centralized = make_run(tmp_path / "b", mode="centralized", result={"rows_trained": 200})
    assert (
        "did not train on the same number of rows: federated 100, centralized 200"
        in Page(report(tmp_path, federated, centralized)).text
    )


def test_change_is_not_computed_over_different_numbers_of_rows(tmp_path: Path) -> None:
    scores = {"base": {"fpb": metrics(0.2, n=24)}, "final": {"fpb": metrics(0.8, n=200)}}
    html = report(tmp_path, make_run(tmp_path / "demo", result={"scores": scores}))
    row = html[html.index("FPB <code>") :].split("</tr>")[0]
    assert "24–200" in row
    assert "60.0" not in row.split("<svg")[0] + row.split("</svg>")[1]


def test_failed_run_says_so_and_what_is_missing(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "all banks failed", "scores": {}, "skipped": {}}
    run = make_run(tmp_path / "demo", result=failed)
    (run / "manifest.json").unlink()
    (run / "rounds.jsonl").write_text(json.dumps(round_record(1, 2)) + '\n{"round": 2, "ban')
    text = Page(report(tmp_path, run)).text
    assert "The run failed after 1 round: all banks failed." in text
    assert "manifest.json is missing" in text
    assert "rounds.jsonl: 1 unreadable line(s) left out" in text
    assert "No model was scored." in text


def test_run_that_has_only_begun_gives_a_report(tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    (run / "config.yaml").write_text("model: {name: smollm2-135m}\n")
    text = Page(report(tmp_path, run)).text
    assert "The run has not finished" in text
    assert "result.json is missing" in text


def test_broken_shapes_are_survived(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "demo", result={"wall_s": None, "scores": {"base": {"fpb": {}}, "final": {"fpb": 3}}, "banks": "two"}
    )
    (run / "rounds.jsonl").write_text('[]\n{"banks": null, "timings": 3}\n{"round": 2, "banks": [3, {"train_loss": NaN}]}\n')
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in Page(report(tmp_path, run)).text


def test_scores_of_an_interrupted_run_come_from_the_evaluation_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    (run / "result.json").unlink()
    (run / "eval" / "base").mkdir(parents=True)
    (run / "eval" / "base" / "metrics.json").write_text(
        json.dumps({"label": "base", "scores": {"fpb": metrics(0.25)}, "skipped": {"fiqa": "no rows"}})
    )
    read = read_run(run)
    assert read.scores["base"]["fpb"]["accuracy"] == 0.25
    assert read.skipped == {"fiqa": "no rows"}


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_path_that_is_no_run_folder_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        write_report([tmp_path / name], tmp_path / "report.html", catalogue())


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        write_report([], tmp_path / "report.html", catalogue())


def test_output_may_be_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    assert write_report([run], run, catalogue()) == run / "report.html"
    assert not list(run.glob("*.tmp"))


def test_benchmark_outside_the_catalogue_is_shown_under_its_key(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", result={"scores": {"final": {"twentieth": metrics(0.5)}}})
    text = Page(report(tmp_path, run)).text
    assert "Other benchmarks" in text
    assert "twentieth" in text


def test_base_is_taken_from_whichever_run_has_it(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", base=None), make_run(tmp_path / "b", mode="centralized", base=0.2)]
    assert [system.heading for system in systems_of(read_runs(runs))] == ["Base", "Federated", "Centralized"]


def test_values_that_differ_from_the_default_are_marked(tmp_path: Path) -> None:
    text = Page(report(tmp_path, make_run(tmp_path / "demo"))).text
    assert "num_server_rounds 4 changed; default 3" in text


def test_command_line_repeats_what_differs_from_the_defaults(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "demo"))
    assert (
        command_line(run, to_plain(build({}))) == "python -m fedfinlora simulate 'dataset.tasks=[fpb,fiqa]' num_server_rounds=4"
    )


@given(low=st.floats(-1e6, 1e6), spread=st.floats(0, 1e6))
def test_ticks_enclose_the_values_and_rise(low: float, spread: float) -> None:
    ticks = nice_ticks(low, low + spread)
    tolerance = 1e-6 * max(abs(low), spread, 1.0)
    assert 2 <= len(ticks) <= 12
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= low + spread - tolerance
    assert all(first < second for first, second in itertools.pairwise(ticks))


def test_charts_without_values_are_left_out() -> None:
    empty = Series("bank-0", (None, None), slot=0)
    assert line_chart("Loss", [1, 2], [empty], "", str) == ""
    assert bar_chart("Bytes", ["1", "2"], [empty], "", str) == ""


def test_numbers_are_printed_with_units() -> None:
    assert (size(1_843_200), size(999), size(None)) == ("1.8 MB", "999 B", "–")
    assert (seconds(8.25), seconds(125), seconds(4000)) == ("8.2 s", "2 min 05 s", "1 h 07 min")
    assert points(-0.05) == "−5.0"


def comparison(tmp_path: Path) -> Path:
    """A report with everything in it: four systems, a rejected bank, a skipped set, long names."""
    long_name = "a-run-with-a-very-long-name-" * 4
    runs = [
        make_run(tmp_path / "federated", rounds=8, banks=4, reason="update norm 900 is above 100", result={"synthetic": True}),
        make_run(tmp_path / "pooled", mode="centralized", base=None, final=0.5, result={"run": long_name}),
        make_run(tmp_path / "alone" / "bank-0", mode="local", base=None, final=0.3),
        make_run(tmp_path / "alone" / "bank-1", mode="local", base=None, final=0.4),
    ]
    return write_report(runs, tmp_path / "comparison.html", catalogue())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("window_width", [390, 1280])
@pytest.mark.parametrize("kind", ["one", "comparison"])
def test_browser_shows_no_error_and_no_sideways_overflow(tmp_path: Path, window_width: int, kind: str) -> None:
    file = comparison(tmp_path) if kind == "comparison" else tmp_path / "report.html"
    if kind == "one":
        report(tmp_path, make_run(tmp_path / "demo", reason="norm", result={"synthetic": True}))
    # Chromium's window cannot be narrower than 500 pixels: a frame of the wanted width stands for the phone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe src="{file.name}" width="{window_width}" height="844" style="border:0"></iframe>'
        "<script>onload = () => { const root = frames[0].document.documentElement;"
        "for (const details of frames[0].document.querySelectorAll('details')) details.open = true;"
        "document.body.dataset.result = [root.clientWidth, root.scrollWidth - root.clientWidth].join(' '); };</script>"
    )
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *CHROMIUM_OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,900",
            "--virtual-time-budget=3000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-result="(\d+) (-?\d+)"', done.stdout)
    assert found, done.stdout[-2000:]
    assert int(found[1]) in (window_width, window_width - 15)  # a scroll bar may take its part
    assert int(found[2]) == 0
