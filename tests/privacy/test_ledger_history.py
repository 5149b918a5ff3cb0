"""What lines by row and by customer cost a unit: against a slow reference and exact divergences; and that an index
never differs from its lines.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.privacy import ledger_spent
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.cohorts import Cohort, CohortError, CohortFiles
from fedfinlora.privacy.ledger import BudgetError, Rows, Spending, book
from fedfinlora.privacy.ledger_index import Index
from fedfinlora.privacy.ledger_spent import Histories, group


def stand_in(spent: Sequence[Steps], delta: float) -> float:
    """In place of epsilon, where only the histories matter: grows with each of them and is computed at once."""
    return round(sum(steps.count * steps.sampling_rate**2 / steps.noise_multiplier**2 for steps in spent), 9)


@dataclass
class SlowLedger:
    """The same rules, spelled out: every line with all of its rows and customers."""

    lines: list[tuple[str, Steps, list[tuple[str, str]]]] = field(default_factory=list)

    def of_row(self, row: str) -> list[Steps]:
        spent = []
        for unit, steps, took_part in self.lines:
            sizes = Counter(customer for _, customer in took_part)
            own = [sizes[customer] for one, customer in took_part if one == row]
            if own and (unit == "example" or max(own) == 1):
                spent.append(steps)
            elif own:
                spent.append(Steps(steps.sampling_rate, steps.noise_multiplier / 2, steps.count))
        return spent

    def of_customer(self, name: str, rows: set[str]) -> list[Steps]:
        spent = []
        for unit, steps, took_part in self.lines:
            sizes = Counter(customer for _, customer in took_part)
            if unit == "customer" and name in sizes:
                size = 1
            elif unit == "customer":
                alone = {
                    row: max(min(2, sizes[customer]) for one, customer in took_part if one == row)
                    for row, _ in took_part
                }
                size = sum(weight for row, weight in alone.items() if row in rows)
            else:
                size = max(sizes[name], sum(row in rows for row, _ in took_part))
            if size:
                spent.append(group(steps, size))
        return spent

    def book(self, unit: str, rows: list[tuple[str, str]], steps: Steps, budget: float) -> tuple[list[bool], float]:
        """(which rows take part, the largest figure of theirs)."""
        if unit == "customer":
            of = {name: {row for row, customer in rows if customer == name} for _, name in rows}
            after = [stand_in([*self.of_customer(name, of[name]), steps], 0) for _, name in rows]
        else:
            after = [stand_in([*self.of_row(row), steps], 0) for row, _ in rows]
        taking_part = [not budget or figure <= budget for figure in after]
        if any(taking_part):
            self.lines.append((unit, steps, [pair for pair, part in zip(rows, taking_part, strict=True) if part]))
        return taking_part, max((figure for figure, part in zip(after, taking_part, strict=True) if part), default=0.0)


PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("XYZ")), min_size=1, max_size=8)
STEPS = st.builds(Steps, st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([1.0, 2.0]), st.integers(1, 3))
ROUNDS = st.lists(
    st.tuples(st.sampled_from(["example", "customer"]), PAIRS, STEPS, st.sampled_from([0.0, 2.0, 6.0])),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25)
@given(ROUNDS)
def test_what_is_spent_on_each_unit_is_what_a_slow_ledger_says(
    rounds: list[tuple[str, list[tuple[str, str]], Steps, float]],
) -> None:
    slow = SlowLedger()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(ledger_spent, "epsilon", lambda spent, delta: stand_in(list(spent), delta))
        for unit, pairs, steps, budget in rounds:
            taking_part, largest = slow.book(unit, pairs, steps, budget)
            rows = Rows(tuple(row for row, _ in pairs), tuple(customer for _, customer in pairs))
            spending = Spending("run", 1, "north", "DP-SGD", unit, steps)
            if not any(taking_part):
                with pytest.raises(BudgetError):
                    book(Path(folder), rows, spending, delta=1e-5, budget_epsilon=budget)
                continue
            booked = book(Path(folder), rows, spending, delta=1e-5, budget_epsilon=budget)
            assert booked.taking_part.tolist() == taking_part
            assert booked.epsilon == largest
            left_out = [pair for pair, part in zip(pairs, taking_part, strict=True) if not part]
            assert booked.left_out == (len({name for _, name in left_out}) if unit == "customer" else len(left_out))


COHORTS = st.lists(
    st.dictionaries(st.integers(0, 12), st.integers(1, 2), min_size=1) | st.none(), min_size=1, max_size=14
)


def cohort_from(members: dict[int, int]) -> Cohort:
    return Cohort(
        np.array(sorted(members), dtype=np.uint64), np.array([members[one] for one in sorted(members)], dtype=np.int32)
    )


@settings(max_examples=200)
@given(COHORTS)
def test_the_index_knows_each_weight_in_each_line(cohorts: list[dict[int, int] | None]) -> None:
    index = Index()
    for members in cohorts:
        index = index.after(None if members is None else cohort_from(members))
    index = Index.from_bytes(index.to_bytes())
    everyone = np.arange(13, dtype=np.uint64)
    weights = index.weights(index.atoms_of(everyone), np.arange(1, len(cohorts) + 1))
    assert weights.tolist() == [[(members or {}).get(one, 0) for members in cohorts] for one in range(13)]
    for number, members in enumerate(cohorts, 1):
        found = index.members(number)
        assert dict(zip(found.hashes.tolist(), found.weights.tolist(), strict=True)) == (members or {})


def test_rows_with_one_history_share_an_atom_for_any_number_of_lines() -> None:
    index, cohort = Index(), cohort_from(dict.fromkeys(range(1000), 1))
    for _ in range(50):
        index = index.after(cohort)
    assert len(index.nodes) == 2


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.integers(0, 40), st.integers(1, 3), min_size=1), min_size=1, max_size=6))
def test_a_cohort_is_read_as_it_was_written(cohorts: list[dict[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files, written = CohortFiles(Path(folder)), [cohort_from(members) for members in cohorts]
        for place, cohort in enumerate(written):
            files.write(cohort, [(one.address, one) for one in written[:place] if one.address != cohort.address])
        for cohort in written:
            found = CohortFiles(Path(folder)).read(cohort.address)
            assert found.hashes.tolist() == cohort.hashes.tolist()
            assert found.weights.tolist() == cohort.weights.tolist()


def test_a_cohort_that_is_missing_cut_or_another_is_an_error(tmp_path: Path) -> None:
    files, one, two = CohortFiles(tmp_path), cohort_from({1: 1, 2: 1}), cohort_from({1: 1})
    files.write(one, [])
    files.write(two, [])
    content = (tmp_path / one.address).read_bytes()
    for damaged in (
        b"",
        b"{}\n",
        b"[]\n",
        content[:-1],
        content[: len(content) // 2],
        (tmp_path / two.address).read_bytes(),
    ):
        (tmp_path / one.address).write_bytes(damaged)
        with pytest.raises(CohortError):
            CohortFiles(tmp_path).read(one.address)
    with pytest.raises(CohortError):
        CohortFiles(tmp_path).read("0" * 64)


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=12), st.floats(0, 20))
def test_few_epsilons_say_the_same_as_all(counts: list[list[int]], limit: float) -> None:
    """Weights 1 and 3, two pairs of (q, sigma); counts as they are kept, of steps with at least that weight."""
    exact = np.array(counts, dtype=np.int64).reshape(-1, 2, 2)
    kept = np.cumsum(exact[:, ::-1], axis=1)[:, ::-1].reshape(len(counts), -1)
    for by_customer in (False, True):
        history = Histories(by_customer, ((0.5, 1.0), (1.0, 2.0)), (1, 3), kept, np.arange(len(counts)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger_spent, "epsilon", lambda spent, delta: stand_in(list(spent), delta))
            one_by_one = [history.epsilon(place, 1e-5) for place in range(len(counts))]
            assert history.within(limit, 1e-5).tolist() == [figure <= limit for figure in one_by_one]
            assert history.largest(1e-5) == max(one_by_one)


GRID = np.linspace(-60, 80, 280_001)


def density(moves: Sequence[float], chances: Sequence[float], noise: float) -> np.ndarray:
    """Probabilities on GRID of Gaussian noise on a random move."""
    parts = [
        chance * np.exp(-((GRID - move) ** 2) / (2 * noise**2)) for move, chance in zip(moves, chances, strict=True)
    ]
    total = np.sum(parts, axis=0)
    return total / total.sum()


@pytest.mark.parametrize(("rate", "noise"), [(0.02, 0.8), (0.05, 1.0), (0.2, 2.0), (0.5, 4.0), (1.0, 5.0)])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_group_privacy_dominates_the_exact_mixture_in_every_step(rate: float, noise: float, size: int) -> None:
    """j of k rows are in a step with the binomial's probability and move it by j. Its hockey-stick divergence is the
    smaller one at every alpha, from 0 on, so that both ways round and all compositions are covered (Zhu, Dong and Wang
    2022, theorem 10).
    """
    from scipy.stats import binom

    bound = group(Steps(rate, noise, 1), size)
    without = density([0.0], [1.0], noise)
    exact = density(range(size + 1), binom.pmf(range(size + 1), size, rate), noise)
    # The bound moves by 1 at noise sigma/k: the same as by k at noise sigma.
    bounding = density([0.0, size], [1 - bound.sampling_rate, bound.sampling_rate], noise)
    for alpha in np.exp(np.linspace(-6, 6, 61)):
        assert np.maximum(exact - alpha * without, 0).sum() <= np.maximum(bounding - alpha * without, 0).sum() + 1e-9
    assert group(Steps(rate, noise, 7), 1) == Steps(rate, noise, 7)


@pytest.mark.parametrize(
    ("rate", "noise", "count"), [(0.05, 1.0, 20), (0.05, 4.0, 200), (0.2, 2.0, 10), (0.5, 4.0, 30), (0.9, 8.0, 40)]
)
def test_one_row_of_several_of_a_customer_counts_more_than_replacement(rate: float, noise: float, count: int) -> None:
    """Without the row, its customer's clipped sum is another vector of the same ball: N(C) becomes N(-C) at worst. The
    privacy loss of that pair, composed by FFT.
    """
    one, other = (density([0.0, move], [1 - rate, rate], noise) for move in (1.0, -1.0))
    keep = (one > 1e-30) & (other > 1e-30)
    width, bins = 2e-3, 2**17
    losses = np.rint(np.log(one[keep] / other[keep]) / width).astype(int)
    distribution = np.bincount(losses % bins, weights=one[keep], minlength=bins)
    composed = np.fft.irfft(np.fft.rfft(distribution) ** count, bins)
    loss = width * np.where(np.arange(bins) < bins // 2, np.arange(bins), np.arange(bins) - bins)
    for delta in (1e-3, 1e-6, 1e-9):
        bound = epsilon([Steps(rate, noise / 2, count)], delta)
        assert np.sum(composed * np.maximum(1 - np.exp(np.minimum(bound - loss, 0.0)), 0)) <= delta
