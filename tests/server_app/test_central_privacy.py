"""Bank-level privacy on the server: the mean, its noise, the clip norm that follows, what is booked, and whole runs."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, simulated_banks
from flwr.app import Message
from tiny_runs import adapter_bytes, overrides, result_of, rounds_of, write_lines, write_rows

from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import read_json
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.randomness import Stream, reproducible_keys, secret_keys
from fedfinlora.run.opening import OpenRun
from fedfinlora.wire.messages import pack_error
from server_app.central_privacy import CentralMechanism, book_round, make_mechanism
from server_app.federated import run_federated
from server_app.strategies.private_mean import _add_clipped, private_mean, squared_length

BANK = ("privacy=bank", "privacy.accept_noise=true")


def mechanism(banks: int = 10, noise: float = 0.0, **values: Any) -> CentralMechanism:
    given: dict[str, Any] = {"clip_norm": 1.0, "sampling_rate": 1.0, "delta": 1e-5, "epsilon_planned": 0.0}
    return CentralMechanism(noise_multiplier=noise, banks=banks, **{**given, **values})


def noise(number: int = 1) -> Stream:
    return Stream(reproducible_keys(0, "test", number).noise)


def vectors(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


class TestMean:
    def test_whole_deltas_are_clipped_and_divided_by_the_expected_number(self) -> None:
        deltas = vectors([3.0, 4.0], [0.3, 0.4], [0.0, 0.0])
        mean, _ = private_mean(deltas, 2, mechanism(banks=8, sampling_rate=0.5), 1.0, noise())
        np.testing.assert_allclose(mean, (np.array([0.6, 0.8]) + np.array([0.3, 0.4])) / 4, rtol=1e-3)

    @pytest.mark.parametrize("size", [1, 20, 2**18 + 5])
    def test_one_bank_more_moves_the_integer_sum_by_at_most_the_clip_norm(self, size: int) -> None:
        numbers = np.random.default_rng(0)
        directions = [numbers.standard_normal(size), np.full(size, 1 / 3), np.eye(1, size)[0] * (1 - 2**-24)]
        for scale in (1e-30, 1e-6, 0.7, 1.0, 1e6, 1e30):
            for direction in directions:
                grid = Grid(0.7, 1.3, size)
                delta = (scale * direction).astype(np.float32)
                length = float(np.linalg.norm(delta.astype(np.float64)))
                total = np.zeros(size, np.int64)
                _add_clipped(total, delta, grid, length)
                assert sum(step * step for step in total.tolist()) <= grid.bound_squared <= (0.7 / grid.step) ** 2
                np.testing.assert_allclose(total * grid.step, delta * min(1.0, 0.7 / length), rtol=0, atol=0.7 * 1e-3)

    def test_an_update_that_rounding_takes_past_the_bound_is_removed(self) -> None:
        """`grid.factor` leaves no room for it; a length that was measured too short plays it."""
        total = np.array([5, -3], np.int64)
        _add_clipped(total, np.array([30.0, 40.0], np.float32), Grid(1.0, 1.0, 2), 0.5)
        assert total.tolist() == [5, -3]

    def test_the_sum_and_its_noise_are_whole_numbers_of_grid_steps(self) -> None:
        how, grid = mechanism(banks=10, noise=3.0), Grid(0.5, 3.0, 1000)
        mean, _ = private_mean([np.full(1000, 0.001, np.float32)] * 3, 1000, how, 0.5, noise())
        steps = mean * how.expected_banks / grid.step
        np.testing.assert_allclose(steps, np.rint(steps), rtol=0, atol=1e-6)

    def test_lengths_are_exact_beyond_64_bits(self) -> None:
        steps = np.array([2**33, -(2**33), 3], np.int64)
        assert squared_length(steps) == 2 * 2**66 + 9

    def test_noise_comes_from_the_operating_systems_entropy(self) -> None:
        secret = [private_mean([], 100, mechanism(noise=1.0), 1.0, Stream(secret_keys().noise))[0] for _ in range(2)]
        assert not np.array_equal(*secret)

    def test_a_delta_that_is_not_finite_counts_as_zeros(self) -> None:
        mean, _ = private_mean(vectors([math.nan, 1.0], [math.inf, 0.0], [1.0, 0.0]), 2, mechanism(), 1.0, noise())
        np.testing.assert_allclose(mean, [0.1, 0.0], rtol=1e-3)

    @pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
    def test_a_clip_norm_that_is_none_is_an_error(self, clip_norm: float) -> None:
        with pytest.raises(ValueError, match="no grid"):
            private_mean(vectors([1.0]), 1, mechanism(), clip_norm, noise())

    def test_noise_has_the_stated_standard_deviation_also_without_any_reply(self) -> None:
        mean, _ = private_mean([], 200_000, mechanism(banks=10, noise=3.0), 0.5, noise())
        assert mean.std() == pytest.approx(3.0 * 0.5 / 10, rel=0.02)

    def test_the_epsilon_of_what_is_added_is_the_one_that_is_booked(self) -> None:
        """Sensitivity over standard deviation of the released sum, measured, is one over the multiplier that the
        accountant gets.
        """
        noisy = mechanism(banks=10, noise=3.0)
        alone, _ = private_mean(vectors([5.0] + [0.0] * 99_999), 100_000, noisy, 0.5, noise())
        nothing, _ = private_mean([], 100_000, noisy, 0.5, noise())
        moved = np.linalg.norm(alone - nothing)
        assert moved / nothing.std() == pytest.approx(1 / noisy.spends(1).noise_multiplier, rel=0.02)


class TestAdaptiveClipNorm:
    def test_it_finds_the_quantile(self) -> None:
        """Andrew et al. 2021: from far below and from far above, to the median of log-normal norms."""
        numbers = np.random.default_rng(0)
        for start in (0.01, 100.0):
            adaptive, clip = mechanism(banks=400, noise=0.5, adaptive_quantile=0.5), start
            for number in range(120):
                norms = np.exp(numbers.normal(0.0, 0.5, 400))
                deltas = [np.array([norm], np.float32) for norm in norms]
                _, clip = private_mean(deltas, 1, adaptive, clip, noise(number))
            assert clip == pytest.approx(1.0, rel=0.15)

    def test_sum_and_count_together_cost_what_the_multiplier_says(self) -> None:
        """Two Gaussian queries compose as the sum of 1 / multiplier^2; the count's sensitivity is a half."""
        adaptive = mechanism(banks=100, noise=1.1, adaptive_quantile=0.5)
        of_count = adaptive.count_noise_std / 0.5
        assert adaptive.delta_noise_multiplier**-2 + of_count**-2 == pytest.approx(1.1**-2)

    def test_the_counts_noise_is_at_least_what_the_accounting_assumes(self) -> None:
        """In grid steps: the standard deviation over how far one bank moves the count, which is rounded down."""
        for banks in (4, 100, 333, 2000):
            assumed = 2 * mechanism(banks=banks, noise=1.1, adaptive_quantile=0.5).count_noise_std
            grid = Grid(0.5, assumed, 1)
            assert 2.0**grid.log2_scale / math.floor(grid.bound_steps) >= assumed

    def test_a_fixed_clip_norm_stays(self) -> None:
        assert private_mean(vectors([5.0]), 1, mechanism(), 0.25, noise())[1] == 0.25


