"""What the machine does, as events: means, peaks, and no field for what is not measured."""

from __future__ import annotations

import threading
from dataclasses import replace

from fedfinlora.run.events import Load
from fedfinlora.run.monitor import Monitor, line_of, reader, summary
from fedfinlora.run.progress import ProgressState
from fedfinlora.run.progress_lines import plain_line


def test_shares_are_means_and_memory_is_the_highest() -> None:
    samples = [{"gpu_share": 0.2, "gpu_memory_gib": 3.0}, {"gpu_share": 0.6, "gpu_memory_gib": 5.0}]
    assert summary(samples) == {"gpu_share": 0.4, "gpu_memory_gib": 5.0}


def test_take_gives_what_was_seen_since_the_last_call() -> None:
    read = threading.Event()
    sizes = iter([1.0, 3.0])

    def sample() -> dict[str, float]:
        size = next(sizes, 2.0)
        if size == 2.0:
            read.set()
        return {"rss_gib": size}

    monitor = Monitor(sample, interval_s=0.001)
    assert read.wait(5)
    monitor.close()
    assert monitor.take() == {"rss_gib": 3.0}
    assert monitor.take() == {"rss_gib": 2.0}  # nothing was due: what is now


def test_a_machine_without_a_gpu_has_no_field_for_one() -> None:
    found = reader()()
    assert {"cpu_share", "rss_gib", "memory_gib"} <= set(found)
    assert found["rss_gib"] > 0
    assert "None" not in line_of(Load(**found))


def test_a_gpus_load_is_a_line_of_the_log() -> None:
    event = Load(round=2, of="round", cpu_share=0.5, rss_gib=1.0)
    assert plain_line(event, ProgressState(rounds=3)) == ""
    shown = plain_line(replace(event, gpu_share=0.9, gpu_memory_gib=21.0), ProgressState(rounds=3))
    assert shown == "round 2/3 round: CPU 50 %, 1.0 GiB, GPU 90 %, 21.0 GiB"
