"""report.html in headless Chromium: no error, nothing wider than a phone, both colour schemes, and exports that can be
saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, result_of_page
from report_runs import add_evaluations, catalogue, make_run

from fedfinlora.report import write_report

# Chromium's window cannot be narrower than 500 pixels: a frame of the wanted width represents the phone.
FRAME = """<!doctype html><iframe src="FILE" width="WIDTH" height="844" style="border:0"></iframe><script>
onload = async () => {
  const page = frames[0].document, root = page.documentElement;
  const overflow = () => root.scrollWidth - root.clientWidth;
  const found = {width: root.clientWidth, closed: overflow(), background: frames[0].getComputedStyle(page.body).backgroundColor};
  const details = [...page.querySelectorAll("details")];
  for (const element of details) element.open = true;
  found.open = overflow();
  found.shown = details.filter((element) => element.open && element.getBoundingClientRect().height > 0).length === details.length;
  found.details = details.length;
  const box = page.querySelector("#published-0"), cell = page.querySelector("td.column-0");
  const display = () => frames[0].getComputedStyle(cell).display;
  found.column = [display()];
  box.click();
  found.column.push(display());
  page.querySelector("button[data-unfold='']").click();
  found.folded = page.querySelectorAll("details.benchmark[open]").length;
  const links = [...page.querySelectorAll("a[download]")];
  found.saved = {};
  for (const link of links) found.saved[link.download] = (await (await fetch(link.href)).text()).slice(0, 40);
  found.small = links.filter((link) => link.getBoundingClientRect().height < 16).length;
  document.body.dataset.result = JSON.stringify(found);
};
</script>"""


def comparison(tmp_path: Path) -> Path:
    """A report with everything in it: several systems, a rejected bank, a skipped set, long names."""
    long_name = "a-run-with-a-very-long-name-" * 4
    runs = [
        add_evaluations(
            make_run(
                tmp_path / "federated",
                rounds=8,
                banks=4,
                reason="update norm 900 is above 100",
                result={"synthetic": True},
            )
        ),
        add_evaluations(
            make_run(tmp_path / "pooled", mode="centralized", base=None, final=0.5, result={"run": long_name})
        ),
        add_evaluations(make_run(tmp_path / "alone" / "bank-0", mode="local", base=None, final=0.3)),
        add_evaluations(make_run(tmp_path / "alone" / "bank-1", mode="local", base=None, final=0.4)),
    ]
    return write_report(runs, tmp_path / "report.html", catalogue())


def one(tmp_path: Path) -> Path:
    """A report of one run."""
    run = add_evaluations(make_run(tmp_path / "demo", reason="norm", result={"synthetic": True}))
    return write_report([run], tmp_path / "report.html", catalogue())


def look(file: Path, width: int, dark: bool) -> dict[str, Any]:
    """What the browser finds; AssertionError if the page logs anything."""
    frame = file.with_name("frame.html")
    frame.write_text(FRAME.replace("FILE", file.name).replace("WIDTH", str(width)))
    return result_of_page(frame.as_uri(), file.parent / "profile", dark, 5000)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("make", [one, comparison])
def test_browser_shows_no_error_no_sideways_overflow_and_files_to_save(
    tmp_path: Path, make: Any, width: int, dark: bool
) -> None:
    found = look(make(tmp_path), width, dark)
    assert found["width"] in (width, width - 15)  # a scroll bar may take its part
    assert (found["closed"], found["open"]) == (0, 0)
    assert found["background"] == ("rgb(21, 24, 28)" if dark else "rgb(252, 252, 250)")
    assert found["details"] > 19
    assert found["shown"]
    assert found["column"] == ["table-cell", "none"]
    assert found["folded"] == 0
    assert found["saved"]["scores.csv"].startswith("run,system,benchmark,metric,value")
    assert found["saved"]["scores.md"].startswith("| Benchmark | n |")
    assert found["saved"]["scores.tex"].startswith(r"% Needs \usepackage{booktabs}")
    figures = {name: content for name, content in found["saved"].items() if name.endswith(".svg")}
    assert {"overview.svg", "scores.svg", "confusion-fpb-federated.svg"} <= set(figures)
    assert all(content.startswith('<svg xmlns="http://www.w3.org/2000/svg"') for content in figures.values())
    assert found["small"] == 0
