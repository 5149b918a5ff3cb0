"""Partitioners and hold-out: the laws of `data.partition` with drawn rows, and the figures of small hand-made cases."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.partition import PARTITIONERS, hold_out, partition
from data.rows import Row
from fedfinlora.config.dataset import PARTITIONERS as CONFIG_PARTITIONERS
from fedfinlora.config.dataset import PartitionConfig
from fedfinlora.errors import ConfigError, UserError

TASKS = ("fpb", "headline", "xbrl_term", "custom")
LAWFUL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make(number: int, task: str = "fpb", target: str = "neutral", issuer: str = "", path: str = "") -> Row:
    return Row(f"{task}/train/{number:06d}", task, f"prompt {number} Answer:", target, issuer, path)


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(TASKS),
                st.sampled_from(["negative", "neutral", "positive"]),
                st.sampled_from(["", "A", "a", "B", "C"]),
            ),
            min_size=1,
            max_size=60,
        )
    )
    return [make(number, task, target, issuer) for number, (task, target, issuer) in enumerate(drawn)]


def test_config_and_partition_know_the_same_names() -> None:
    assert set(PARTITIONERS) == set(CONFIG_PARTITIONERS)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "by_task"])
@given(
    rows=row_lists(),
    banks=st.integers(1, 12),
    seed=st.integers(0, 5),
    alpha=st.sampled_from([1e-9, 0.05, 0.5, 100.0, 1e300]),
)
@LAWFUL
def test_each_row_goes_to_exactly_one_bank_and_each_bank_gets_one(
    name: str, rows: list[Row], banks: int, seed: int, alpha: float
) -> None:
    config = PartitionConfig(name, alpha)
    if banks > len(rows):
        with pytest.raises(UserError, match="lower banks or give more rows"):
            partition(rows, banks, config, seed)
        return
    parts = partition(rows, banks, config, seed)
    assert len(parts) == banks
    assert all(parts)
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    order = {row.id: position for position, row in enumerate(rows)}
    for part in parts:
        positions = [order[row.id] for row in part]
        assert positions == sorted(positions)
    assert parts == partition(rows, banks, config, seed)


@given(rows=row_lists(), banks=st.integers(1, 6), seed=st.integers(0, 3))
@LAWFUL
def test_each_issuer_is_with_exactly_one_bank(rows: list[Row], banks: int, seed: int) -> None:
    groups = len({row.issuer.casefold() for row in rows if row.issuer}) + sum(not row.issuer for row in rows)
    if banks > min(groups, len(rows)):
        with pytest.raises(UserError, match="more banks"):
            partition(rows, banks, PartitionConfig("by_issuer"), seed)
        return
    parts = partition(rows, banks, PartitionConfig("by_issuer"), seed)
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert all(parts)
    if banks > 1:
        banks_of = Counter(issuer for part in parts for issuer in {row.issuer.casefold() for row in part if row.issuer})
        assert all(count == 1 for count in banks_of.values())


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
def test_one_bank_gets_all_rows_in_their_order(name: str) -> None:
    rows = [make(number, TASKS[number % 3], path=f"desk-{number % 2}") for number in range(7)]
    assert partition(rows, 1, PartitionConfig(name), seed=3) == [rows]


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_another_seed_gives_other_banks(name: str) -> None:
    rows = [make(number) for number in range(50)]
    assert partition(rows, 3, PartitionConfig(name), 0) != partition(rows, 3, PartitionConfig(name), 1)


def test_iid_sizes_differ_by_one_at_most() -> None:
    assert sorted(map(len, partition([make(number) for number in range(11)], 4, PartitionConfig("iid"), 0))) == [
        2,
        3,
        3,
        3,
    ]


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    labels = ("negative", "neutral", "positive")
    rows = [make(number, target=labels[number % 3]) for number in range(3000)]

    def largest_label_share(alpha: float) -> float:
        """Mean over banks of the share of a bank's most frequent label: 1/3 is even."""
        parts = partition(rows, 4, PartitionConfig("dirichlet", alpha), 0)
        return sum(max(Counter(row.target for row in part).values()) / len(part) for part in parts) / 4

    assert largest_label_share(0.05) > 0.7
    assert largest_label_share(1000.0) < 0.4


def test_dirichlet_takes_an_open_task_as_one_class() -> None:
    """With alpha near zero a class goes to one bank whole: 40 different answers of one open task still stay
    together.
    """
    rows = [make(number, "xbrl_term", target=f"meaning {number}") for number in range(40)]
    assert sorted(map(len, partition(rows, 2, PartitionConfig("dirichlet", 1e-3), 0))) == [1, 39]


def test_by_task_deals_whole_tasks_largest_first() -> None:
    sizes = {"headline": 9, "fpb": 5, "xbrl_term": 4, "custom": 1}
    rows = [make(number, task) for task, size in sizes.items() for number in range(size)]
    parts = partition(rows, 2, PartitionConfig("by_task"), 0)
    assert [{row.task for row in part} for part in parts] == [{"headline", "custom"}, {"fpb", "xbrl_term"}]


