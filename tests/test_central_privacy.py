"""Bank-level privacy on the server: the mean, its noise, the clip norm that follows, what is booked, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import adapter_bytes, overrides, result_of, rounds_of, write_rows

from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.ledger import read_ledger
from fedfinlora.privacy.noise import reproducible_generator
from fedfinlora.runfolder import read_json
from server_app.central_privacy import CentralMechanism, make_mechanism, private_mean
from server_app.federated import run_federated

BANK = ("privacy=bank", "privacy.accept_noise=true")


def mechanism(banks: int = 10, noise: float = 0.0, **values: Any) -> CentralMechanism:
    given: dict[str, Any] = {"clip_norm": 1.0, "sampling_rate": 1.0, "delta": 1e-5, "epsilon_planned": 0.0}
    return CentralMechanism(noise_multiplier=noise, banks=banks, **{**given, **values})


def draw() -> np.random.Generator:
    return reproducible_generator(0, "test", 1)


def vectors(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


class TestMean:
    def test_whole_deltas_are_clipped_and_divided_by_the_expected_number(self) -> None:
        deltas = vectors([3.0, 4.0], [0.3, 0.4], [0.0, 0.0])
        mean, _ = private_mean(deltas, 2, mechanism(banks=8, sampling_rate=0.5), 1.0, draw())
        np.testing.assert_allclose(mean, (np.array([0.6, 0.8]) + np.array([0.3, 0.4])) / 4, rtol=1e-6)

    def test_one_bank_more_moves_the_sum_by_the_clip_norm_at_most(self) -> None:
        numbers = np.random.default_rng(0)
        for scale in (1e-6, 1.0, 1e6):
            deltas = [(scale * numbers.standard_normal(20)).astype(np.float32) for _ in range(5)]
            with_all, _ = private_mean(deltas, 20, mechanism(), 0.7, draw())
            without, _ = private_mean(deltas[:-1], 20, mechanism(), 0.7, draw())
            assert np.linalg.norm(with_all - without) * 10 <= 0.7 * (1 + 1e-6)

    def test_a_delta_that_is_not_finite_counts_as_zeros(self) -> None:
        mean, _ = private_mean(vectors([math.nan, 1.0], [math.inf, 0.0], [1.0, 0.0]), 2, mechanism(), 1.0, draw())
        np.testing.assert_allclose(mean, [0.1, 0.0])

    def test_the_noise_has_the_stated_deviation_and_nobody_replying_leaves_noise_alone(self) -> None:
        mean, _ = private_mean([], 200_000, mechanism(banks=10, noise=3.0), 0.5, draw())
        assert mean.std() == pytest.approx(3.0 * 0.5 / 10, rel=0.02)

    def test_the_epsilon_of_what_is_added_is_the_one_that_is_booked(self) -> None:
        """Sensitivity over deviation of the released sum, measured, is one over the multiplier that the accountant gets."""
        noisy = mechanism(banks=10, noise=3.0)
        alone, _ = private_mean(vectors([5.0] + [0.0] * 99_999), 100_000, noisy, 0.5, draw())
        nobody, _ = private_mean([], 100_000, noisy, 0.5, draw())
        moved = np.linalg.norm(alone - nobody)
        assert moved / nobody.std() == pytest.approx(1 / noisy.spends(1).noise_multiplier, rel=0.02)


class TestAdaptiveClipNorm:
    def test_it_finds_the_quantile(self) -> None:
        """Andrew et al. 2021: from far below and from far above, to the median of log-normal norms."""
        numbers = np.random.default_rng(0)
        for start in (0.01, 100.0):
            adaptive, clip = mechanism(banks=400, noise=0.5, adaptive_quantile=0.5), start
            for number in range(120):
                norms = np.exp(numbers.normal(0.0, 0.5, 400))
                deltas = [np.array([norm], np.float32) for norm in norms]
                _, clip = private_mean(deltas, 1, adaptive, clip, reproducible_generator(0, "test", number))
            assert clip == pytest.approx(1.0, rel=0.15)

    def test_sum_and_count_together_cost_what_the_multiplier_says(self) -> None:
        """Two Gaussian queries compose as the sum of 1 / multiplier^2; the count's sensitivity is a half."""
        adaptive = mechanism(banks=100, noise=1.1, adaptive_quantile=0.5)
        of_count = adaptive.count_deviation / 0.5
        assert adaptive.delta_noise_multiplier**-2 + of_count**-2 == pytest.approx(1.1**-2)

    def test_a_fixed_clip_norm_stays(self) -> None:
        assert private_mean(vectors([5.0]), 1, mechanism(), 0.25, draw())[1] == 0.25


