"""The aggregator's status page: what it says, that it escapes, and how it looks and refreshes in headless Chromium."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, result_of_page
from report_runs import Page
from watched_runs import HOSTILE, make_home

from fedfinlora.deployment import status_page
from fedfinlora.deployment.local_server import Response, close, serve


def shown(home: Path, query: str = "") -> str:
    return status_page.answer(home, "aggregator.example", query).body


def test_it_shows_the_run_that_was_started_last(tmp_path: Path) -> None:
    html = shown(make_home(tmp_path / "home"))
    page = Page(html)
    for words in (
        "going-on",
        "running",
        "1 of 4",
        "round 2 is running",
        "Banks awaited",
        "Epsilon spent, most 1.25",
        "Train loss",
    ):
        assert words in page.text
    assert "server.crt ends in 5 days" in page.text
    assert "coordinator renew" in page.text
    assert "bank-2 not registered" in page.text


def test_it_shows_another_run_on_request(tmp_path: Path) -> None:
    page = Page(shown(make_home(tmp_path / "home", days=365), "run=1"))
    assert "3 of 3" in page.text
    assert "bank-1 max_rank 1 3" in page.text
    assert "Mean accuracy" in page.text
    assert "Certificate" not in page.text
    assert "svg" in page.tags


def test_what_run_folders_hold_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    html = shown(make_home(tmp_path / "home"), 'run="><script>')
    page = Page(html)
    assert page.tags.count("script") == 1
    assert HOSTILE in page.text
    assert "<script>alert(1)</script>" in page.text
    assert not [value for _, name, value in page.attributes if name in ("src", "action") or name.startswith("on")]
    assert all(value.startswith(("?run=", "data:,")) for _, name, value in page.attributes if name == "href")
    assert str(tmp_path) not in html


def test_it_works_without_javascript(tmp_path: Path) -> None:
    refresh = '<noscript><meta http-equiv="refresh" content="5"></noscript>'
    assert refresh in shown(make_home(tmp_path / "home"))


def test_a_coordinator_without_runs_and_banks_has_a_page(tmp_path: Path) -> None:
    page = Page(shown(tmp_path))
    assert "No run yet" in page.text
    assert "server.crt cannot be read" in page.text


FRAME = """<!doctype html><iframe src="/PATH" width="WIDTH" height="844" style="border:0"></iframe><script>
onload = () => {
  const page = frames[0].document, root = page.documentElement, found = {overflow: [], width: root.clientWidth};
  found.background = frames[0].getComputedStyle(page.body).backgroundColor;
  const look = () => {
    found.overflow.push(root.scrollWidth - root.clientWidth);
    found.refreshed = Number(root.dataset.refreshed || 0);
    found.runs = page.querySelectorAll("#runs tbody tr").length;
    document.body.dataset.result = JSON.stringify(found);
  };
  look();
  setInterval(look, 500);
};
</script>"""


def look(home: Path, path: str, width: int, dark: bool) -> dict[str, Any]:
    """What the browser finds after the page has refreshed itself; AssertionError if it logs anything."""
    assert CHROMIUM is not None
    frame = FRAME.replace("PATH", path).replace("WIDTH", str(width))
    pages = {
        "/": lambda query: status_page.answer(home, "aggregator.example", query),
        "/frame": lambda _: Response(frame, "text/html; charset=utf-8", headers={}),
    }
    server = serve(pages, 0)
    try:
        profile = home.parent / f"profile-{time.monotonic_ns()}"
        return result_of_page(f"http://127.0.0.1:{server.server_port}/frame", profile, dark, 9000)
    finally:
        close(server)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("path", "width", "dark"), [("", 390, True), ("?run=1", 390, False), ("", 1280, False)])
def test_browser_shows_no_error_no_sideways_overflow_and_refreshes(
    tmp_path: Path, path: str, width: int, dark: bool
) -> None:
    found = look(make_home(tmp_path / "home"), path, width, dark)
    assert found["width"] in (width, width - 15)
    assert set(found["overflow"]) == {0}
    assert found["background"] == ("rgb(21, 24, 28)" if dark else "rgb(252, 252, 250)")
    assert found["refreshed"] >= 1
    assert found["runs"] == 2