def test_by_task_with_more_banks_than_tasks_shares_out_the_largest() -> None:
    rows = [make(number, "headline") for number in range(10)] + [make(number, "fpb") for number in range(3)]
    parts = partition(rows, 4, PartitionConfig("by_task"), 0)
    assert sorted((len(part), part[0].task) for part in parts) == [
        (3, "fpb"),
        (3, "headline"),
        (3, "headline"),
        (4, "headline"),
    ]
    assert all(len({row.task for row in part}) == 1 for part in parts)


def test_by_issuer_ignores_case_and_balances_banks_with_the_other_rows() -> None:
    rows = [make(number, issuer="ACME Corp" if number % 2 else "Acme Corp") for number in range(6)]
    rows += [make(number) for number in range(6, 12)]
    parts = partition(rows, 2, PartitionConfig("by_issuer"), 0)
    assert [len(part) for part in parts] == [6, 6]
    assert {row.issuer for row in parts[0]} == {"ACME Corp", "Acme Corp"}


def test_by_path_gives_each_bank_its_folder_sorted_by_name() -> None:
    rows = [make(number, path=("beta", "alpha")[number % 2]) for number in range(6)]
    parts = partition(rows, 2, PartitionConfig("by_path"), 0)
    assert [{row.path for row in part} for part in parts] == [{"alpha"}, {"beta"}]


def test_by_path_lists_the_folders_when_they_are_not_as_many_as_the_banks() -> None:
    rows = [make(number, path=("beta", "alpha", "")[number % 3]) for number in range(6)]
    with pytest.raises(UserError, match=r"there are 3 folders and banks=2. .*\(no folder\), alpha, beta. Set banks=3"):
        partition(rows, 2, PartitionConfig("by_path"), 0)


def test_too_many_banks_and_unknown_names_are_clear_errors() -> None:
    with pytest.raises(UserError, match=r"more banks \(3\) than train rows \(2\): lower banks or give more rows"):
        partition([make(0), make(1)], 3, PartitionConfig("iid"), 0)
    with pytest.raises(UserError, match="banks must be 1 or more"):
        partition([make(0)], 0, PartitionConfig("iid"), 0)
    with pytest.raises(ConfigError, match="Did you mean 'dirichlet'"):
        PartitionConfig("dirchlet")


@given(rows=row_lists(), fraction=st.floats(0, 0.99), max_rows=st.integers(0, 20), seed=st.integers(0, 3))
@LAWFUL
def test_hold_out_never_empties_train_and_loses_nothing(
    rows: list[Row], fraction: float, max_rows: int, seed: int
) -> None:
    rows = [make(number, row.task) for number, row in enumerate(rows)]
    train, held_out = hold_out(rows, fraction, max_rows, seed, "bank-0")
    assert train
    assert len(held_out) <= max_rows
    assert sorted(row.id for row in train + held_out) == sorted(row.id for row in rows)
    assert (train, held_out) == hold_out(rows, fraction, max_rows, seed, "bank-0")


def test_hold_out_rounds_up_and_differs_between_banks() -> None:
    rows = [make(number) for number in range(30)]
    assert len(hold_out(rows, 0.02, 16, 0, "bank-0")[1]) == 1
    assert len(hold_out(rows, 0.1, 16, 0, "bank-0")[1]) == 3
    assert len(hold_out(rows, 0.9, 16, 0, "bank-0")[1]) == 16
    assert hold_out(rows, 0.5, 16, 0, "bank-0") != hold_out(rows, 0.5, 16, 0, "bank-1")


@pytest.mark.parametrize(("fraction", "max_rows", "count"), [(0.0, 16, 5), (0.5, 0, 5), (0.5, 16, 1)])
def test_hold_out_of_nothing_or_from_one_row_gives_none(fraction: float, max_rows: int, count: int) -> None:
    rows = [make(number) for number in range(count)]
    assert hold_out(rows, fraction, max_rows, 0, "bank-0") == (rows, [])


def test_copies_of_a_held_out_row_leave_the_train_rows() -> None:
    rows = [make(number) for number in range(4)]
    copies = [Row(f"{row.id}#{copy}", row.task, row.prompt, row.target) for copy in (2, 3) for row in rows]
    train, held_out = hold_out([*rows, *copies], 0.25, 16, 0, "bank-0")
    assert len(held_out) == 1
    assert len(train) == 9
    assert held_out[0].prompt not in {row.prompt for row in train}


@pytest.mark.parametrize("name", ["iid", "dirichlet", "by_task", "by_issuer"])
def test_100_000_rows_are_divided_within_seconds(name: str) -> None:
    rows = [
        make(number, TASKS[number % 4], issuer=f"filer {number % 997}" if number % 3 else "")
        for number in range(100_000)
    ]
    start = time.perf_counter()
    partition(rows, 8, PartitionConfig(name), 0)
    assert time.perf_counter() - start < 20.0  # a quadratic partitioner would take minutes
