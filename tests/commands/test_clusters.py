"""`clusters`: cosines of kept updates against dense matrices, the groups, and adapters that `evaluate` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import overrides, write_rows

from fedfinlora import cli
from fedfinlora.commands.clusters import CLUSTERS_FILE, Clusters, cosines_of, grouped
from fedfinlora.commands.in_process import train_here
from fedfinlora.commands.replayed import KeptRun, read_kept_run
from fedfinlora.compose import compose
from fedfinlora.files import read_json
from fedfinlora.model.adapter import load_adapter
from fedfinlora.provenance.deltas import delta_file
from fedfinlora.run.typed import from_json


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three banks, two rounds."""
    place = tmp_path_factory.mktemp("clustered")
    write_rows(place / "rows", train=40, test=9)
    words = overrides(place / "rows", place, "strategy.keep_deltas=true", "partition=dirichlet", name="run", banks=3)
    return train_here(compose(words))


def dense(run: KeptRun, number: int, start: np.ndarray, bank: str, rank: int | None = None) -> np.ndarray:
    """The change of all layers' products by a bank in a round, in the first ranks or all of them, (entries,)."""
    delta = np.fromfile(delta_file(run.folder, number, bank), "<f4")
    changed = []
    for layer in run.layout.layers:
        (a, b), (da, db) = (tuple(part.astype(np.float64) for part in layer.of(one)) for one in (start, delta))
        after, before = (b + db)[:, :rank] @ (a + da)[:rank], b[:, :rank] @ a[:rank]
        changed.append((after - before).ravel())
    return np.concatenate(changed)


def test_cosines_are_those_of_the_whole_products(kept: Path) -> None:
    """Of each round, from its own first adapter, then their mean."""
    run = read_kept_run(kept)
    starts = [run.start, load_adapter(kept / "adapters" / "round_001", run.layout)]
    expected = np.zeros((3, 3))
    for number, start in enumerate(starts, 1):
        moved = np.array([dense(run, number, start, bank) for bank in run.banks])
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        expected += moved @ moved.T / 2
    np.testing.assert_allclose(cosines_of(run), expected, atol=1e-6)


def test_banks_of_another_rank_are_compared_on_shared_ranks(kept: Path, tmp_path: Path) -> None:
    """Rows are spread evenly: a bank of a lower rank is as near the others as they are to each other."""
    words = ("strategy=hetlora", "strategy.ranks=[bank-0:2]", "strategy.keep_deltas=true", "train.learning_rate=0.01")
    run = read_kept_run(train_here(compose(overrides(kept.parent / "rows", tmp_path, *words, banks=3))))
    found = cosines_of(run)
    assert grouped(found, None, 0.5) == [[0, 1, 2]], found
    expected = 0.0
    for number, (adapter, replies) in enumerate(run.rounds(run.banks), 1):
        if replies is not None:
            one, other = (dense(run, number, adapter, bank, rank=2) for bank in ("bank-0", "bank-1"))
            expected += one @ other / np.linalg.norm(one) / np.linalg.norm(other) / 2
    assert abs(found[0, 1] - expected) < 1e-6


def test_groups_join_by_their_mean_cosine() -> None:
    """Pairs without a common round count as 0."""
    cosines = np.array([[1, 0.9, 0.1, np.nan], [0.9, 1, 0.2, 0], [0.1, 0.2, 1, 0.8], [np.nan, 0, 0.8, 1]])
    assert grouped(cosines, None, 0.5) == [[0, 1], [2, 3]]
    assert grouped(cosines, None, 0.95) == [[0], [1], [2], [3]]
    assert grouped(cosines, None, 0.05) == [[0, 1, 2, 3]]
    assert grouped(cosines, 3, 0.0) == [[0, 1], [2], [3]]


def test_adapters_of_the_clusters_can_be_routed(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In PEFT's form; the printed command is one that `evaluate` takes once the tasks are typed."""
    assert cli.main(["clusters", str(kept), "--clusters", "2", "--output", str(tmp_path / "two")]) == 0
    printed = capsys.readouterr().out
    assert "--route task" in printed
    assert "replay" in printed
    found = from_json(Clusters, read_json(tmp_path / "two" / CLUSTERS_FILE), CLUSTERS_FILE)
    assert sorted(bank for one in found.clusters for bank in one.banks) == ["bank-0", "bank-1", "bank-2"]
    folders = [tmp_path / "two" / "adapters" / one.name for one in found.clusters]
    tasks = dict(zip(folders, ("fpb", "fiqa"), strict=True))
    words = ["model=tiny-random", "dataset=finlora", f"dataset.root={kept.parent / 'rows'}", f"output_dir={tmp_path}",
             "run_name=routed", "evaluation.benchmarks=[fpb]", "evaluation.limit=2"]  # fmt: skip
    options = [word for folder in folders for word in ("--adapter", f"{folder.name}={folder}:{tasks[folder]}")]
    assert cli.main(["evaluate", *options, "--route", "task", *words]) == 0
    assert read_json(tmp_path / "routed" / "eval" / "task" / "metrics.json")["model"]["choice"] == {"fpb": "cluster-0"}


def test_one_cluster_of_all_banks_is_the_run(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["clusters", str(kept), "--threshold", "-1", "--output", str(tmp_path / "one")]) == 0
    assert "nothing to route" in capsys.readouterr().out
    own = tmp_path / "one" / "adapters" / "cluster-0" / "adapter_model.safetensors"
    assert own.read_bytes() == (kept / "adapters" / "final" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clusters", "4"], "--clusters must be 1 to 3"),
        (["--clusters", "0"], "--clusters must be 1 to 3"),
        (["--threshold", "1.5"], "--threshold is a cosine"),
        (["--threshold", "nan"], "--threshold is a cosine"),
        (["--threshold", "0", "--clusters", "2"], "give one of them"),
        (["train.epochs=2"], "can be changed here"),
    ],
)
def test_what_cannot_be_clustered_is_refused_in_one_line(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["clusters", str(kept), *words, "--output", str(tmp_path / "no")]) in (1, 2)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "no").exists()


def test_a_folder_with_files_is_not_written_over(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["clusters", str(kept), "--output", str(kept)]) == 1
    assert "Name a new folder" in capsys.readouterr().err
