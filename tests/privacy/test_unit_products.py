"""The gradients of units by padded products, as GPUs make them, next to one product a unit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fedfinlora.privacy.per_example import Kept, padded_unit_gradients, unit_gradients


@pytest.mark.parametrize("lengths", [[1], [3, 16, 17, 40], [5] * 9, [64, 1, 200]])
def test_padded_products_are_those_of_each_unit(lengths: list[int]) -> None:
    draw = torch.Generator().manual_seed(sum(lengths))
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    spans = list(pairwise(ends))
    inputs, gradients = (torch.randn(ends[-1], size, generator=draw) for size in (12, 7))
    expected = unit_gradients(Kept({"a": inputs}, {"a": gradients}), spans)["a"]
    torch.testing.assert_close(padded_unit_gradients(inputs, gradients, spans), expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_unit() -> None:
    inputs, gradients = torch.ones(9, 4), torch.ones(9, 3)
    inputs[5, 0] = gradients[5, 1] = float("inf")
    found = padded_unit_gradients(inputs, gradients, [(0, 5), (5, 6), (6, 9)])
    assert found.isfinite().all(dim=(1, 2)).tolist() == [True, False, True]
    assert found[0].unique().tolist() == [5.0]
    assert found[2].unique().tolist() == [3.0]
