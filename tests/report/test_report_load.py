"""The report's table of the machine's load has what the run's `load` events say, and no column for the rest."""

from __future__ import annotations

from pathlib import Path

from fedfinlora.report.load import load_table
from fedfinlora.run.events import Load, Message
from fedfinlora.run.progress import FILE_NAME, EventWriter


def write(folder: Path, *events: Load | Message) -> Path:
    with EventWriter(folder / FILE_NAME) as writer:
        for event in events:
            writer.write(event)
    return folder


def test_use_is_a_mean_and_memory_the_highest(tmp_path: Path) -> None:
    rounds = [
        Load(round=1, of="round", cpu_share=0.5, rss_gib=1.0, memory_gib=6.0),
        Load(round=2, of="round", cpu_share=0.9, rss_gib=1.5, memory_gib=5.0),
    ]
    last = Load(round=2, of="evaluation", cpu_share=1.0, rss_gib=2.25, memory_gib=7.0)
    table = load_table(write(tmp_path, *rounds, Message(level="info", text="a line"), last))
    assert table.head == ("During", "CPU use", "Process memory", "Machine memory")
    assert table.rows == [["Rounds", "70 %", "1.50 GiB", "6.0 GiB"], ["Evaluation", "100 %", "2.25 GiB", "7.0 GiB"]]


def test_gpu_columns_are_there_where_a_gpu_was_measured(tmp_path: Path) -> None:
    one = Load(round=1, of="round", cpu_share=0.1, gpu_share=0.875, gpu_memory_gib=21.4, gpu_watts=412.0)
    other = Load(round=1, of="evaluation", cpu_share=0.1)
    table = load_table(write(tmp_path, one, other))
    assert table.head[2:] == ("GPU use", "GPU memory", "GPU power")
    assert table.rows == [["Rounds", "10 %", "88 %", "21.4 GiB", "412 W"], ["Evaluation", "10 %", "–", "–", "–"]]


def test_a_run_without_load_events_has_no_table(tmp_path: Path) -> None:
    assert load_table(tmp_path).rows == []
    assert load_table(write(tmp_path, Message(level="info", text="a line"))).rows == []
    assert load_table(write(tmp_path, Load(round=1, of="round"))).rows == []
