"""What the machine does during a run, as fields of a `load` event.

A thread samples every second; `take` gives what was seen since the last call. GPUs are read by NVML (the package
nvidia-ml-py); what cannot be measured has no field.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from statistics import fmean

from fedfinlora.run.events import Load

SAMPLE_INTERVAL_S = 1.0
MEANS = ("cpu_share", "gpu_share", "gpu_watts")
"""Fields that are means over the time; the others are the highest values seen."""
Sample = dict[str, float]


class Monitor:
    """Samples until it is closed. Every field is of the whole machine but `rss_gib`."""

    def __init__(self, read: Callable[[], Sample] | None = None, interval_s: float = SAMPLE_INTERVAL_S) -> None:
        self._read = read or reader()
        self._interval_s = interval_s
        self._samples: list[Sample] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> Sample:
        """Means and highest values since the last call; what is now, where no sample was due."""
        with self._lock:
            samples, self._samples = self._samples or [self._read()], []
        return summary(samples)

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            sample = self._read()
            with self._lock:
                self._samples.append(sample)


def summary(samples: list[Sample]) -> Sample:
    """The fields of several samples as one.

    >>> summary([{"cpu_share": 0.5, "rss_gib": 1.0}, {"cpu_share": 0.7, "rss_gib": 3.0}])
    {'cpu_share': 0.6, 'rss_gib': 3.0}
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    found = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: round(fmean(values) if name in MEANS else max(values), 4) for name, values in found.items()}


def reader() -> Callable[[], Sample]:
    """A function that measures now. `cpu_share` is over the time since its last call."""
    import psutil

    process, gpus = psutil.Process(), _nvml()
    psutil.cpu_percent()  # the first call only starts the clock

    def read() -> Sample:
        memory = psutil.virtual_memory()
        sample = {
            "cpu_share": psutil.cpu_percent() / 100,
            "rss_gib": process.memory_info().rss / 2**30,
            "memory_gib": (memory.total - memory.available) / 2**30,
        }
        return sample | gpus()

    return read


def _nvml() -> Callable[[], Sample]:
    """Reads the GPUs: mean use, and memory and watts of all together."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no permission: NVML's errors are its own classes
        return dict

    def read() -> Sample:
        found: Sample = {}
        with suppress(pynvml.NVMLError):
            found["gpu_share"] = fmean(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in handles)
        with suppress(pynvml.NVMLError):
            found["gpu_memory_gib"] = sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles) / 2**30
        with suppress(pynvml.NVMLError):
            found["gpu_watts"] = sum(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000 for handle in handles)
        return found

    return read if handles else dict


def line_of(load: Load) -> str:
    """A `load` event as a line for a terminal; "" where it has no figure.

    >>> line_of(Load(cpu_share=0.93, rss_gib=1.94, gpu_share=0.5, gpu_memory_gib=21.0, gpu_watts=400.0))
    'CPU 93 %, 1.9 GiB, GPU 50 %, 21.0 GiB, 400 W'
    """
    parts = (
        ("CPU {:.0%}", load.cpu_share),
        ("{:.1f} GiB", load.rss_gib),
        ("GPU {:.0%}", load.gpu_share),
        ("{:.1f} GiB", load.gpu_memory_gib),
        ("{:.0f} W", load.gpu_watts),
    )
    return ", ".join(form.format(value).replace("%", " %") for form, value in parts if value is not None)
