"""Stable matrices: all eigenvalues to the left of a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from ..base import check_ndim
from ..kernels.linalg import cholesky, skew, solve_definite, sym
from ..positive_definite import PositiveDefinite
from ..symmetric import Skew
from ._svd import checked, each
from .base import Composition, Parts

Square = Inexact[Tensor, "*batch n n"]
ROUNDS = 100


@dataclass(frozen=True)
class Hurwitz(Composition):
    """P^-1 (S - Q / 2) - margin I with positive definite P, Q and skew S: every eigenvalue has a real part below
    -margin.

    For A = P^-1 (S - Q/2) has A^H P + P A = -Q, which is Lyapunov's condition; and every stable matrix has such a P.
    margin: a number, 0 or more.
    Source: Gillis & Sharma, On computing the distance to stability for matrices using linear dissipative Hamiltonian
    systems (2017).

    >>> bool((torch.linalg.eigvals(Hurwitz(0.1).random(4, 4)).real < -0.1).all())
    True
    """

    margin: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.margin, int | float) or not 0 <= self.margin < math.inf:
            raise ValueError(f"margin of Hurwitz is a number, 0 or more; got {self.margin!r}.")

    def parts(self, shape: Sequence[int]) -> Parts:
        """p, q: PositiveDefinite (n, n), s: Skew (n, n). Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        if n != m:
            raise ValueError(f"{self} needs square matrices; got shape {tuple(shape)}.")
        whole = tuple(shape)
        return {"p": (PositiveDefinite(), whole), "q": (PositiveDefinite(), whole), "s": (Skew(), whole)}

    def compose(self, *, p: Square, q: Square, s: Square) -> Square:  # type: ignore[override]
        """P^-1 (S - Q / 2) - margin I."""
        stable = solve_definite(s - q / 2, cholesky(sym(p)))
        return stable - self.margin * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)

    def decompose(self, x: Square) -> dict[str, Tensor]:
        """Q = I and the P with A^H P + P A = -I, A = x + margin I, by Newton's iteration for the sign of A.

        Raises ValueError where an eigenvalue is not to the left of -margin.
        Source: Roberts, Linear model reduction and solution of the algebraic Riccati equation by use of the sign
        function (1980).
        """
        wide = checked(x)
        eye = torch.eye(x.shape[-1], dtype=wide.dtype, device=x.device)
        a = wide + self.margin * eye
        if not bool((torch.linalg.eigvals(a).real < 0).all()):
            raise ValueError(
                f"a matrix of shape {tuple(x.shape)} has eigenvalues whose real part is not below {-self.margin:g}. "
                f"Subtract a multiple of the identity."
            )
        p = each(_lyapunov, a, a)
        return {"p": p.to(x.dtype), "q": eye.expand(a.shape).to(x.dtype), "s": skew(p @ a).to(x.dtype)}


def _lyapunov(a: Tensor) -> Tensor:
    """P with A^H P + P A = -I."""
    n = a.shape[-1]
    q = torch.eye(n, dtype=a.dtype, device=a.device)
    for _ in range(ROUNDS):
        inverse = torch.linalg.inv(a)
        # the scaling by norms, which makes the first steps short
        scale = (torch.linalg.matrix_norm(inverse) / torch.linalg.matrix_norm(a)).sqrt()
        if bool((scale - 1).abs() < 1e-2):
            scale = torch.ones_like(scale)
        after = (scale * a + inverse / scale) / 2
        q = sym(scale * q + inverse.mH @ q @ inverse / scale) / 2
        moved = torch.linalg.matrix_norm(after - a) / torch.linalg.matrix_norm(a)
        a = after
        if bool(moved < 1e-14 * n):
            break
    return q / 2
