"""The affine-invariant metric."""

from __future__ import annotations

import math

import torch
from jaxtyping import Inexact
from torch import Tensor

from .._points import length
from ..kernels import hermitian
from ..kernels.hermitian import cholesky
from ..kernels.linalg import sym
from .flat import LogEuclidean
from .metric import Metric, Numbers, Square, diagonal, entries, inside

STEPS = 512  # of a mean, at most


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

    @torch.no_grad()  # its derivatives are those of its equation
    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square | None:
        """Y <- exp(Y, t sum w log(Y, X_i)) from the log-Euclidean mean, t = 2 / (1 + h), where the second derivative of
        the sum is between 1 and h = sum w l/2 coth l/2, l the logarithm of the condition of X_i as seen from Y: a step
        of 1 may go too far.

        Source: Bini & Iannazzo, Computing the Karcher mean of symmetric positive definite matrices (2013).
        """
        y, last, roots = LogEuclidean().mean(x, shares), math.inf, cholesky(x)
        eps = torch.finfo(x.dtype).eps
        for _ in range(STEPS):
            factor = cholesky(y).unsqueeze(-3)
            # singular values of a root of X_i: eigenvalues would have half of the digits
            q, values, _ = torch.linalg.svd(torch.linalg.solve_triangular(factor.expand(x.shape), roots, upper=False))
            logs = 2 * values.log()
            spread = (logs[..., :1] - logs[..., -1:]).unsqueeze(-1) / 2
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


def seen(factor: Square, y: Square) -> Square:
    """The A = L^-1 R for Y = R R^H: A A^H is Y in the frame of X = L L^H."""
    return torch.linalg.solve_triangular(factor, cholesky(y), upper=False)  # type: ignore[no-any-return]


def positive(w: Square) -> Square:
    """The triangular C with C C^H = I + W to first order, for Hermitian W: diagonal exp(W_ii / 2)."""
    return w.tril(-1) + diagonal((entries(w) / 2).exp(), w)
