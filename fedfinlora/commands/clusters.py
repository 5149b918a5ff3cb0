"""`clusters`: which banks of a run send similar updates, and an adapter for each group of them.

Two banks are as near as the cosine of their updates, averaged over the rounds in which both took part. An update is the
change of the product, (B + dB)(A + dA) - B A: factors of the same product can have any cosine. Of banks of different
ranks (strategy.ranks) it is that of the ranks that both train: an update of a lower rank takes the others away, which
says nothing of the bank's rows. Groups are joined while their mean cosine is above a threshold (average linkage), or
down to a number of them. After clustered federated learning (Sattler, Müller and Samek 2019, arXiv 1910.01991), which
splits in two again and again; here it is done once, after the run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfinlora.commands.printed import print_table
from fedfinlora.commands.replayed import KeptRun, read_kept_run
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import made_as, make_private, write_json
from fedfinlora.report.formats import DASH
from fedfinlora.report.tables import Table
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.typed import to_json
from server_app.average_loss import shared_cosines

CLUSTERS_FILE = "clusters.json"
THRESHOLD = 0.2
"""Of a mean cosine: banks of one distribution are above it after a few steps, banks of different tasks near 0."""
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Cluster:
    """Banks with similar updates."""

    name: str
    banks: tuple[str, ...]
    within: float | None
    """Mean cosine of two of its banks; None for one bank."""
    to_others: float | None
    """Mean cosine of one of its banks and one of another cluster; None where there is no other."""
    adapter_sha256: str
    """Of the adapter that its banks' recorded updates give."""


@dataclass(frozen=True)
class Clusters:
    """clusters.json."""

    run: str
    rounds: int
    banks: tuple[str, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    """(banks, banks): mean cosine of two banks' updates over the rounds of both; None where they had no round in
    common.
    """
    threshold: float | None
    """None where the number of clusters was given."""
    is_replay: bool
    """Whether later updates were computed from adapters of all banks."""
    clusters: tuple[Cluster, ...]


def clusters(folder: Path, count: int | None, threshold: float | None, output: Path, words: Sequence[str]) -> int:
    """Write `output`/clusters.json and `output`/adapters/cluster-N, and print the tables and the next command."""
    if count is not None and threshold is not None:
        raise ConfigError("--clusters and --threshold both say how many: give one of them.")
    run = read_kept_run(folder, words)
    if len(run.banks) < 2:
        raise UserError(f"{folder} has updates of one bank only: clusters need two banks or more.")
    if count is not None and not 1 <= count <= len(run.banks):
        raise ConfigError(f"--clusters must be 1 to {len(run.banks)}, the banks of {folder.name}, not {count}.")
    threshold = THRESHOLD if threshold is None else threshold
    if not -1 <= threshold <= 1:
        raise ConfigError(f"--threshold is a cosine, from -1 to 1, not {threshold:g}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already. Name a new folder with --output.")
    cosines = cosines_of(run)
    groups = grouped(cosines, count, threshold)
    make_private(output)
    with made_as(output):
        found = []
        for number, members in enumerate(groups):
            name, banks = f"cluster-{number}", [run.banks[place] for place in members]
            adapter = run.replay(banks)
            run.save(output / "adapters" / name, adapter)
            within, to_others = _means(cosines, members)
            found.append(Cluster(name, tuple(banks), within, to_others, adapter_checksum(adapter)))
        shown = tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in cosines)
        known = Clusters(
            run.folder.name, len(run.lines), tuple(run.banks), shown, threshold if count is None else None,
            not run.is_one_shot, tuple(found),
        )  # fmt: skip
        write_json(output / CLUSTERS_FILE, to_json(known))
    print_table(cosine_table(known))
    print_table(cluster_table(known))
    print("\n".join(_next(known, output)))
    return 0


def cosines_of(run: KeptRun) -> Matrix:
    """(banks, banks) mean cosine of two banks' updates over the rounds in which both moved; NaN where there is none."""
    place_of = {bank: place for place, bank in enumerate(run.banks)}
    total, rounds = np.zeros((2, len(place_of), len(place_of)))
    for adapter, replies in run.rounds(run.banks):
        if replies is None:
            continue
        found = shared_cosines(adapter, replies, run.config.strategy.declared_ranks())
        where = np.ix_(*[[place_of[bank] for bank in replies.banks]] * 2)
        total[where] += np.nan_to_num(found)
        rounds[where] += ~np.isnan(found)
    return np.divide(total, rounds, out=np.full_like(total, np.nan), where=rounds > 0)


def grouped(cosines: Matrix, count: int | None, threshold: float) -> list[list[int]]:
    """The places of each group's members, groups by their first one. Pairs without a cosine count as 0.

    >>> near = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.0], [0.9, 0.0, 1.0]])
    >>> grouped(near, None, 0.5), grouped(near, 1, 0.5)
    ([[0, 2], [1]], [[0, 1, 2]])
    """
    from sklearn.cluster import AgglomerativeClustering

    distances = 1 - np.nan_to_num(cosines, nan=0.0)
    np.fill_diagonal(distances, 0.0)
    by = {"n_clusters": count} if count is not None else {"n_clusters": None, "distance_threshold": 1 - threshold}
    found = AgglomerativeClustering(metric="precomputed", linkage="average", **by).fit_predict(distances)
    labels = list(dict.fromkeys(int(label) for label in found))
    return [[place for place, label in enumerate(found) if label == wanted] for wanted in labels]


def cosine_table(found: Clusters) -> Table:
    """Each bank with each."""
    rows = [[bank, *map(_cosine, row)] for bank, row in zip(found.banks, found.cosines, strict=True)]
    return Table("Cosine of two banks' updates", ("Bank", *found.banks), rows)


def cluster_table(found: Clusters) -> Table:
    """The clusters."""
    rows = [[one.name, ", ".join(one.banks), _cosine(one.within), _cosine(one.to_others)] for one in found.clusters]
    return Table("Clusters", ("Cluster", "Banks", "Cosine within", "To others"), rows, words=("Banks",))


def _means(cosines: Matrix, members: Sequence[int]) -> tuple[float | None, float | None]:
    inside = np.isin(np.arange(len(cosines)), members)
    pairs = cosines[np.ix_(inside, inside)][np.triu_indices(len(members), 1)]
    return _mean(pairs), _mean(cosines[np.ix_(inside, ~inside)])


def _mean(values: Matrix) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _cosine(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def _next(found: Clusters, output: Path) -> list[str]:
    """What the adapters are, and what to do with them."""
    said = [f"folder: {output}"]
    if found.is_replay:
        said.append(
            "Each adapter is a replay of its banks' recorded updates, later ones computed from adapters of all banks; "
            "a run of these banks alone would give another."
        )
    if len(found.clusters) < 2:
        return [*said, "All banks are one cluster: there is nothing to route."]
    options = [
        word
        for one in found.clusters
        for word in ("--adapter", f"{one.name}={output / 'adapters' / one.name}:TASK,TASK")
    ]
    said.append("next, with the benchmarks that each cluster's banks train on in the place of TASK,TASK:")
    return [*said, f"python -m fedfinlora evaluate {shlex.join(options)} --route task"]
