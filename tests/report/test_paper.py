"""Figures and LaTeX tables for papers: what is drawn, in which units, and what happens without matplotlib."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from report_runs import catalogue, make_run

from eval.report import write_paper_files
from fedfinlora.commands.report import report
from fedfinlora.errors import UserError
from fedfinlora.report.benchmarks import Published
from fedfinlora.report.content import Content, read_content
from fedfinlora.report.paper import FIGURES, NAMES, figure_files, table_files


def run_with_load(folder: Path, gpu: bool = True, **options: Any) -> Path:
    """A run folder with the `load` events of three rounds."""
    run = make_run(folder, **options)
    on_gpu = {"gpu_share": 0.5, "gpu_memory_gib": 21.5, "gpu_watts": 400.0} if gpu else {}
    events = [{"t": 1.0, "event": "trainable", "parameters": 2560}]
    events += [
        {"t": 1.0, "event": "load", "of": "round", "round": number, "cpu_share": 0.25, "rss_gib": 2.0, **on_gpu}
        for number in (1, 2, 3)
    ]
    (run / "progress.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return run


def content(*runs: Path) -> Content:
    return read_content(runs, catalogue(), Published())


def two_runs(folder: Path) -> Content:
    moves_nothing = {"bytes_up": 0, "bytes_down": 0}
    return content(
        run_with_load(folder / "federated"),
        run_with_load(folder / "pooled", gpu=False, mode="centralized", banks=1, final=0.5, result=moves_nothing),
    )


@pytest.mark.parametrize("name", ["efficiency"])
def test_a_figure_is_png_at_300_dpi_and_pdf_with_the_same_bytes_again(tmp_path: Path, name: str) -> None:
    from PIL import Image

    found = two_runs(tmp_path)
    files = figure_files(found, name)
    assert set(files) == {f"{name}.png", f"{name}.pdf"}
    with Image.open(io.BytesIO(files[f"{name}.png"])) as image:
        assert [round(dpi) for dpi in image.info["dpi"]] == [300, 300]
        assert image.width == 2100, "7 inches"
    assert files[f"{name}.pdf"].startswith(b"%PDF")
    assert figure_files(found, name) == files


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_label_with_its_unit_and_series_differ_twice(tmp_path: Path, name: str) -> None:
    for figure in FIGURES[name](two_runs(tmp_path)).values():
        assert figure is not None
        assert figure.legends, "a legend"
        for axes in figure.axes:
            assert axes.get_xlabel()
            assert axes.get_ylabel() or name == "performance", "whose y axis names benchmarks"
        lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines)


def test_the_load_figure_shows_use_memory_and_power_as_recorded(tmp_path: Path) -> None:
    figures = FIGURES["load"](two_runs(tmp_path))
    assert set(figures) == {"load-federated", "load-pooled"}
    with_gpu, without = figures["load-federated"], figures["load-pooled"]
    assert with_gpu is not None
    assert without is not None
    drawn = {
        (axes.get_ylabel(), line.get_label()): list(line.get_ydata()) for axes in with_gpu.axes for line in axes.lines
    }
    assert drawn["mean use, %", "CPU"] == [25.0] * 3
    assert drawn["mean use, %", "GPU"] == [50.0] * 3
    assert drawn["most memory, GiB", "GPU"] == [21.5] * 3
    assert drawn["mean power, W", "GPU"] == [400.0] * 3
    assert [axes.get_ylabel() for axes in without.axes] == ["mean use, %", "most memory, GiB"]


def test_a_run_without_rounds_has_no_curves_and_no_files_of_them(tmp_path: Path) -> None:
    found = content(make_run(tmp_path / "demo", mode="evaluate", rounds=0))
    assert [name for name in FIGURES if any(FIGURES[name](found).values())] == ["score", "performance"]
    assert figure_files(found, "loss") == {}


def test_without_scores_by_round_the_curve_goes_from_base_to_final(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    lines = [json.loads(line) | {"scores": {}} for line in (run / "rounds.jsonl").read_text().splitlines()]
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    figure = FIGURES["score"](content(run))["score"]
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 3]


def test_bytes_and_seconds_of_the_efficiency_figure_are_those_of_the_runs(tmp_path: Path) -> None:
    figure = FIGURES["efficiency"](two_runs(tmp_path))["efficiency"]
    assert figure is not None
    points = [container.lines[0].get_xdata()[0] for axes in figure.axes for container in axes.containers]
    moved = 2 * 3 * 2 * 1_843_200 / 1e6
    assert points == [moved, 96.0, 96.0], "the pooled run moves no bytes: a line, no point"


def test_the_best_of_a_row_is_bold_and_equals_all_are(tmp_path: Path) -> None:
    text = table_files(two_runs(tmp_path), "accuracy_f1")["accuracy_f1.tex"].decode()
    row = next(line for line in text.splitlines() if line.startswith("FPB"))
    base, federated, centralized = row.removesuffix(r" \\").split(" & ")[1:]
    assert (r"\textbf" in base, r"\textbf" in federated) == (False, False)
    assert centralized.startswith(r"\textbf{50.0} / ")
    term = next(line for line in text.splitlines() if line.startswith(r"XBRL\_TERM"))
    assert all(cell.startswith("-- / ") for cell in term.split(" & ")[1:]), "BERTScore F1 alone"


def test_the_resources_table_has_parameters_traffic_time_and_memory(tmp_path: Path) -> None:
    text = table_files(two_runs(tmp_path), "resources")["resources.tex"].decode()
    rows = [line.removesuffix(r" \\").split(" & ")[2:] for line in text.splitlines() if "smollm2" in line]
    assert rows == [
        ["2,560", "22.12", "96.0", "2.00", "21.50"],
        ["2,560", r"\textbf{0.00}", "96.0", "2.00", "--"],
    ]


def test_export_writes_every_name_and_figure_writes_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with_load(tmp_path / "demo")
    report([run], run / "report.html", tmp_path / "all")
    assert {file.stem for file in (tmp_path / "all" / "paper").iterdir()} == set(NAMES)
    report([run], tmp_path / "elsewhere.html", tmp_path / "one", ["resources"])
    assert [file.name for file in (tmp_path / "one").rglob("*.*")] == ["resources.tex"]
    assert not (tmp_path / "elsewhere.html").exists()
    assert "resources.tex" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "export", "words"),
    [(["los"], True, r"Unknown figure 'los'. Did you mean 'loss'\?"), (["loss"], False, "Add --export DIR")],
)
def test_a_figure_that_is_not_there_is_named(tmp_path: Path, names: list[str], export: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        report([make_run(tmp_path / "demo")], tmp_path / "a.html", tmp_path / "out" if export else None, names)


def test_without_matplotlib_the_rest_is_written_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "demo")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert report([run], run / "report.html", tmp_path / "out") == 0
    assert (tmp_path / "out" / "scores.tex").is_file()
    assert (tmp_path / "out" / "paper" / "resources.tex").is_file()
    assert "pip install 'fedfinlora[figures]'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"pip install 'fedfinlora\[figures\]'"):
        write_paper_files([run], tmp_path / "out", ["loss"])
