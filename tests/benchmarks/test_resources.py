"""The table of what runs cost holds what a run measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import overrides, write_rows

from benchmarks.resources import Resources, loads, main, resources_of, section, table
from fedfinlora.commands.baselines import centralized
from fedfinlora.files import read_json
from fedfinlora.report.reading import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    assert centralized(overrides(write_rows(folder / "rows"), folder, name="run")) == 0
    return folder / "run"


def test_a_cpu_run_has_its_batch_memory_hours_and_adapter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = resources_of(read_run(run))
    assert found.adapter_bytes == (run / "adapters" / "final" / "adapter_model.safetensors").stat().st_size
    assert found.rss_gib is not None
    assert 0.05 < found.rss_gib < 50
    assert found.device_hours is not None
    assert found.device_hours > 0
    assert main([str(run), "--out", str(run / "table.md")]) == 0
    shown = capsys.readouterr().out
    assert (run / "table.md").read_text("utf-8") == shown
    assert "device hours" in shown
    assert "GPU" not in shown
    assert "euros" not in shown


def test_each_round_and_the_last_evaluation_report_the_machines_load(run: Path) -> None:
    events = loads(run)
    assert [event.round for event in events if event.of == "round"] == [1, 2]
    assert all(None not in (event.cpu_share, event.rss_gib, event.memory_gib) for event in events)
    gpu = {event.gpu_share for event in events} | {event.gpu_memory_gib for event in events}
    assert torch.cuda.is_available() or gpu == {None}


def test_watts_and_a_price_give_energy_and_euros() -> None:
    one = Resources("a", "llama", 2, 16, 1.0, 2.0, 21.5, 0.9, 400.0, 2.0, 2_000_000, 0.05)
    bare = Resources("b", "llama", 2, 16, 1.0, 2.0, None, None, None, None, None, None)
    text = table([one, bare], euros_per_hour=3.5)
    assert "| 400 | 0.800 | 7.00 | 2.00 | 0.050 |" in text
    assert text.splitlines()[-1].endswith("| – | – | – | – | – | – | – | – |")


def test_what_is_kept_for_the_results_gives_the_same_table(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert main([str(run), "--euros-per-hour", "2", "--json", str(file), "--out", str(tmp_path / "table.md")]) == 0
    kept = read_json(file)
    shown = section(kept)
    assert shown.startswith((tmp_path / "table.md").read_text("utf-8"))
    assert str(run.parent) not in file.read_text("utf-8"), "no place of this machine"


def test_no_run_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