class TestMechanism:
    def config(self, *words: str) -> Config:
        return compose([*BANK, *words])

    def test_noise_is_calibrated_for_the_planned_rounds_with_sampling(self) -> None:
        config = self.config("num_server_rounds=30", "strategy.fraction_train=0.1", "privacy.epsilon=3")
        found = make_mechanism(config, [f"bank-{index}" for index in range(300)], 100)
        assert found.delta == 1e-5
        assert 2.7 < epsilon([Steps(0.1, found.noise_multiplier, 30)], 1e-5) <= 3.0
        full = make_mechanism(self.config("num_server_rounds=30", "privacy.epsilon=3"), list("abc"), 100)
        assert full.noise_multiplier > 2 * found.noise_multiplier

    def test_few_banks_are_warned_of_the_noise_and_must_accept_it(self) -> None:
        """Four banks, an adapter of Llama 3.1 8B (r 8 on q, k, v), epsilon 8 over 30 rounds: some 1,800 times the clip
        norm.
        """
        config = compose(["privacy=bank", "num_server_rounds=30", "privacy.delta=1e-5"])
        with pytest.raises(UserError, match=r"1\.[78]\d?e\+03 times as long .* privacy.accept_noise=true"):
            make_mechanism(config, list("abcd"), 4_718_592)
        accepted = replace(config, privacy=replace(config.privacy, accept_noise=True))
        assert make_mechanism(accepted, list("abcd"), 4_718_592).banks == 4

    def test_hundreds_of_banks_with_a_small_adapter_need_not(self) -> None:
        assert make_mechanism(compose(["privacy=bank"]), [str(index) for index in range(2000)], 1000).banks == 2000

    def test_a_clip_norm_that_cannot_follow_is_refused(self) -> None:
        with pytest.raises(UserError, match="adaptive_quantile"):
            make_mechanism(self.config("privacy.adaptive_quantile=0.5", "privacy.epsilon=0.1"), list("abcd"), 10)

    def test_delta_is_the_banks_to_the_minus_one_point_two_and_at_most_1e_5(self) -> None:
        for banks, delta in ((3, 1e-5), (2000, 1e-5), (100_000, 1e-6)):
            found = make_mechanism(self.config(), [str(index) for index in range(banks)], 10)
            assert found.delta == pytest.approx(delta)

    def test_a_delta_above_the_default_is_refused_and_a_smaller_one_used(self) -> None:
        with pytest.raises(UserError, match=r"privacy\.delta=0\.001 is more than 1e-05"):
            make_mechanism(self.config("privacy.delta=0.001"), [str(index) for index in range(20)], 10)
        found = make_mechanism(self.config("privacy.delta=1e-7"), [str(index) for index in range(20)], 10)
        assert found.delta == 1e-7

    def test_noise_that_its_grid_cannot_hold_is_refused(self) -> None:
        with pytest.raises(UserError, match="noise multiplier"):
            make_mechanism(self.config("privacy.epsilon=0", "privacy.noise_multiplier=1e7"), list("abcd"), 10)
        with pytest.raises(UserError, match="too small"):
            make_mechanism(self.config("privacy.epsilon=0", "privacy.noise_multiplier=1e-4"), list("abcd"), 10)

    def test_only_the_servers_own_environment_gives_the_noise_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        secret = make_mechanism(self.config(), list("abcd"), 10)
        monkeypatch.setenv("FEDFINLORA_REPRODUCIBLE_NOISE", "1")
        public = make_mechanism(self.config(), list("abcd"), 10)
        assert secret.keys(1) != secret.keys(1)
        assert public.keys(1) == public.keys(1) != public.keys(2)

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
        booked = read_lines(ledger)
        assert [(line["round"], line["unit"]) for line in booked] == [(1, "bank"), (2, "bank"), (3, "bank")], (
            "one line a round"
        )
        card = read_json(run / "privacy.json")
        assert card["epsilon"] == pytest.approx(spent[-1])
        assert card["unit"] == "one bank with all its rows"
        assert card["trusted"].startswith("The server")
        assert result_of(run)["rows_trained"] > 0
        assert "one bank with all its rows" in (run / "report.html").read_text("utf-8")

    def test_another_run_continues_with_the_same_accounts(self, tmp_path: Path, ledger: Path) -> None:
        for name in ("one", "two"):
            simulate(self.words(tmp_path, f"run_name={name}"), banks=3)
        last = [rounds_of(tmp_path / "runs" / name)[-1]["privacy"]["epsilon_spent"] for name in ("one", "two")]
        assert last[1] > last[0]

    def test_a_spent_budget_ends_the_run_and_a_larger_one_resumes_it(self, tmp_path: Path, ledger: Path) -> None:
        words = self.words(tmp_path, "privacy.epsilon=0", "privacy.noise_multiplier=4", "privacy.budget_epsilon=1.5")
        with pytest.raises(UserError, match=r"budget_epsilon=1\.5"):
            simulate(words, banks=3)
        run = tmp_path / "runs" / "run"
        assert result_of(run)["status"] == "failed"
        assert 0 < len(rounds_of(run)) < 3
        assert (run / "privacy.json").is_file()
        more = compose([*words, "privacy.budget_epsilon=20", f"resume={run}"])
        assert len(rounds_of(run_federated(FakeGrid(simulated_banks(3, tmp_path / "states")), more))) == 3

    def test_a_round_may_have_some_banks_or_none(
        self, tmp_path: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDFINLORA_REPRODUCIBLE_NOISE", "1")
        words = self.words(tmp_path, "strategy.fraction_train=0.3", rounds=12)
        lines = rounds_of(simulate(words, banks=3))
        drawn = [len(line["banks"]) for line in lines]
        assert 0 in drawn
        assert len(set(drawn)) > 1
        assert [bool(line.get("noise_alone")) for line in lines] == [count == 0 for count in drawn]
        assert read_json(tmp_path / "runs" / "run" / "privacy.json")["void"]

    def test_repeatable_noise_needs_the_servers_environment_and_counts_as_none(
        self, tmp_path: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, more in (("c", ""), ("d", ""), ("a", "1"), ("b", "1")):
            monkeypatch.setenv("FEDFINLORA_REPRODUCIBLE_NOISE", more)
            simulate(self.words(tmp_path, f"run_name={name}", rounds=1), banks=3)
        a, b, c, d = (tmp_path / "runs" / name for name in "abcd")
        assert adapter_bytes(a) == adapter_bytes(b)
        assert adapter_bytes(c) != adapter_bytes(d)
        assert rounds_of(d)[0]["privacy"]["epsilon_spent"] > 0
        assert rounds_of(a)[0]["privacy"]["epsilon_spent"] is None, "infinite"
        assert read_lines(ledger)[-1]["noise_multiplier"] == 0

    def test_a_round_closes_with_what_came_and_with_noise_alone_if_nothing_did(
        self, tmp_path: Path, ledger: Path
    ) -> None:
        """An end of the run that depends on who is a member would tell who is: all banks of round 2 are silent, and one
        of round 3 refuses."""

        def silent(bank: str, message: Message, reply: Message) -> Message | None:
            number = message.metadata.group_id
            if number == "2":
                return None
            return Message(pack_error(bank, "data"), reply_to=message) if (number, bank) == ("3", "bank-1") else reply

        words = self.words(tmp_path, "strategy.quorum=3", "strategy.deadline_s=0.3", rounds=3)
        grid = FakeGrid(simulated_banks(3, tmp_path / "states"), silent)
        run = run_federated(grid, compose(words))
        lines = rounds_of(run)
        answered = [[bank["status"] == "ok" for bank in line["banks"]] for line in lines]
        assert answered == [[True] * 3, [False] * 3, [True, False, True]]
        assert [line.get("noise_alone", False) for line in lines] == [False, True, False]
        assert adapter_bytes(run, "round_001") != adapter_bytes(run, "round_002"), "its noise is added all the same"
        reported = (run / "progress.jsonl").read_text()
        assert "round 2: no bank's reply came: the step is noise alone" in reported

    def test_the_quorum_holds_for_the_banks_that_are_connected_at_the_start(self, tmp_path: Path, ledger: Path) -> None:
        with pytest.raises(UserError, match=r"3 usable banks, 4 are needed .*strategy\.quorum"):
            simulate(self.words(tmp_path, "strategy.quorum=4", "strategy.wait_s=0.2", banks=4), banks=3)

    def test_a_bank_whose_budget_is_spent_is_excluded_and_the_others_continue(
        self, tmp_path: Path, ledger: Path
    ) -> None:
        """bank-0 and bank-1 have spent before bank-2 came."""
        noisy = ("privacy.epsilon=0", "privacy.noise_multiplier=4")
        simulate(self.words(tmp_path, "run_name=before", *noisy, banks=2), banks=2)
        spent = rounds_of(tmp_path / "runs" / "before")[-1]["privacy"]["epsilon_spent"]
        words = self.words(tmp_path, "run_name=after", *noisy, f"privacy.budget_epsilon={spent * 1.001}")
        lines = rounds_of(simulate(words, banks=3))
        assert [[bank["bank"] for bank in line["banks"]] for line in lines] == [["bank-2"]] * 3
        assert [line["privacy"]["left_out"] for line in lines] == [2] * 3
        assert lines[-1]["privacy"]["epsilon_spent"] == pytest.approx(spent)


def opened(folder: Path, *words: str) -> OpenRun:
    return OpenRun(folder, compose([*BANK, *words]), "run-1", None)


class TestLedger:
    def test_a_round_of_a_thousand_banks_is_one_line_booked_within_a_second(self, tmp_path: Path, ledger: Path) -> None:
        run, banks = opened(tmp_path, "num_server_rounds=10"), [f"bank-{number:04}" for number in range(1000)]
        how = make_mechanism(run.config, banks, 100)
        book_round(run, how, banks, 1)  # the accountant's imports and tables are not what is measured
        for number in (2, 3):
            started = time.perf_counter()
            booked = book_round(run, how, banks, number)
            assert time.perf_counter() - started < 1
            assert booked.banks == tuple(banks)
        assert len(read_lines(ledger)) == 3

    def test_accounts_of_version_1_are_taken_over_for_their_bank(self, tmp_path: Path, ledger: Path) -> None:
        write_version_1(ledger, "bank-north", rounds=5, noise_multiplier=4.0)
        run = opened(tmp_path, "privacy.epsilon=0", "privacy.noise_multiplier=4")
        how = make_mechanism(run.config, ["north", "south"], 10)
        booked = book_round(run, how, ["north", "south"], 1)
        assert booked.privacy.epsilon_spent == pytest.approx(epsilon([Steps(1.0, 4.0, 6)], how.delta))
        for _ in range(2):
            alone = book_round(run, replace(how, banks=1), ["south"], 2)
        assert alone.privacy.epsilon_spent == pytest.approx(epsilon([Steps(1.0, 4.0, 3)], how.delta)), (
            "north's is north's"
        )


def write_version_1(folder: Path, account: str, rounds: int, noise_multiplier: float) -> None:
    """An account as version 1 wrote it: a chain of lines and a head."""
    lines: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        line: dict[str, Any] = {
            "number": number, "time": "2026-01-01T00:00:00+0000", "run": "old", "round": number, "bank": "server",
            "mechanism": "bank-level DP-FedAvg", "unit": "bank", "sampling_rate": 1.0,
            "noise_multiplier": noise_multiplier, "steps": 1,
            "delta": 1e-5, "accountant": "PRV", "epsilon": 1.0, "reproducible_noise": False,
            "previous": lines[-1]["hash"] if lines else "0" * 64,
        }  # fmt: skip
        line["hash"] = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
        lines.append(line)
    write_lines(folder / f"{account}.jsonl", [json.dumps(line) for line in lines])
    (folder / f"{account}.head.json").write_text(json.dumps({"number": rounds, "hash": lines[-1]["hash"]}))


class TestDeclaredSizes:
    def test_weights_are_the_declared_ones(self, tmp_path: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bank that declares a million rows against two decides the mean alone."""
        monkeypatch.setenv("FEDFINLORA_REPRODUCIBLE_NOISE", "1")
        rows = write_rows(tmp_path / "rows", train=36)
        private = ["privacy=example", "privacy.epsilon=8"]

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
