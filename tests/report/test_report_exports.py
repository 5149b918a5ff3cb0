"""What the report gives to other programs: CSV, Markdown and LaTeX tables, and figures that stand alone, as links and
as files.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from report_runs import Page, add_evaluations, catalogue, make_run, metrics, report

from fedfinlora.report import Published, write_exports

PUBLISHED = Published(band=("LoRA 8-bit",), pin="Base")


def exported(tmp_path: Path, *runs: Path) -> Path:
    write_exports(runs, tmp_path / "exports", catalogue(), PUBLISHED)
    return tmp_path / "exports"


def saved_files(html: str) -> dict[str, str]:
    """File name -> content, of every link that saves a file."""
    links: dict[str, dict[str, str]] = {}
    for tag, name, value in Page(html).attributes:
        if tag == "a" and name == "download":
            links[value] = {}
            last = value
        elif tag == "a" and name == "href" and value.startswith("data:"):
            links[last]["href"] = value
    found = {}
    for file, link in links.items():
        head, encoded = link["href"].split(",", 1)
        assert re.fullmatch(r"data:[a-z]+/[a-z+-]+;charset=utf-8;base64", head)
        found[file] = base64.b64decode(unquote(encoded), validate=True).decode("utf-8")
    return found


def rows_of(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content)))


def test_csv_read_back_gives_every_figure_with_its_interval(tmp_path: Path) -> None:
    folder = exported(tmp_path, add_evaluations(make_run(tmp_path / "demo")))
    rows = rows_of((folder / "scores.csv").read_text(encoding="utf-8"))
    found = {(row["system"], row["benchmark"], row["metric"]): row for row in rows if row["run"] == "demo"}
    assert len(found) == sum(row["run"] == "demo" for row in rows), "each figure once"
    expected = metrics(0.45)
    accuracy = found["Federated", "fpb", "accuracy"]
    assert (float(accuracy["value"]), float(accuracy["low"]), float(accuracy["high"])) == (
        0.45,
        *expected["accuracy_ci95"],
    )
    assert accuracy["n"] == "24"
    assert found["Federated", "xbrl_term", "bertscore_f1"]["low"] == ""
    assert found["Federated", "fpb", "decoding.rows_differ"]["value"] == "1"
    assert found["Base", "group:general", "score"]["high"] == "0.6"
    published = [row for row in rows if row["run"] == "published" and row["benchmark"] == "fpb"]
    assert {(row["system"], row["metric"]): float(row["value"]) for row in published} == {
        ("Base", "finlora_accuracy"): 0.4, ("Base", "finlora_f1"): 0.5,
        ("LoRA 8-bit", "finlora_accuracy"): 0.8, ("LoRA 8-bit", "finlora_f1"): 0.9,
    }  # fmt: skip


def test_csv_has_banks_that_trained_alone_one_by_one(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, mode="local", base=None, final=value)
        for name, value in (("bank-0", 0.3), ("bank-1", 0.4))
    ]
    rows = rows_of((exported(tmp_path, *runs) / "scores.csv").read_text(encoding="utf-8"))
    values = {row["run"]: row["value"] for row in rows if (row["benchmark"], row["metric"]) == ("fpb", "accuracy")}
    assert values == {"bank-0": "0.3", "bank-1": "0.4"}


def test_no_text_in_the_csv_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", result={"run": "=1+1"})
    assert all(not row["run"].startswith("=") for row in rows_of((exported(tmp_path, run) / "scores.csv").read_text()))


def test_markdown_has_one_row_a_benchmark_and_as_many_cells_in_each(tmp_path: Path) -> None:
    text = (exported(tmp_path, make_run(tmp_path / "demo")) / "scores.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5}
    assert sum("[" in line for line in lines) == 18  # 17 accuracies and their mean; these BERTScores have no interval
    assert "| FPB | 24 | 20.0 [" in text


def test_names_cannot_break_out_of_the_tables(tmp_path: Path) -> None:
    scores = {"a|b_c%$\\x": {"fpb": metrics(0.5)}}
    folder = exported(tmp_path, make_run(tmp_path / "demo", mode="evaluate", result={"scores": scores}))
    assert r"a\|b\_c%$\\x" in (folder / "scores.md").read_text(encoding="utf-8")
    assert r"a|b\_c\%\$\textbackslash{}x" in (folder / "scores.tex").read_text(encoding="utf-8")


def test_latex_rows_have_as_many_cells_as_the_table_has_columns(tmp_path: Path) -> None:
    text = (exported(tmp_path, make_run(tmp_path / "demo")) / "scores.tex").read_text(encoding="utf-8")
    columns = re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)
    assert columns
    assert len(columns[1]) == 6  # name, n, two systems, two published columns
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 21  # head, 19 benchmarks, mean
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in text


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed (Debian: texlive-latex-recommended)"
)
def test_latex_table_compiles(tmp_path: Path) -> None:
    scores = {"base": {"fpb": metrics(0.2)}, "a_b & 50 % #1 {x} ~^\\ ε": {"fpb": metrics(0.5)}}
    folder = exported(tmp_path, make_run(tmp_path / "demo", mode="evaluate", result={"scores": scores}))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{scores.tex}\end{document}"
    (folder / "document.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


def test_synthetic_scores_say_so_in_their_tables(tmp_path: Path) -> None:
    folder = exported(tmp_path, make_run(tmp_path / "demo", result={"synthetic": True}))
    for name in ("scores.md", "scores.tex"):
        assert "synthetic sample: no measure of quality" in (folder / name).read_text(encoding="utf-8")


def test_every_figure_is_independent(tmp_path: Path) -> None:
    folder = exported(tmp_path, add_evaluations(make_run(tmp_path / "demo", rounds=3, reason="norm")))
    files = sorted((folder / "figures").iterdir())
    names = {file.name for file in files}
    assert {"overview.svg", "scores.svg", "confusion-fpb-federated.svg", "demo-validation.svg"} <= names
    for file in files:
        content = file.read_text(encoding="utf-8")
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in content, "a colour that only the page has"
        style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
        styled = set(re.findall(r"\.([a-z0-9-]+)", style))
        used = {name for item in root.iter() for name in item.get("class", "").split()}
        assert used <= styled | {"thin", "thick"}, file.name
        assert not re.search(r"(href|src)=|url\(|<script", content)


def test_links_in_the_page_save_the_same_files_as_export_writes(tmp_path: Path) -> None:
    run = add_evaluations(make_run(tmp_path / "demo"))
    folder = exported(tmp_path, run)
    saved = saved_files(report(tmp_path, run))
    written = {file.name for file in folder.rglob("*.*")}
    # The helper's page knows no published band, so these figures are drawn without it.
    same = {name for name in written if not name.startswith("published-") and name != "scores.tex"}
    assert set(saved) == written
    for name in same:
        file = folder / name if name.startswith("scores.") and not name.endswith(".svg") else folder / "figures" / name
        assert saved[name] == file.read_text(encoding="utf-8"), name


def test_hostile_names_stay_text_in_figures_and_file_names(tmp_path: Path) -> None:
    name = '../<script>alert("1")</script>'
    run = make_run(tmp_path / "demo", result={"run": name})
    folder = exported(tmp_path, run)
    assert all(re.fullmatch(r"[a-z0-9_.-]+", file.name) for file in (folder / "figures").iterdir())
    assert all("<script" not in file.read_text(encoding="utf-8") for file in (folder / "figures").iterdir())


def test_figures_of_runs_of_the_same_name_do_not_replace_each_other(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / where / "demo") for where in ("a", "b")]
    names = {file.name for file in (exported(tmp_path, *runs) / "figures").iterdir()}
    assert {"demo-train-loss.svg", "demo-train-loss-2.svg"} <= names


def test_label_scoring_has_columns_of_its_own_in_the_tables(tmp_path: Path) -> None:
    scores = {
        "base": {
            "fpb": {**metrics(0.2), "labels_accuracy": 0.5, "labels_accuracy_ci95": [0.4, 0.6]},
            "fiqa": metrics(0.3),
        }
    }
    folder = exported(tmp_path, make_run(tmp_path / "demo", result={"scores": scores}))
    text = (folder / "scores.md").read_text(encoding="utf-8")
    assert "| Benchmark | n | Base | Base, most probable label |" in text
    assert "| 50.0 [40.0, 60.0] |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    rows = [
        line
        for line in (folder / "scores.tex").read_text().splitlines()
        if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
