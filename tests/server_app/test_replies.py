"""The deltas of a round on the aggregator's disk, and the step that is taken from them."""

from __future__ import annotations

import resource
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import BLOCK, norm
from fedfinlora.wire.messages import Figures, Reply
from server_app.central_privacy import CentralMechanism
from server_app.replies import StoredDeltas, replies_of, weighted_mean
from server_app.strategies import RULES, rule_of
from server_app.strategies.private_mean import PrivateMean
from server_app.strategies.strategy import MeanStrategy, ServerState, Strategy, take_step

SIZE = 2 * BLOCK + 1
"""More than two blocks, the last of one number."""


def delta(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, size).astype(np.float32)


def replies(count: int) -> list[Reply]:
    figures = Figures.withheld(1, 0.0, 1.0, 1.0, 0.1)
    return [Reply(f"bank-{number}", delta(number), figures, 1.0) for number in range(count)]


def test_they_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    with StoredDeltas(tmp_path / "state", SIZE) as stored:
        for name, seed in (("south", 2), ("north", 1)):
            stored.keep(name, delta(seed))
        found = [one.tobytes() for one in stored.read(["north", "south"], slice(3, SIZE))]
        assert found == [delta(1)[3:].tobytes(), delta(2)[3:].tobytes()]
        assert list((tmp_path / "state").iterdir()) == [], "a killed process leaves nothing behind"


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with StoredDeltas(tmp_path, SIZE) as stored:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * SIZE + 1000, before[1]))
        try:
            stored.keep("north", delta(1))
            with pytest.raises(UserError, match="Cannot write"):
                stored.keep("south", delta(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert next(stored.read(["north"], slice(0, SIZE))).tobytes() == delta(1).tobytes()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        StoredDeltas(tmp_path / "file", SIZE)


@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if issubclass(rule, MeanStrategy)))
def test_a_step_by_blocks_is_the_step_of_the_whole_vector(name: str) -> None:
    """Three rounds, so that the rule's own vectors pass on too."""
    rule = rule_of(StrategyConfig(name=name, weighting="equal", bias_correction=True), 3)
    assert isinstance(rule, MeanStrategy)
    state = ServerState(0, delta(9))
    adapter, arrays = state.adapter, {}
    for _ in range(3):
        state = take_step(rule, state, replies_of(replies(3), rule.weights(replies(3))))
        step, arrays = rule.step(weighted_mean([reply.delta for reply in replies(3)], [1, 1, 1]), arrays, 1.0)
        adapter = (adapter.astype(np.float64) + step).astype(np.float32)
        assert state.adapter.tobytes() == adapter.tobytes()
        assert {key: value.tobytes() for key, value in state.arrays.items()} == {
            key: value.tobytes() for key, value in arrays.items()
        }
        assert state.step_norm == pytest.approx(np.linalg.norm(step), rel=1e-12)


@pytest.mark.parametrize("privately", [False, True])
def test_memory_does_not_grow_with_the_number_of_banks(tmp_path: Path, privately: bool) -> None:
    """At most four adapters' worth, for any number of banks."""
    size = 2**21
    central = CentralMechanism(1.0, 1.0, 1.0, 20, 1e-5, 1.0, reproducible_seed=0) if privately else None
    rule: Strategy = rule_of(StrategyConfig(weighting="equal"), 1)
    rule = PrivateMean.around(rule, central) if central else rule
    state = ServerState(0, delta(0, size))
    peaks = []
    for count in (2, 20):
        with StoredDeltas(tmp_path, size) as stored:
            for number in range(count):
                stored.keep(f"bank-{number}", delta(number, size))
            reported = [
                Reply(f"bank-{number}", np.zeros(0, np.float32), Figures.withheld(1, 0, 1, 1, 0.1), 1)
                for number in range(count)
            ]
            names = [reply.bank for reply in reported]
            tracemalloc.start()
            take_step(rule, state, replies_of(reported, rule.weights(reported), None, partial(stored.read, names)))
            peaks.append(tracemalloc.get_traced_memory()[1] / (4 * size))
            tracemalloc.stop()
    assert peaks[1] == pytest.approx(peaks[0], abs=0.1)
    assert peaks[1] < 4


def test_norms_are_summed_in_float64() -> None:
    big = np.full(SIZE, 3e38, np.float32)
    assert norm(big) == pytest.approx(3e38 * SIZE**0.5, rel=1e-6)
    assert norm(delta(1)) == pytest.approx(np.linalg.norm(delta(1).astype(np.float64)), rel=1e-12)
    assert norm(np.zeros(0, np.float32)) == 0.0
