"""Metrics on Hermitian positive definite matrices: what belongs to each, on points X, vectors V and frames W.

A frame at X is an isometry W -> V from matrices with the Frobenius norm to T_X, so that a vector is carried from point
to point by its W, and keeps its length. Engines keep W in place of V.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import inner, length
from .kernels import hermitian
from .kernels.linalg import cholesky, lyapunov, sym

Square = Inexact[Tensor, "*batch n n"]
Numbers = Float[Tensor, "*batch"]

STEPS = 512  # of a mean, at most


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

    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square | None:
        """The mean over axis -3; None where it is that of any geodesic manifold."""
        return None


class AffineInvariant(Metric):
    """tr(X^-1 U X^-1 V), frames L W L^H for X = L L^H."""

    def vector(self, x: Square, w: Square) -> Square:
        factor = cholesky(x)
        return sym(factor @ w @ factor.mH)

    def frame(self, x: Square, v: Square) -> Square:
        return inside(cholesky(x), v)

    def pulled(self, x: Square, g: Square) -> Square:
        factor = cholesky(x)
        return sym(factor.mH @ sym(g) @ factor)

    def gradient(self, x: Square, g: Square) -> Square:
        """X sym(G) X."""
        return sym(x @ sym(g) @ x)

    def retract(self, x: Square, v: Square) -> Square:
        """X + V + V X^-1 V / 2."""
        half = torch.linalg.solve_triangular(cholesky(x), v, upper=False)
        return sym(x + v + half.mH @ half / 2)

    def move(self, x: Square, w: Square) -> Square:
        """(L C)(L C)^H with the triangular C of `positive`, which reaches all of the cone."""
        y = cholesky(x) @ positive(w)
        return y @ y.mH

    def exp(self, x: Square, v: Square) -> Square:
        """L exp(L^-1 V L^-H) L^H."""
        factor = cholesky(x)
        return sym(factor @ hermitian.exp(inside(factor, v)) @ factor.mH)

    def log(self, x: Square, y: Square) -> Square:
        factor = cholesky(x)
        return sym(factor @ hermitian.log_of_gram(seen(factor, y)) @ factor.mH)

    def distance(self, x: Square, y: Square) -> Numbers:
        return length(hermitian.log_of_gram(seen(cholesky(x), y)), 2)

    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square | None:
        """Y <- exp(Y, t sum w log(Y, X_i)) from the log-Euclidean mean, t = 2 / (1 + h), where the second derivative of
        the sum is between 1 and h = sum w l/2 coth l/2, l the logarithm of the condition of X_i as seen from Y: a step
        of 1 may go too far.

        Source: Bini & Iannazzo, Computing the Karcher mean of symmetric positive definite matrices (2013).
        """
        y, last = METRICS["log-euclidean"].mean(x, shares), math.inf
        assert y is not None
        eps = torch.finfo(x.dtype).eps
        for _ in range(STEPS):
            factor = cholesky(y).unsqueeze(-3)
            values, q = torch.linalg.eigh(inside(factor.expand(x.shape), x))
            logs = values.log()
            spread = (logs[..., -1:] - logs[..., :1]).unsqueeze(-1) / 2
            h = (shares * torch.where(spread < 1e-3, 1, spread / torch.where(spread < 1e-3, 1, spread).tanh())).sum(-3)
            v = (shares * hermitian.rebuilt(logs, q)).sum(-3)
            y = sym(factor.squeeze(-3) @ hermitian.exp(2 / (1 + h) * v) @ factor.squeeze(-3).mH)
            size = float(torch.linalg.matrix_norm(v).max()) if v.numel() else 0.0
            # within rounding, or as near to it as the condition of the matrices lets it come
            if size <= 8 * eps or (size <= 4 * math.sqrt(eps) and size >= last):
                return y
            last = size
        raise RuntimeError(
            f"the affine-invariant mean of {x.shape[-3]} matrices did not settle in {STEPS} steps: the last one had "
            f"length {size:.1e}. Take float64, or the mean under another metric, if they are nearly singular."
        )


class Flat(Metric):
    """A metric that is Euclidean in a chart onto a vector space; frames are what is added there."""

    is_flat = True

    @abstractmethod
    def chart(self, x: Square) -> Square: ...

    @abstractmethod
    def point(self, c: Square) -> Square:
        """The inverse of `chart`."""

    def exp(self, x: Square, v: Square) -> Square:
        return self.move(x, self.frame(x, v))

    def move(self, x: Square, w: Square) -> Square:
        return self.point(self.chart(x) + w)

    def log(self, x: Square, y: Square) -> Square:
        return self.vector(x, self.chart(y) - self.chart(x))

    def distance(self, x: Square, y: Square) -> Numbers:
        return length(self.chart(y) - self.chart(x), 2)

    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square | None:
        return self.point((shares * self.chart(x)).sum(-3))


class LogEuclidean(Flat):
    """tr(Dlog(X)[U] Dlog(X)[V]): the chart is log X."""

    def chart(self, x: Square) -> Square:
        return hermitian.log(x)

    def point(self, c: Square) -> Square:
        return hermitian.exp(c)

    def frame(self, x: Square, v: Square) -> Square:
        return hermitian.log_at(x, v)

    def vector(self, x: Square, w: Square) -> Square:
        return hermitian.exp_at(x, w)

    def pulled(self, x: Square, g: Square) -> Square:
        return hermitian.exp_at(x, g)


class LogCholesky(Flat):
    """The chart is L for X = L L^H, with log L_ii on its diagonal; frames are triangular."""

    def frames(self, a: Square) -> Square:
        return a.tril(-1) + _diagonal(a.diagonal(dim1=-2, dim2=-1).real, a)

    def chart(self, x: Square) -> Square:
        factor = cholesky(x)
        return factor.tril(-1) + _diagonal(_entries(factor).log(), x)

    def point(self, c: Square) -> Square:
        factor = c.tril(-1) + _diagonal(_entries(c).exp(), c)
        return factor @ factor.mH

    def frame(self, x: Square, v: Square) -> Square:
        factor = cholesky(x)
        a = inside(factor, v)
        d = factor @ (a.tril(-1) + _diagonal(_entries(a) / 2, a))
        return d.tril(-1) + _diagonal(_entries(d) / _entries(factor), d)

    def vector(self, x: Square, w: Square) -> Square:
        factor = cholesky(x)
        half = (w.tril(-1) + _diagonal(_entries(w) * _entries(factor), w)) @ factor.mH
        return half + half.mH

    def pulled(self, x: Square, g: Square) -> Square:
        factor = cholesky(x)
        a = 2 * sym(g) @ factor
        return a.tril(-1) + _diagonal(_entries(a) * _entries(factor), a)


class BuresWasserstein(Metric):
    """tr(L U) / 2 with L X + X L = V, half the Frobenius norm of a change of root; frames divide by sqrt(2 (a + b)), a
    and b eigenvalues."""

    def vector(self, x: Square, w: Square) -> Square:
        values, q = hermitian.eigen(x)
        return hermitian.weighted(q, _sums(values).sqrt(), w)

    def frame(self, x: Square, v: Square) -> Square:
        values, q = hermitian.eigen(x)
        return hermitian.weighted(q, _sums(values).rsqrt(), v)

    def pulled(self, x: Square, g: Square) -> Square:
        return self.vector(x, g)

    def inner(self, x: Square, u: Square, v: Square) -> Numbers:
        return inner(lyapunov(x, sym(u)), v, 2) / 2

    def gradient(self, x: Square, g: Square) -> Square:
        """2 (G X + X G)."""
        return 4 * sym(sym(g) @ x)

    def exp(self, x: Square, v: Square) -> Square:
        """(I + L) X (I + L)."""
        half = lyapunov(x, sym(v))
        return sym(x + v + half @ x @ half)

    def retract(self, x: Square, v: Square) -> Square:
        """T X T with T = L + (I + L^2)^1/2, which is I + L to first order, and positive as far as it goes."""
        t = hermitian.above(lyapunov(x, sym(v)))
        return sym(t @ x @ t)

    def log(self, x: Square, y: Square) -> Square:
        """(X Y)^1/2 + (Y X)^1/2 - 2 X, where (X Y)^1/2 = R (R^H Y R)^1/2 R^-1 for X = R R^H."""
        factor = cholesky(x)
        return 2 * sym(factor @ self._root(factor, y).mH - x)

    def distance(self, x: Square, y: Square) -> Numbers:
        """|R - R^-H (R^H Y R)^1/2|: the nearest of the roots of Y. The traces would lose half the digits."""
        factor = cholesky(x)
        return length(self._root(factor, y) - factor, 2)

    def _root(self, factor: Square, y: Square) -> Square:
        """R^-H (R^H Y R)^1/2, a Z with Z Z^H = Y."""
        root = hermitian.sqrt(factor.mH @ y @ factor)
        return torch.linalg.solve_triangular(factor.mH, root, upper=True)  # type: ignore[no-any-return]


def inside(factor: Square, v: Square) -> Square:
    """L^-1 V L^-H for Hermitian V."""
    half = torch.linalg.solve_triangular(factor, v, upper=False)
    return sym(torch.linalg.solve_triangular(factor, half.mH, upper=False))


def seen(factor: Square, y: Square) -> Square:
    """The A = L^-1 R for Y = R R^H: A A^H is Y in the frame of X = L L^H."""
    return torch.linalg.solve_triangular(factor, cholesky(y), upper=False)  # type: ignore[no-any-return]


def positive(w: Square) -> Square:
    """The triangular C with C C^H = I + W to first order, for Hermitian W: diagonal exp(W_ii / 2)."""
    return w.tril(-1) + _diagonal((_entries(w) / 2).exp(), w)


def _entries(a: Square) -> Float[Tensor, "*batch n"]:
    entries = a.diagonal(dim1=-2, dim2=-1)
    real: Tensor = entries.real if a.is_complex() else entries
    return real


def _diagonal(d: Float[Tensor, "*batch n"], like: Square) -> Square:
    return d.to(like.dtype).diag_embed()


def _sums(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    # what is nearly singular may have eigenvalues of rounding, of any sign
    values = values.clamp_min(0).add(torch.finfo(values.dtype).tiny)
    sums: Tensor = 2 * (values.unsqueeze(-1) + values.unsqueeze(-2))
    return sums


METRICS: dict[str, Metric] = {
    "affine-invariant": AffineInvariant(),
    "log-euclidean": LogEuclidean(),
    "log-cholesky": LogCholesky(),
    "bures-wasserstein": BuresWasserstein(),
}
