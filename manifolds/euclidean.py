"""The real or complex line, and so every tensor without a constraint; or vectors, matrices, ... as one point each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, length, sizes
from .base import check_ndim
from .linear import LinearSpace

Points = Inexact[Tensor, "..."]


@dataclass(frozen=True)
class Euclidean(LinearSpace):
    """Unconstrained numbers: a point is one entry, T_x = R (or C), and every axis is a batch axis.

    R^n is the product of n lines. So `inner` is entry by entry, and an optimizer that keeps one second moment per
    point keeps one per entry, as torch.optim.Adam does. In a product, the entries of a block add up.
    ndim: the number of last axes that make one point: with 2 a matrix has one inner product and one second moment.

    >>> Euclidean().retract(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]))
    tensor([1.5000, 2.5000])
    >>> Euclidean(ndim=2).distance(torch.zeros(2, 2), torch.ones(2, 2))
    tensor(2.)
    """

    ndim: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.ndim, int) or isinstance(self.ndim, bool) or self.ndim < 0:
            raise ValueError(
                f"the ndim of Euclidean is a number of axes, 0 for points that are entries; got {self.ndim!r}."
            )

    def project(self, x: Points, a: Points) -> Points:
        """a."""
        return broadcast(self, x, a)[1]

    def nearest(self, x: Points) -> Points:
        """x."""
        return x

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        if self.ndim:
            check_ndim(self, shape, self.ndim)
        return math.prod(shape)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """0 for each point; NaN where x is not finite."""
        if self.ndim:
            return length(x - x, self.ndim)
        return (x - x).abs()

    def norm(self, x: Points, v: Points) -> Float[Tensor, "*batch"]:
        """|v|, entry by entry for ndim=0."""
        v = broadcast(self, x, v)[1]
        return length(v, self.ndim) if self.ndim else v.abs()

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """Standard normal entries."""
        self.dim(shape := sizes(shape))
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)
