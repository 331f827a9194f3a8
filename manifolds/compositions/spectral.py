"""Matrices told by their singular values: bounded, of norm one, or given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from ..base import check_ndim
from ..euclidean import Euclidean
from ..stiefel import Stiefel
from ._svd import checked, columns
from .base import Composition, Parts

Matrices = Inexact[Tensor, "*batch n m"]


def _check_radius(composition: SpectralBall | SpectralSphere) -> None:
    radius = composition.radius
    if not isinstance(radius, int | float) or not 0 < radius < math.inf:
        name = type(composition).__name__
        raise ValueError(f"radius of {name} is a positive number, the bound of the singular values; got {radius!r}.")


def _svd_parts(composition: Composition, shape: Sequence[int], values: bool) -> Parts:
    """u (n, k), s (k,) and v (m, k) with k = min(n, m); s constant where it has no values of its own."""
    _, (n, m) = check_ndim(composition, shape, 2)
    batch, k = tuple(shape)[:-2], min(n, m)
    return {
        "u": (Stiefel(), (*batch, n, k)),
        "s": (Euclidean() if values else None, (*batch, k)),
        "v": (Stiefel(), (*batch, m, k)),
    }


@dataclass(frozen=True)
class SpectralBall(Composition):
    """R B, with B the first n rows of a point Q of Stiefel (n + m, m): all singular values are at most R.

    B^H B = I - C^H C, C the other rows, so B is a contraction; and each contraction has such a C, (I - B^H B)^(1/2).
    No singular value is computed, so equal ones are points like others. On the boundary C loses rank, and there the
    map is of second order in C: a start with singular values at R or beyond is taken at R (1 - eps), to rounding the
    same matrix, from where gradients lead inside. n < m: the transpose.
    radius: R, a number.
    Source: Sz.-Nagy & Foias, Harmonic Analysis of Operators on Hilbert Space (1970), chapter 1: unitary dilations.

    >>> float(torch.linalg.matrix_norm(SpectralBall(0.5).random(6, 4), ord=2)) <= 0.5
    True
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _check_radius(self)

    def parts(self, shape: Sequence[int]) -> Parts:
        """q: Stiefel (n + m, m), of the transpose (n + m, n) for n < m. Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        return {"q": (Stiefel(), (*tuple(shape)[:-2], n + m, min(n, m)) if n >= m else (*tuple(shape)[:-2], n, n + m))}

    def compose(self, *, q: Matrices) -> Matrices:  # type: ignore[override]
        """R times the first n rows of q; of a wide q the first m columns."""
        tall = q.shape[-2] > q.shape[-1]
        return self.radius * (q[..., : q.shape[-2] - q.shape[-1], :] if tall else q[..., : q.shape[-1] - q.shape[-2]])

    def decompose(self, x: Matrices) -> dict[str, Tensor]:
        """[B; (I - B^H B)^(1/2)] with the singular values of B = x / R cut at 1: of the nearest matrix of the ball."""
        if x.shape[-2] < x.shape[-1]:
            return {"q": self.decompose(x.mH)["q"].mH}
        u, s, vh = torch.linalg.svd(checked(x) / self.radius, full_matrices=False)
        s = s.clamp(max=1 - torch.finfo(x.dtype).eps)
        rest = ((1 - s) * (1 + s)).sqrt()
        q = torch.cat([(u * s.unsqueeze(-2)) @ vh, (vh.mH * rest.unsqueeze(-2)) @ vh], -2)
        return {"q": q.to(x.dtype)}


@dataclass(frozen=True)
class SpectralSphere(Composition):
    """U diag(R s / max|s|) V^H, with orthonormal U (n x k) and V (m x k), k = min(n, m): the largest singular value
    is R.

    radius: R, a number.
    Source: Newhouse et al., Training transformers with enforced Lipschitz constants (2025).

    >>> round(float(torch.linalg.matrix_norm(SpectralSphere(2.0).random(6, 4), ord=2)), 4)
    2.0
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _check_radius(self)

    def parts(self, shape: Sequence[int]) -> Parts:
        """u: Stiefel (n, k), s: Euclidean (k,), v: Stiefel (m, k). Raises ValueError for other shapes."""
        return _svd_parts(self, shape, values=True)

    def compose(self, *, u: Matrices, s: Tensor, v: Matrices) -> Matrices:  # type: ignore[override]
        """U diag(R s / max|s|) V^H."""
        s = self.radius * s / s.abs().amax(-1, keepdim=True)
        return (u * s.unsqueeze(-2)) @ v.mH

    def decompose(self, x: Matrices) -> dict[str, Tensor]:
        """The singular value decomposition, with the largest values cut or the first one raised to R: of the nearest
        matrix of spectral norm R."""
        u, s, v = columns(x)
        s = s.clamp(max=self.radius)
        s = torch.cat([torch.full_like(s[..., :1], self.radius), s[..., 1:]], -1) / self.radius
        return {"u": u, "s": s.to(x.dtype), "v": v}


@dataclass(frozen=True)
class Isospectral(Composition):
    """U diag(s) V^H with the singular values s that the tensor started with, and orthonormal U and V.

    Source: isospectral optimization, arXiv 2607.19331 (2026).

    >>> Isospectral().parts((4, 3))["s"]
    (None, (3,))
    """

    def parts(self, shape: Sequence[int]) -> Parts:
        """u: Stiefel (n, k), s: a constant (k,), v: Stiefel (m, k), k = min(n, m). Raises ValueError for others."""
        return _svd_parts(self, shape, values=False)

    def compose(self, *, u: Matrices, s: Tensor, v: Matrices) -> Matrices:  # type: ignore[override]
        """U diag(s) V^H."""
        return (u * s.unsqueeze(-2)) @ v.mH

    def decompose(self, x: Matrices) -> dict[str, Tensor]:
        """The singular value decomposition."""
        u, s, v = columns(x)
        return {"u": u, "s": s.to(x.dtype), "v": v}
