"""What the methods put in the place of LoRA's two linear layers. PEFT computes W x + s second(first(dropout(x))).

This file is layers and nothing else, so it loads torch: the methods import it where they build one. PEFT asks the first
module for the type of its `weight`. privacy=example clips weights of `nn.Linear` below these. Shapes: x is (..., d_in),
h what the first module gives, usually (..., rank).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class First(nn.Module):
    """The first module of a layer, around one linear layer."""

    def __init__(self, name: str, linear: nn.Linear) -> None:
        super().__init__()
        self.add_module(name, linear)
        self._name = name

    @property
    def linear(self) -> Any:
        """The linear layer, whose place may have been taken by one that casts."""
        return getattr(self, self._name)

    @property
    def weight(self) -> Any:
        return self.linear.weight


class Both(First):
    """x -> (A x, A0 x), (..., 2 rank)."""

    def __init__(self, trained: nn.Linear, start: nn.Linear) -> None:
        super().__init__("trained", trained)
        self.start = start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.linear(x), self.start(x)), dim=-1)


class Apart(nn.Module):
    """(h, h0) -> B h - B0 h0, (..., d_out): exactly zero while A = A0 and B = B0."""

    def __init__(self, trained: nn.Linear, start: nn.Linear) -> None:
        super().__init__()
        self.trained, self.start = trained, start

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        trained, start = h.chunk(2, dim=-1)
        found: torch.Tensor = self.trained(trained) - self.start(start)
        return found


class Pooled(First):
    """A' of the sums of `size` neighbouring inputs each."""

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__("pooled", linear)
        self.size = size
        groups = torch.zeros(linear.in_features * size, dtype=torch.int32, device=linear.weight.device)
        self.groups = nn.Parameter(groups, requires_grad=False)  # (d_in,): the group of each input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(x.unflatten(-1, (-1, self.size)).sum(-1))
        return found


class ElasticFirst(First):
    """U1: A x + beta1 times the mean of each of `rank` runs of neighbouring inputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__("elastic", linear)
        self.beta1 = nn.Parameter(torch.zeros(1, device=linear.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.unflatten(-1, (self.linear.out_features, -1)).mean(-1)
        found: torch.Tensor = self.linear(x) + self.beta1.to(x.dtype) * means
        return found


class ElasticSecond(nn.Module):
    """U2: B h + beta2 times h, each of its numbers repeated d_out / rank times."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.elastic = linear
        self.beta2 = nn.Parameter(torch.zeros(1, device=linear.weight.device))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        repeated = h.repeat_interleave(self.elastic.out_features // h.shape[-1], dim=-1)
        found: torch.Tensor = self.elastic(h) + self.beta2.to(h.dtype) * repeated
        return found


class VectorScaled(nn.Module):
    """h -> b * B (d * h), with d (rank,) and b (d_out,) trained and B (d_out, rank) frozen."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.B = frozen
        self.d = nn.Parameter(torch.zeros(frozen.in_features, device=frozen.weight.device))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, device=frozen.weight.device))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b.to(h.dtype) * self.B(self.d.to(h.dtype) * h)
        return found


class Same(nn.Module):
    """x -> x, where the second module does all there is to do."""

    @property
    def weight(self) -> torch.Tensor:
        return torch.empty(0)  # float32, as the adapter computes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Hadamard(nn.Module):
    """x -> (W * (B A)) x, with W the frozen weight, (d_out, d_in), which `weight` gives in each pass."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, weight: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.hira_A, self.hira_B, self.base = a, b, weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = (self.hira_B @ self.hira_A).to(x.dtype)
        return nn.functional.linear(x, self.base().to(x.dtype) * product)


class Sparse(nn.Module):
    """x -> D x, with D (d_out, d_in) zero but for `values`, (count,), at `places`, (2, count) rows and columns."""

    def __init__(self, count: int, size_in: int, size_out: int, device: torch.device) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count, device=device))
        places = torch.zeros(2, count, dtype=torch.int32, device=device)
        self.places = nn.Parameter(places, requires_grad=False)
        self.shape = (size_out, size_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size_out, size_in = self.shape
        rows, columns = self.places.long()
        dense = torch.zeros(size_out * size_in, dtype=x.dtype, device=x.device)
        dense = dense.scatter(0, rows * size_in + columns, self.values.to(x.dtype))
        return nn.functional.linear(x, dense.view(size_out, size_in))