class TestMechanism:
    def config(self, *words: str) -> Config:
        return compose([*BANK, *words])

    def test_noise_is_found_for_the_planned_rounds_with_amplification_by_sampling(self) -> None:
        config = self.config("num_server_rounds=30", "strategy.fraction_train=0.1", "privacy.epsilon=3")
        found = make_mechanism(config, [f"bank-{index}" for index in range(300)], 100)
        assert found is not None
        assert found.delta == 1e-5
        assert 2.7 < epsilon([Steps(0.1, found.noise_multiplier, 30)], 1e-5) <= 3.0
        full = make_mechanism(self.config("num_server_rounds=30", "privacy.epsilon=3"), list("abc"), 100)
        assert full is not None
        assert full.noise_multiplier > 2 * found.noise_multiplier

    def test_few_banks_are_told_what_the_noise_does_and_must_accept_it(self) -> None:
        """Four banks, an adapter of Llama 3.1 8B (r 8 on q, k, v), epsilon 8 over 30 rounds: some 1,800 times the clip norm."""
        config = compose(["privacy=bank", "num_server_rounds=30", "privacy.delta=1e-5"])
        with pytest.raises(UserError, match=r"1\.[78]\d?e\+03 times as long .* privacy.accept_noise=true"):
            make_mechanism(config, list("abcd"), 4_718_592)
        accepted = replace(config, privacy=replace(config.privacy, accept_noise=True))
        assert make_mechanism(accepted, list("abcd"), 4_718_592) is not None

    def test_hundreds_of_banks_with_a_small_adapter_need_not(self) -> None:
        assert make_mechanism(compose(["privacy=bank"]), [str(index) for index in range(2000)], 1000) is not None

    def test_a_clip_norm_that_cannot_follow_is_refused(self) -> None:
        with pytest.raises(UserError, match="adaptive_quantile"):
            make_mechanism(self.config("privacy.adaptive_quantile=0.5", "privacy.epsilon=0.1"), list("abcd"), 10)

    def test_a_delta_above_one_over_the_banks_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"privacy\.delta"):
            make_mechanism(self.config("privacy.delta=0.1"), [str(index) for index in range(20)], 10)

    def test_banks_are_drawn_in_secret_and_by_chance(self) -> None:
        rare = mechanism(banks=1000, sampling_rate=0.1)
        names = [f"bank-{index:04d}" for index in range(1000)]
        drawn = [rare.drawn(names, 1) for _ in range(2)]
        assert drawn[0] != drawn[1]
        assert all(60 < len(each) < 140 and each == sorted(each) for each in drawn)

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (["strategy.weighting=rows"], "strategy.weighting"),
            (["strategy.weighting=declared", "strategy.sizes=[a:1]"], "strategy.weighting"),
            (["privacy.unit=example"], "privacy.unit"),
            (["privacy.epsilon=0"], "privacy.epsilon"),
            (["privacy.noise_multiplier=1"], "privacy.noise_multiplier"),
            (["privacy.adaptive_quantile=1"], "adaptive_quantile"),
            (["privacy.adaptive_rate=0"], "adaptive_rate"),
            (["privacy.clip_norm=0"], "clip_norm"),
        ],
    )
    def test_contradictions_are_refused_by_name(self, words: list[str], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            self.config(*words)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger" / "server"


def simulate(words: list[str], banks: int = 2) -> Path:
    """A whole run with the real server and banks, without Flower's processes."""
    config = compose(words)
    states = Path(config.output_dir).parent / "states"
    return run_federated(FakeGrid(simulated_banks(banks, states)), config)


class TestRuns:
    def words(self, tmp_path: Path, *more: str, rounds: int = 3, banks: int = 3) -> list[str]:
        rows = tmp_path / "rows"
        rows = rows if rows.exists() else write_rows(rows, train=36)
        return overrides(rows, tmp_path / "runs", *BANK, *more, rounds=rounds, banks=banks)

    def test_a_run_books_each_round_for_every_bank_and_tells_it(self, tmp_path: Path, ledger: Path) -> None:
        run = simulate(self.words(tmp_path, "privacy.adaptive_quantile=0.5", "privacy.epsilon=50"), banks=3)
        lines = rounds_of(run)
        spent = [line["privacy"]["epsilon_spent"] for line in lines]
        assert spent == sorted(spent)
        assert spent[-1] == pytest.approx(lines[0]["privacy"]["epsilon_planned"])
        clips = [line["privacy"]["clip_norm"] for line in lines]
        assert clips[0] == 1.0
        assert len(set(clips)) == 3, "it follows, and passes from round to round"
        for bank in ("bank-0", "bank-1", "bank-2"):
            assert [line["round"] for line in read_ledger(ledger, f"bank-{bank}")] == [1, 2, 3]
        card = read_json(run / "privacy.json")
        assert card["epsilon"] == pytest.approx(spent[-1])
        assert card["unit"] == "one bank with all its rows"
        assert card["trusted"].startswith("The server")
        assert result_of(run)["rows_trained"] > 0
        assert "one bank with all its rows" in (run / "report.html").read_text("utf-8")

    def test_another_run_goes_on_with_the_same_accounts(self, tmp_path: Path, ledger: Path) -> None:
        for name in ("one", "two"):
            simulate(self.words(tmp_path, f"run_name={name}"), banks=3)
        last = [rounds_of(tmp_path / "runs" / name)[-1]["privacy"]["epsilon_spent"] for name in ("one", "two")]
        assert last[1] > last[0]

    def test_a_spent_budget_ends_the_run_with_its_reason_and_a_larger_one_goes_on(self, tmp_path: Path, ledger: Path) -> None:
        words = self.words(tmp_path, "privacy.epsilon=0", "privacy.noise_multiplier=4", "privacy.budget_epsilon=1.5")
        with pytest.raises(UserError, match=r"budget_epsilon=1\.5"):
            simulate(words, banks=3)
        run = tmp_path / "runs" / "run"
        assert result_of(run)["status"] == "failed"
        assert 0 < len(rounds_of(run)) < 3
        assert (run / "privacy.json").is_file()
        more = compose([*words, "privacy.budget_epsilon=20", f"resume={run}"])
        assert len(rounds_of(run_federated(FakeGrid(simulated_banks(3, tmp_path / "states")), more))) == 3

    def test_fewer_than_all_banks_a_round_and_now_and_then_nobody(self, tmp_path: Path, ledger: Path) -> None:
        words = self.words(tmp_path, "strategy.fraction_train=0.3", "privacy.reproducible_noise=true", rounds=8)
        drawn = [len(line["banks"]) for line in rounds_of(simulate(words, banks=3))]
        assert 0 in drawn
        assert len(set(drawn)) > 1
        assert read_json(tmp_path / "runs" / "run" / "privacy.json")["void"]

    def test_noise_repeats_only_on_request(self, tmp_path: Path, ledger: Path) -> None:
        for name, more in (("a", "true"), ("b", "true"), ("c", "false"), ("d", "false")):
            simulate(self.words(tmp_path, f"run_name={name}", f"privacy.reproducible_noise={more}", rounds=1), banks=3)
        a, b, c, d = (adapter_bytes(tmp_path / "runs" / name) for name in "abcd")
        assert a == b
        assert c != d


class TestDeclaredSizes:
    def test_weights_are_the_declared_ones(self, tmp_path: Path, ledger: Path) -> None:
        """A bank that declares a million rows against two decides the mean alone."""
        rows = write_rows(tmp_path / "rows", train=36)
        private = ["privacy=example", "privacy.epsilon=8", "privacy.reproducible_noise=true"]

        def run(name: str, *sizes: str) -> bytes:
            how = [f"strategy.weighting={'declared' if sizes else 'equal'}", f"strategy.sizes=[{','.join(sizes)}]"]
            words = overrides(rows, tmp_path / "runs", *private, *how, f"run_name={name}", rounds=1)
            return adapter_bytes(simulate(words))

        assert run("equal") == run("same", "bank-0:5", "bank-1:5") != run("more", "bank-0:5", "bank-1:50")

    def test_a_bank_without_a_size_ends_the_run_before_training(self, tmp_path: Path, ledger: Path) -> None:
        rows = write_rows(tmp_path / "rows", train=36)
        words = overrides(rows, tmp_path / "runs", "strategy.weighting=declared", "strategy.sizes=[bank-0:5]")
        with pytest.raises(UserError, match=r"strategy\.sizes does not name bank-1"):
            simulate(words)

    @pytest.mark.parametrize("sizes", ["[north]", "[north:0]", "[north:-1]", "[north:nan]", "[north:inf]", "[a:1,a:2]"])
    def test_sizes_that_are_none_are_refused(self, sizes: str) -> None:
        with pytest.raises(ConfigError, match=r"strategy\.sizes"):
            compose(["strategy.weighting=declared", f"strategy.sizes={sizes}"])

    def test_sizes_and_weighting_go_together(self) -> None:
        with pytest.raises(ConfigError, match="go together"):
            compose(["strategy.weighting=declared"])
