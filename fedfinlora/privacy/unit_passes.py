"""What layers do otherwise in a private pass: dropout masks for each unit, products of a common beginning computed
once.

Dropout. A unit's gradient may depend only on its own tokens and secret randomness: masks by a token's place in the
packed sequence would all move with one unit more. Here a generator seeded by the step's secret mask key and the unit's
number gives its masks, so the sums with and without a unit differ by its clipped gradient alone.

Common beginnings. A frozen layer's products y = W x of tokens that have the same beginning are equal, so they are
computed once and copied; the backward product is each unit's own. No gradient changes. With dropout inputs differ and
nothing is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedfinlora.model.packing import Example, in_order, make_tree
from fedfinlora.privacy.per_example import Span, forward_instead

if TYPE_CHECKING:
    import torch
    from torch import nn

LEAST_SAVED_SHARE = 0.1
"""Beginnings are shared where at least this share of a pass's tokens is a repetition."""


@contextmanager
def dropout_of_units(model: nn.Module, spans: Sequence[Span], seeds: Sequence[int]) -> Iterator[None]:
    """Dropout layers in training mode take unit i's masks, for tokens spans[i] of a (1, T, n) input, from a generator
    seeded with seeds[i].
    """
    import torch

    device = next(model.parameters()).device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def forward_of(layer: nn.Dropout) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(values: torch.Tensor) -> torch.Tensor:
            keep = torch.empty(values.shape[-2:], dtype=torch.float32, device=values.device)
            for (start, end), generator in zip(spans, generators, strict=True):
                keep[start:end].uniform_(generator=generator)
            return values * ((keep >= layer.p).to(values.dtype) / (1 - layer.p))

        return forward

    layers = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Dropout) and module.training and module.p > 0
    ]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(forward_instead(layer, forward_of(layer)))
        yield


def drops_out(model: nn.Module) -> bool:
    """Whether any dropout layer is at work."""
    import torch

    return any(isinstance(module, torch.nn.Dropout) and module.training and module.p > 0 for module in model.modules())


def repeated_tokens(rows: Sequence[Example]) -> tuple[list[int], list[int]] | None:
    """(S first places, T numbers): the place in the packed sequence of the first token with each beginning, and for
    each of the T packed tokens which of these has its beginning. None where too little is repeated. `rows` lie one
    after the other.
    """
    ordered = sorted(range(len(rows)), key=lambda number: (rows[number].read_ids, rows[number].answer_ids))
    tree = make_tree([example.read_ids for example in in_order(rows)])
    total = sum(len(example.read_ids) for example in rows)
    if tree.tokens > (1 - LEAST_SAVED_SHARE) * total:
        return None
    numbers: list[list[int]] = [[] for _ in rows]
    for place, row in enumerate(ordered):
        for start, end in tree.keys(place, 0, len(rows[row].read_ids)):
            numbers[row] += range(start, end)
    of_token = [number for row in numbers for number in row]
    first = [-1] * tree.tokens
    for place in range(len(of_token) - 1, -1, -1):
        first[of_token[place]] = place
    return first, of_token


@contextmanager
def shared_products(model: nn.Module, repeated: tuple[list[int], list[int]] | None) -> Iterator[None]:
    """Frozen linear layers compute each common beginning's products once (`repeated_tokens`); None computes all."""
    if repeated is None:
        yield
        return
    import torch

    device = next(model.parameters()).device
    first, of_token = (torch.tensor(places, device=device) for places in repeated)
    function = _shared_linear()

    def forward_of(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        own = layer.forward

        def forward(values: torch.Tensor) -> torch.Tensor:
            if values.shape[:-1] != (1, len(of_token)):  # logits are made at answers only
                return own(values)
            shared: torch.Tensor = function.apply(values, layer.weight, layer.bias, first, of_token)
            return shared

        return forward

    layers = [
        module for module in model.modules() if type(module) is torch.nn.Linear and not module.weight.requires_grad
    ]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(forward_instead(layer, forward_of(layer)))
        yield


@lru_cache(maxsize=1)
def _shared_linear() -> Any:
    import torch

    class SharedLinear(torch.autograd.Function):
        """y = W x + b for values (1, T, in) of which those with the same number in `of_token` (T,) are equal to that at
        first[number].
        """

        @staticmethod
        def forward(
            context: Any,
            values: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            first: torch.Tensor,
            of_token: torch.Tensor,
        ) -> torch.Tensor:
            context.save_for_backward(weight)
            product = torch.nn.functional.linear(values[0].index_select(0, first), weight, bias)
            return product.index_select(0, of_token).unsqueeze(0)

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            (weight,) = context.saved_tensors
            return gradients[0] @ weight, None, None, None, None

    return SharedLinear


def spans_of_lengths(lengths: Sequence[int]) -> list[Span]:
    """(start, end) of stretches of these lengths laid end to end.

    >>> spans_of_lengths([2, 3])
    [(0, 2), (2, 5)]
    """
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return list(pairwise(ends))
