"""What a metric on Hermitian positive definite matrices has, on points X, vectors V and frames W.

A frame at X is an isometry W -> V from matrices with the Frobenius norm to T_X, so that a vector is carried from point
to point by its W, and keeps its length. Engines keep W in place of V.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .._points import inner
from ..kernels.linalg import may_look, sym
from ..kernels.transforms import whole

Square = Inexact[Tensor, "*batch n n"]
Numbers = Float[Tensor, "*batch"]


class Metric(ABC):
    """One metric; `PositiveDefinite` has the formulas in words."""

    is_flat = False

    @abstractmethod
    def vector(self, x: Square, w: Square) -> Square:
        """V of W."""

    @abstractmethod
    def frame(self, x: Square, v: Square) -> Square:
        """W of V."""

    @abstractmethod
    def pulled(self, x: Square, g: Square) -> Square:
        """The adjoint of `vector`: W of the gradient."""

    @abstractmethod
    def exp(self, x: Square, v: Square) -> Square:
        """The geodesic at time 1."""

    @abstractmethod
    def log(self, x: Square, y: Square) -> Square:
        """The inverse of exp."""

    @abstractmethod
    def distance(self, x: Square, y: Square) -> Numbers:
        """The length of the shortest path."""

    def frames(self, a: Square) -> Square:
        """What of a is a frame: its Hermitian part."""
        return sym(a)

    def inner(self, x: Square, u: Square, v: Square) -> Numbers:
        return inner(self.frame(x, u), self.frame(x, v), 2)

    def gradient(self, x: Square, g: Square) -> Square:
        return self.vector(x, self.pulled(x, g))

    def retract(self, x: Square, v: Square) -> Square:
        return self.exp(x, v)

    def move(self, x: Square, w: Square) -> Square:
        """A map of frames onto the whole cone from any X, x + vector(x, w) to first order."""
        return self.retract(x, self.vector(x, w))

    def unit(self, x: Square) -> Numbers:
        """|W|^2 of the frames at which `move` begins to bend."""
        return torch.ones_like(x[..., 0, 0].real)

    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square | None:
        """The mean over axis -3; None where it is that of any geodesic manifold."""
        return None


def inside(factor: Square, v: Square) -> Square:
    """L^-1 V L^-H for Hermitian V."""
    half = torch.linalg.solve_triangular(factor, v, upper=False)
    return sym(torch.linalg.solve_triangular(factor, half.mH, upper=False))


def kept(y: Square) -> Square:
    """Y; where rounding has taken it out of the cone, Y + D with D_ii = 4 n eps Y_ii, as near to the edge as its factor
    can tell: relative to the diagonal, as rows may be of any size. NaN where that is no point either."""
    out = torch.linalg.cholesky_ex(y.detach()).info != 0
    if may_look(y) and not bool(whole(out).any()):
        return y
    d = entries(y.detach())
    largest = d.amax(-1, keepdim=True)
    d = 4 * y.shape[-1] * torch.finfo(y.dtype).eps * torch.where(d > 0, d, largest.expand(d.shape))
    lifted = y + diagonal(torch.where(out.unsqueeze(-1), d, 0), y)
    lost = torch.linalg.cholesky_ex(lifted.detach()).info != 0
    return torch.where(lost[..., None, None], torch.nan, lifted)


def entries(a: Square) -> Float[Tensor, "*batch n"]:
    entries = a.diagonal(dim1=-2, dim2=-1)
    real: Tensor = entries.real if a.is_complex() else entries
    return real


def diagonal(d: Float[Tensor, "*batch n"], like: Square) -> Square:
    return d.to(like.dtype).diag_embed()
