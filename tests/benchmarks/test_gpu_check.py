"""`bench gpu` on a CPU: it passes where Flower and bitsandbytes are missing, and finds what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.benches import gpu, gpu_correctness, gpu_ties
from benchmarks.benches.gpu import GpuBench, bench_gpu
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model import attention

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("flwr", "ray", "hydra", "omegaconf", "opacus", "bitsandbytes", "datasets", "sklearn", "bert_score")
"""Packages that a bare CUDA image lacks."""


@pytest.fixture
def bare_site(tmp_path: Path) -> Path:
    """This environment's packages without ABSENT, as links."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith((*ABSENT, "__editable__")):
            (site / entry.name).symlink_to(entry)
    return site


def test_the_command_passes_on_a_bare_image_and_says_what_to_bring(bare_site: Path, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": f"{bare_site}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-S", "-m", "fedfinlora", "bench", "gpu", "model.device=cpu", "--json", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text("utf-8"))
    statuses = {name: section["status"] for name, section in found["sections"].items()}
    assert statuses.pop("machine") == statuses.pop("correctness") == statuses.pop("round") == "ok"
    assert set(statuses.values()) == {"skipped"}
    assert found["wheels_to_bring"] == ["bitsandbytes"]
    assert "bring the wheel of bitsandbytes" in done.stderr
    names = [check["name"] for check in found["sections"]["correctness"]["checks"]]
    assert {name.split(":")[0] for name in names} == {"fp32", "bf16", "frozen A"}


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_quantized_layers_agree_with_the_float32_reference(precision: str) -> None:
    checks = gpu_correctness.check_precision(precision, "cpu")
    assert len(checks) >= 12
    assert [check.name for check in checks if not check.ok] == []


def test_a_mask_that_is_off_by_one_ends_the_command_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only in packs longer than those that are compared when a model is loaded."""
    right = attention._close

    def wrong(*given: Any) -> list[attention.Run]:
        return [
            replace(run, mask=run.mask.roll(1, dims=1)) if run.mask is not None and run.mask.shape[1] > 100 else run
            for run in right(*given)
        ]

    monkeypatch.setattr(attention, "_close", wrong)
    monkeypatch.setattr(gpu, "PRECISIONS", {"fp32": gpu_correctness.PRECISIONS["fp32"]})
    file = tmp_path / "gpu.json"
    assert bench_gpu(["model.device=cpu"], file, 8.0) == 1
    assert any("packed gradient" in line for line in json.loads(file.read_text("utf-8"))["wrong"])


def test_a_section_that_fails_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    bench = GpuBench(8.0, tmp_path / "gpu.json", {"bench": "gpu"})

    def fails() -> dict[str, Any]:
        raise UserError("no card")

    bench.run("first", fails)
    bench.run("second", lambda: {"wrong": ["a gradient"]})
    bench.run("third", dict)
    bench.run("fourth", dict, needs_s=1000.0)
    written = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert [section["status"] for section in written["sections"].values()] == ["failed", "wrong", "ok", "skipped"]
    assert written["wrong"] == ["second: a gradient", "first: UserError: no card"]
    assert "of --minutes 8 are left" in written["sections"]["fourth"]["reason"]


def test_another_token_is_wrong_unless_the_reference_has_a_near_tie() -> None:
    logits = torch.tensor([4.0, 3.99, 1.0, -2.0, 0.0])

    def part(one: tuple[int, ...], other: tuple[int, ...]) -> gpu_ties.Part:
        return gpu_ties.where_they_part(lambda ids: logits.expand(1, ids.shape[1], 5), 2, (3, 4), one, other)

    assert part((4, 0), (4, 1)).is_near_tie(0.05)
    assert not part((4, 0), (4, 1)).is_near_tie(0.001)
    assert not part((4, 0), (4, 3)).is_near_tie(0.25)
    ended = part((4,), (4, 0))
    assert (ended.one, ended.other) == (2, 0), "an answer that ends first takes the end token there"
    assert not ended.is_near_tie(0.25)


def test_a_check_that_is_not_a_number_is_wrong() -> None:
    check = gpu_correctness.Check("loss", float("nan"), 1.0)
    assert not check.ok
    assert check.shown()["value"] is None


def test_another_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.path= and model\.device= alone, not peft\.rank"):
        bench_gpu(["peft.rank=4"], None, 8.0)
