"""report.html from run folders that are built here: what it says, and that it loads nothing."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import Page, add_evaluations, catalogue, detailed, element, make_run, metrics, report, round_record

from fedfinlora.config.values import build, to_plain
from fedfinlora.deployment import status_page
from fedfinlora.errors import UserError
from fedfinlora.report import Published, drawing, write_report
from fedfinlora.report.charts import Series, bar_chart, line_chart, nice_ticks
from fedfinlora.report.confusion import confusion_of, summed, trimmed
from fedfinlora.report.examples import choose_examples
from fedfinlora.report.formats import points, seconds, size
from fedfinlora.report.intervals import IntervalRow, interval_chart
from fedfinlora.report.reading import read_run, read_runs
from fedfinlora.report.reproduce import command_line
from fedfinlora.report.scores import mean_accuracy_bounds
from fedfinlora.report.systems import systems_of
from fedfinlora.run.comparison import BenchmarkComparison, Compared, Comparison, MeanDifference, MetricDifference
from fedfinlora.run.evaluation import BenchmarkMetrics, ConfusionMatrix, RowRecord
from fedfinlora.run.folder import flatten
from fedfinlora.run.typed import from_json


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
    attributes = Page(html).attributes
    loading = [value for _, name, value in attributes if name in ("src", "href", "action", "srcset", "data")]
    assert all(value.startswith(("data:", "#")) for value in loading)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", html)
    assert any(value.startswith("default-src 'none'") for _, name, value in attributes if name == "content")


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    assert report(tmp_path, run) == report(tmp_path, run)


HOSTILE = '<script>alert("1")</script> {{ 999 * 999 }} {% raw %} \'&amp;'
"""Markup, an expression and a statement of Jinja2, quotes, and an entity that must not be taken for its character."""


def test_markup_in_names_reasons_and_rows_is_shown_as_text(tmp_path: Path) -> None:
    result = {"run": HOSTILE, "model": HOSTILE, "skipped": {"cfa_level1": HOSTILE}}
    run = make_run(tmp_path / "demo", reason=HOSTILE, result=result)
    add_evaluations(run)
    row = json.dumps(
        {"id": HOSTILE, "prompt_sha256": "", "target": HOSTILE, "output": HOSTILE, "parsed": HOSTILE, "correct": True}
    )
    (run / "eval" / "final" / "fpb.jsonl").write_text(row + "\n")
    (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text().replace('"bank-0"', json.dumps(HOSTILE)))
    html = report(tmp_path, run, make_run(tmp_path / "other"))
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "998001" not in html
    for before in ("subtitle", "CFA_LEVEL1", "rejected:", "Target", "Output", "Read as"):
        assert HOSTILE in page.text.split(before, 1)[-1], before
    assert any(HOSTILE in value for _, name, value in page.attributes if name == "aria-label"), (
        "of a figure that can be saved"
    )


def test_html_is_written_in_templates_alone() -> None:
    """Python makes SVG and values."""
    folder = Path(drawing.__file__).parent
    tag = re.compile(
        r"</?(?:div|span|table|t[rdh]|[uod]l|li|dt|dd|p|h[1-6]|section|details|summary|figure|b|i|small|code|a|nav)[ >]"
    )
    found = [
        file.name for file in (*folder.glob("*.py"), Path(status_page.__file__)) if tag.search(file.read_text("utf-8"))
    ]
    assert found == []


@settings(max_examples=25, deadline=None)
@given(untrusted=st.text(min_size=1, max_size=40).filter(lambda text: text.strip()))
def test_untrusted_text_never_changes_the_structure(tmp_path_factory: pytest.TempPathFactory, untrusted: str) -> None:
    def tags(value: str) -> list[str]:
        folder = tmp_path_factory.mktemp("run")
        run = make_run(
            folder / "demo",
            rounds=1,
            reason=value,
            result={"run": value, "model": value, "status": "failed", "reason": value},
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


def test_the_bank_that_moved_its_factors_furthest_is_named(tmp_path: Path) -> None:
    """Runs of earlier versions have no such figure."""
    run = make_run(tmp_path / "demo")
    before = Page(report(tmp_path, run)).text
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for ratio in (1.25, 7.5):
        lines[1]["factors"] = {"bank": "bank-1", "ratio": ratio}
        (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        text = Page(report(tmp_path, run)).text
        assert f"bank-1, {ratio} × the median" in text
        assert ("spoil the mean of honest products" in text) == (ratio == 7.5)
    assert "× the median" not in before
    assert "A and B" not in before


def test_skipped_benchmark_says_why_and_keeps_its_published_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    result = json.loads((run / "result.json").read_text())
    for label in ("base", "final"):
        del result["scores"][label]["cfa_level1"]
    result["skipped"] = {"cfa_level1": "no rows: never released"}
    (run / "result.json").write_text(json.dumps(result))
    text = Page(report(tmp_path, run)).text
    assert "CFA_LEVEL1 cfa_level1 Not scored: no rows: never released" in text
    assert "CFA_LEVEL1 cfa_level1 – – 40.0 / .500 80.0 / .900" in text
    assert "CFA_LEVEL1: no rows: never released." in text


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


def test_a_folder_of_runs_means_the_runs_in_it(tmp_path: Path) -> None:
    for bank in ("bank-0", "bank-1"):
        make_run(tmp_path / "alone" / bank, mode="local")
    assert [run.name for run in read_runs([tmp_path / "alone"])] == ["bank-0", "bank-1"]


def test_the_report_of_stages_has_the_name_of_the_whole(tmp_path: Path) -> None:
    course = tmp_path / "course"
    runs = [make_run(course / name) for name in ("stage-1-hard", "stage-2-easy")]
    assert "Comparison of 2 runs" in Page(report(tmp_path, *runs)).text
    (course / "stages.json").write_text("{}")
    assert "course, stage by stage" in Page(report(tmp_path, *runs)).text


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
    row = html[html.index("FPB</a> <code>") :].split("</tr>")[0]
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
    assert "rounds.jsonl, line 2 cannot be read" in text
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
    (run / "rounds.jsonl").write_text(
        '[]\n{"banks": null, "timings": 3}\n{"round": 2, "banks": [3, {"train_loss": NaN}]}\n'
    )
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in Page(report(tmp_path, run)).text


@pytest.mark.parametrize("text", ["", "[]", '{"status": "done"}'])
def test_a_damaged_result_is_not_called_unfinished(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "demo")
    (run / "result.json").write_text(text)
    assert "has a damaged result.json, which does not say how it ended" in Page(report(tmp_path, run)).text


def test_rounds_that_are_missing_doubled_or_mixed_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    file = run / "rounds.jsonl"
    first, second, *rest = file.read_text().splitlines(keepends=True)
    whole, named = read_run(run).rounds, f"rounds.jsonl is damaged: its lines are not rounds 1 to {len(rest) + 2}, each"
    for lines in ([first, second, second, *rest], [second, first, *rest]):
        file.write_text("".join(lines))
        text = Page(report(tmp_path, run)).text
        assert named in text
        assert read_run(run).rounds == whole
        assert "the best on the public validation rows" not in text
    file.write_text("".join([first, *rest]))
    assert f"result.json says {len(rest) + 2}." in Page(report(tmp_path, run)).text


def test_scores_that_only_result_json_has_so_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    (run / "eval" / "final").mkdir(parents=True, exist_ok=True)
    (run / "eval" / "final" / "metrics.json").write_text(
        json.dumps({"label": "final", "scores": {"fpb": metrics(0.01)}, "skipped": {}})
    )
    assert "result.json has other scores than eval/final/metrics.json (fpb)" in Page(report(tmp_path, run)).text


def test_a_configuration_of_aliases_is_not_read(tmp_path: Path) -> None:
    """Nine lines of them hold a billion values."""
    run = make_run(tmp_path / "demo")
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    (run / "config.yaml").write_text("\n".join(lines))
    assert "config.yaml cannot be read" in Page(report(tmp_path, run)).text


def test_scores_of_an_interrupted_run_come_from_the_evaluation_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    (run / "result.json").unlink()
    (run / "eval" / "base").mkdir(parents=True)
    (run / "eval" / "base" / "metrics.json").write_text(
        json.dumps({"label": "base", "scores": {"fpb": metrics(0.25)}, "skipped": {"fiqa": "no rows"}})
    )
    read = read_run(run)
    assert read.scores["base"]["fpb"].value("accuracy") == 0.25
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
        command_line(run, flatten(to_plain(build({}))))
        == "python -m fedfinlora simulate 'dataset.tasks=[fpb,fiqa]' num_server_rounds=4"
    )


@given(low=st.floats(-1e6, 1e6), spread=st.floats(0, 1e6))
def test_ticks_enclose_the_values_and_rise(low: float, spread: float) -> None:
    ticks = nice_ticks(low, low + spread)
    tolerance = 1e-6 * max(abs(low), spread, 1.0)
    assert 2 <= len(ticks) <= 12
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= low + spread - tolerance
    assert all(first < second for first, second in itertools.pairwise(ticks))


def test_charts_without_values_are_not_drawn() -> None:
    empty = Series("bank-0", (None, None), slot=0)
    assert line_chart("loss", "Loss", [1, 2], [empty], "", str) is None
    assert bar_chart("bytes", "Bytes", ["1", "2"], [empty], "", str) is None
    assert interval_chart("scores", "Scores", "", [IntervalRow("FPB", [])]) is None


def test_numbers_are_printed_with_units() -> None:
    assert (size(1_843_200), size(999), size(None)) == ("1.8 MB", "999 B", "–")
    assert (seconds(8.25), seconds(125), seconds(4000)) == ("8.2 s", "2 min 05 s", "1 h 07 min")
    assert points(-0.05) == "−5.0"


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_tested_what_is_missing_and_the_caveats(tmp_path: Path) -> None:
    run = add_evaluations(make_run(tmp_path / "demo"))
    text = Page(element(report(tmp_path, run), '<section id="summary">') + "</section>").text
    assert "2 systems: Base and Federated." in text
    assert "19 of 19 benchmarks, 24 answers each." in text
    assert "No run of all rows pooled and each bank alone is here" in text
    assert "No prompt was cut: all fit the context window." in text
    assert "BERTScore by all-MiniLM-L6-v2, layer 5: not comparable with published BERTScores" in text
    assert "19 benchmarks with less than 100 answers (as few as 24)" in text
    assert "Of 136 answers decoded again one by one, 34 differ." in text


@pytest.mark.parametrize(
    ("counts", "stuck"),
    [
        ([[0, 0, 19, 0], [0, 0, 54, 0], [0, 0, 27, 0]], True),
        ([[0, 0, 19, 0], [0, 0, 50, 4], [0, 0, 27, 0]], True),
        ([[0, 0, 19, 0], [0, 0, 47, 7], [0, 0, 27, 0]], False),
        ([[10, 0, 9, 0], [0, 40, 14, 0], [0, 0, 27, 0]], False),
        ([[0, 0, 0, 0], [0, 100, 0, 0], [0, 0, 0, 0]], False),
        ([[0, 0, 0, 19], [0, 0, 0, 54], [0, 0, 0, 27]], False),
        ([[0, 0, 2, 0], [0, 0, 5, 0], [0, 0, 2, 0]], False),
    ],
    ids=["one label", "nearly", "not nearly", "mixed", "one right answer", "unparsed", "few rows"],
)
def test_summary_warns_of_one_and_the_same_answer(tmp_path: Path, counts: list[list[int]], stuck: bool) -> None:
    labels = ["negative", "neutral", "positive"]
    scores = {
        "final": {
            "fpb": {
                **metrics(0.27),
                "confusion": {"labels": labels, "answers": [*labels, "unparsed"], "counts": counts},
            }
        }
    }
    run = make_run(tmp_path / "demo", result={"scores": scores})
    text = Page(element(report(tmp_path, run), '<section id="summary">') + "</section>").text
    assert ("one and the same label to at least 95 % of the rows of fpb" in text) == stuck


def test_figure_that_is_absent_is_a_dash_and_never_a_zero(tmp_path: Path) -> None:
    scores = {"base": {"fpb": {"n": 24, "labels_accuracy": 0.5, "labels_accuracy_ci95": [0.3, 0.7]}}}
    html = report(tmp_path, make_run(tmp_path / "demo", result={"scores": scores}))
    row = Page("<table><tr>" + html.split("FPB</a> <code>fpb</code></th>")[1].split("</tr>")[0] + "</tr></table>").text
    # The picture's cell is empty; then rows, accuracy, unparsed, and label scoring in a column of its own.
    assert row == "24 – – 50.0 30.0 to 70.0"
    assert "Prompts longer than the context window" not in html
    assert "No prompt was cut" not in html


def test_interval_of_one_set_is_that_of_its_mean(tmp_path: Path) -> None:
    system = systems_of(read_runs([make_run(tmp_path / "demo")]))[0]
    score = system.scores["fpb"]
    assert mean_accuracy_bounds(system, ["fpb"]) == pytest.approx(score.bounds)


def test_the_interval_of_a_mean_narrows_with_the_root_of_the_set_count(tmp_path: Path) -> None:
    alike = {"final": {key: metrics(0.5) for key in ("fpb", "fiqa", "tfns", "nwgi")}}
    system = systems_of(read_runs([make_run(tmp_path / "demo", result={"scores": alike})]))[0]
    low, high = mean_accuracy_bounds(system, list(system.scores))
    one_low, one_high = mean_accuracy_bounds(system, ["fpb"])
    assert low is not None
    assert high is not None
    assert one_low is not None
    assert one_high is not None
    assert (0.5 - low, high - 0.5) == pytest.approx(((0.5 - one_low) / 2, (one_high - 0.5) / 2))


# --- systems ----------------------------------------------------------------------------------------------------------


def test_best_round_is_a_system_where_it_is_not_the_final_one(tmp_path: Path) -> None:
    def headings(best: float) -> list[str]:
        folder = tmp_path / str(best)
        scores = {"final": {"fpb": metrics(0.5)}, "best": {"fpb": metrics(best)}}
        return [
            system.heading
            for system in systems_of(read_runs([make_run(folder, result={"scores": scores, "best_round": 2})]))
        ]

    assert headings(0.6) == ["Federated", "Federated best (round 2)"]
    assert headings(0.5) == ["Federated"]


def test_adapters_of_one_evaluation_stand_under_their_own_names(tmp_path: Path) -> None:
    scores = {"base": {"fpb": metrics(0.2)}, "bank-a": {"fpb": metrics(0.5)}, "bank-b": {"fpb": metrics(0.6)}}
    run = make_run(tmp_path / "demo", mode="evaluate", rounds=0, result={"scores": scores})
    assert [system.heading for system in systems_of(read_runs([run]))] == ["Base", "bank-a", "bank-b"]


def test_base_models_of_several_models_carry_their_names(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, final=None, mode="evaluate", result={"model": name}) for name in ("one", "other")]
    assert [system.heading for system in systems_of(read_runs(runs))] == ["one nf4", "other nf4"]


# --- paired differences and published figures -------------------------------------------------------------------------


def test_paired_differences_are_shown_where_the_caller_can_compare(tmp_path: Path) -> None:
    asked = []

    def compare(run: Path, label: str, other_run: Path, other_label: str) -> Comparison:
        asked.append((run.name, label, other_run.name, other_label))
        figures = {"accuracy": MetricDifference(0.25, 0.5, 0.25, (0.1, 0.4), 0.0004)}
        overall = MeanDifference(0.01, (-0.02, 0.04), None, None, ("fpb",))
        sides = (Compared(str(run), label), Compared(str(other_run), other_label))
        return Comparison(*sides, {"fpb": BenchmarkComparison(24, 0, 0, figures)}, {}, (), (), {}, overall)

    run = make_run(tmp_path / "demo")
    html = write_report([run], tmp_path / "report.html", catalogue(), compare=compare).read_text(encoding="utf-8")
    text = Page(element(html, '<section id="paired">') + "</section>").text
    assert asked == [("demo", "base", "demo", "final")]
    assert "Federated − Base" in text
    assert "+25.0 ▲ +10.0 to +40.0 p < 0.001" in text
    assert "Mean +1.0 −2.0 to +4.0" in text


def test_evaluations_without_common_rows_are_not_paired(tmp_path: Path) -> None:
    def compare(run: Path, label: str, other_run: Path, other_label: str) -> dict[str, object]:
        raise UserError("no row is in both")

    html = write_report([make_run(tmp_path / "demo")], tmp_path / "a.html", catalogue(), compare=compare).read_text()
    assert '<section id="paired">' not in html


def test_each_published_column_can_be_hidden(tmp_path: Path) -> None:
    html = report(tmp_path, make_run(tmp_path / "demo"))
    ids = {value for tag, name, value in Page(html).attributes if tag == "input" and name == "id"}
    assert ids == {"published-0", "published-1"}
    for index in range(2):
        assert f"main:has(#published-{index}:not(:checked)) .column-{index} {{ display: none; }}" in html


def test_the_published_federated_run_is_shown_only_with_its_benchmarks(tmp_path: Path) -> None:
    published = Published(federated_keys=("fpb", "fiqa"), federated_means={"base": 42.2, "federated": 47.6})

    def text(keys: tuple[str, ...]) -> str:
        scores = {"final": {key: metrics(0.5) for key in keys}}
        run = make_run(tmp_path / "-".join(keys), result={"scores": scores})
        return Page(write_report([run], tmp_path / "a.html", catalogue(), published=published).read_text()).text

    assert (
        "FinLoRA’s own federated run, mean of these 2 sets: base 42.2 and federated 47.6. Here: federated 50.0."
        in text(("fpb", "fiqa"))
    )
    assert "own federated run" not in text(("fpb", "tfns"))


# --- benchmark by benchmark -------------------------------------------------------------------------------------------


def test_details_of_a_benchmark_hold_metrics_confusion_and_examples(tmp_path: Path) -> None:
    html = report(tmp_path, add_evaluations(make_run(tmp_path / "demo")))
    section = html.split('id="benchmark-fpb"')[1].split('<details class="benchmark"')[0]
    for words in (
        "About the data:</b> A flaw.",
        "Matthews correlation",
        "Most probable label",
        "By class",
        "Confusion",
        "Examples",
    ):
        assert words in section, words
    assert "true ↓ answer →" in section
    assert '<td class="right shade-' in section
    assert '<td class="edge apart shade-0"' in section
    assert "Prompts are not stored in run folders" in section
    assert "3 right, 3 wrong, 3 unparsed" in section
    assert "<script>" not in section


def test_long_output_is_folded_and_cut(tmp_path: Path) -> None:
    html = report(tmp_path, add_evaluations(make_run(tmp_path / "demo")))
    assert "more characters in the run folder" in html
    assert "I cannot say &lt;script&gt;. " * 100 not in html


def test_examples_are_the_same_rows_in_any_order() -> None:
    rows = [RowRecord(f"row-{index}", "", "a", output="a", parsed="a", correct=index % 2 == 0) for index in range(40)]
    first, second = choose_examples(rows), choose_examples(reversed(rows))
    assert [[row.id for row in kind.rows] for kind in first] == [[row.id for row in kind.rows] for kind in second]
    assert [(kind.name, len(kind.rows)) for kind in first] == [("Right", 3), ("Wrong", 3)]


def test_rows_without_right_and_wrong_are_shown_by_their_distance() -> None:
    rows = [RowRecord(str(index), "", "a", output="a", parsed="a", bertscore_f1=index / 10) for index in range(8)]
    assert {kind.name: [row.id for row in kind.rows] for kind in choose_examples(rows)} == {
        "Closest to the target": ["7", "6", "5"],
        "Farthest from the target": ["2", "1", "0"],
    }


def test_rows_of_ranked_labels_are_not_called_unparsed() -> None:
    kinds = choose_examples([RowRecord("1", "", "neutral", label_choice="neutral")])
    assert [kind.name for kind in kinds] == ["Labels ranked"]


def test_large_confusion_keeps_its_totals_when_trimmed() -> None:
    labels = tuple(f"tag-{index}" for index in range(30))
    counts = tuple(tuple(row + column for column in range(32)) for row in range(30))
    small = trimmed(ConfusionMatrix(labels, (*labels, "other", "unparsed"), counts), most=12)
    assert len(small.labels) == 13
    assert small.answers[-3:] == ("18 more classes", "other", "unparsed")
    assert sum(map(sum, small.counts)) == sum(map(sum, counts))


def test_confusions_of_banks_add_up_if_they_have_the_same_classes() -> None:
    one = confusion_of(from_json(BenchmarkMetrics, detailed(0.5), "fpb"))
    assert one is not None
    both = summed([one, one])
    assert both is not None
    assert both.counts[0][0] == 2 * one.counts[0][0]
    assert summed([one, ConfusionMatrix(("a",), ("a",), ((1,),))]) is None


@pytest.mark.parametrize("broken", [{"labels": ["a"], "answers": ["a"], "counts": [[1, 2]]}, {"labels": []}, 3, None])
def test_confusion_of_a_broken_shape_is_not_shown(broken: object) -> None:
    problems: list[str] = []
    assert confusion_of(from_json(BenchmarkMetrics, {"confusion": broken}, "fpb", problems)) is None
    assert bool(problems) == (broken is not None)


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_validation_scores_are_drawn_with_the_best_round_marked(tmp_path: Path) -> None:
    html = report(tmp_path, add_evaluations(make_run(tmp_path / "demo")))
    assert "Score on validation rows" in html
    assert "<title>best round: 2</title>" in html
    assert "mean score, round 2: 50 %" in html


def test_curve_of_scores_begins_with_base_and_ends_with_the_final_adapter(tmp_path: Path) -> None:
    html = report(tmp_path, make_run(tmp_path / "demo", rounds=4))
    assert "mean of 2, round 0: 21 %" in html
    assert "mean of 2, round 4: 46 %" in html


def test_page_with_19_benchmarks_and_4_systems_stays_below_2_mb(tmp_path: Path) -> None:
    runs = [
        add_evaluations(make_run(tmp_path / mode, mode=mode, base=0.2 if mode == "federated" else None))
        for mode in ("federated", "centralized", "evaluate")
    ]
    html = report(tmp_path, *runs)
    Page(html)
    assert len(html.encode()) < 2_000_000


def test_scores_by_round_are_curves_and_not_systems(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    for label in ("round_001", "validation_round_001"):
        (run / "eval" / label).mkdir(parents=True)
        (run / "eval" / label / "metrics.json").write_text(
            json.dumps({"label": label, "scores": {"fpb": metrics(0.9)}})
        )
    assert [system.heading for system in systems_of(read_runs([run]))] == ["Base", "Federated"]


def test_remote_model_is_a_system_of_its_own_and_not_a_base(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", mode="evaluate", rounds=0, result={"scores": {}})
    (run / "eval" / "base").mkdir(parents=True)
    model = {"url": "http://127.0.0.1:8000/v1", "model": "another-8b", "chat": True}
    (run / "eval" / "base" / "metrics.json").write_text(json.dumps({"model": model, "scores": {"fpb": metrics(0.9)}}))
    system = systems_of(read_runs([run]))[0]
    assert (system.kind, system.heading) == ("evaluate", "another-8b")


def test_labels_only_evaluation_says_what_its_mean_is_of(tmp_path: Path) -> None:
    scores = {"base": {"fpb": {"n": 24, "labels_accuracy": 0.5}, "fiqa": {"n": 24, "labels_accuracy": 0.7}}}
    text = Page(
        report(tmp_path, make_run(tmp_path / "demo", mode="evaluate", rounds=0, result={"scores": scores}))
    ).text
    assert "mean accuracy of the most probable label over 2 benchmarks: base 60 %." in text
    assert "the published figures" not in text
    assert "Rows trained" not in text


def test_base_scores_that_differ_from_those_shown_are_mentioned(tmp_path: Path) -> None:
    def text(base: float) -> str:
        runs = [make_run(tmp_path / f"a{base}"), make_run(tmp_path / f"b{base}", mode="centralized", base=base)]
        return Page(report(tmp_path, *runs)).text

    assert "b0.3 scored the base model otherwise than shown; report on it alone to see how." in text(0.3)
    assert "scored the base model otherwise" not in text(0.2)


def test_several_federated_runs_are_named_in_the_verdict(tmp_path: Path) -> None:
    kinds = {"iid": ("federated", 0.5), "by-task": ("federated", 0.4), "pooled": ("centralized", 0.6)}
    runs = [make_run(tmp_path / name, mode=mode, final=final) for name, (mode, final) in kinds.items()]
    page = Page(report(tmp_path, *runs))
    assert re.search(r"base \d+ %, federated 1 \(iid\) \d+ %, federated 2 \(by-task\) \d+ %, centralized", page.text)
    assert re.search(r"Points against centralized: federated 1 \(iid\) -10\.\d, federated 2 \(by-task\) -20", page.text)
