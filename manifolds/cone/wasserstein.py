"""The Bures-Wasserstein metric."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .._points import inner, length
from ..kernels import hermitian
from ..kernels.hermitian import cholesky, lyapunov
from ..kernels.linalg import sym
from .metric import Metric, Numbers, Square


class BuresWasserstein(Metric):
    """tr(L U) / 2 with L X + X L = V, half the Frobenius norm of a change of root; frames divide by sqrt(2 (a + b)), a
    and b eigenvalues."""

    def vector(self, x: Square, w: Square) -> Square:
        values, q = hermitian.definite(x)
        return hermitian.weighted(q, _sums(values).sqrt(), w)

    def frame(self, x: Square, v: Square) -> Square:
        values, q = hermitian.definite(x)
        return hermitian.weighted(q, _sums(values).rsqrt(), v)

    def pulled(self, x: Square, g: Square) -> Square:
        return self.vector(x, g)

    def inner(self, x: Square, u: Square, v: Square) -> Numbers:
        return inner(lyapunov(x, sym(u)), v, 2) / 2

    def gradient(self, x: Square, g: Square) -> Square:
        """2 (G X + X G)."""
        return 4 * sym(sym(g) @ x)

    def unit(self, x: Square) -> Numbers:
        """The mean eigenvalue: W is a change of the root of X."""
        mean: Tensor = x.diagonal(dim1=-2, dim2=-1).real.mean(-1)
        return mean

    def exp(self, x: Square, v: Square) -> Square:
        """(I + L) X (I + L)."""
        half = lyapunov(x, sym(v))
        return sym(x + v + half @ x @ half)

    def retract(self, x: Square, v: Square) -> Square:
        """T X T with T = L + (I + L^2)^1/2, which is I + L to first order, and positive as far as it goes. As a square:
        rounding in X, times a T that is long where X is nearly singular, would make it indefinite."""
        root = hermitian.above(lyapunov(x, sym(v))) @ cholesky(x)
        return sym(root @ root.mH)

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
        root = hermitian.sqrt_of_gram(factor.mH @ cholesky(y))
        return torch.linalg.solve_triangular(factor.mH, root, upper=True)  # type: ignore[no-any-return]


def _sums(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    sums: Tensor = 2 * (values.unsqueeze(-1) + values.unsqueeze(-2))
    return sums
