"""Retractions of the Stiefel manifold: functions (x, v) -> y, passed as values.

x is (..., n, p) with orthonormal columns, or orthonormal rows if n < p; v is a tangent vector at x, ambient, of the
same shape; the result has the shape of x. Real or complex. For p << n nothing of size n x n is made.
In the formulas A = X^H V (skew), K = V - X A, S = K^H K.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Literal

import torch
from jaxtyping import Inexact
from torch import Tensor

from .kernels.cayley import cayley_move
from .kernels.exponential import exp_move, matrix_exp
from .kernels.linalg import cholesky, eye_like, skew, sym
from .kernels.mend import inverse_sqrt_and_condition, largest_square, length_of, orthonormal, unit_columns, wider
from .kernels.precision import in_full_precision
from .kernels.resolvent import resolvent
from .kernels.tiny import largest_norm

Point = Inexact[Tensor, "*batch n p"]
Retraction = Callable[[Tensor, Tensor], Tensor]
Metric = Literal["euclidean", "canonical"]


def _tall(retraction: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wide points have orthonormal rows: they are retracted as their conjugate transposes."""

    @wraps(retraction)
    def either(x: Tensor, v: Tensor, **options: object) -> Tensor:
        if x.shape[-2:] != v.shape[-2:] or x.dim() < 2:
            raise ValueError(
                f"the points and tangent vectors of {retraction.__name__} are matrices of one shape, with batch axes "
                f"before; got shapes {tuple(x.shape)} and {tuple(v.shape)}."
            )
        if x.shape[-2] < x.shape[-1]:
            return retraction(x.mH, v.mH, **options).mH
        return retraction(x, v, **options)

    return either


@in_full_precision
@_tall
def cayley(x: Point, v: Point) -> Point:
    """(I - W/2)^-1 (I + W/2) X with W = P V X^H - X V^H P, P = I - X X^H / 2; X (I - A/2)^-1 (I + A/2) if square.

    Computed as (2X + K) B - X with B = (I + S/4 - A/2)^-1, p x p. Second order. Differentiable at v = 0.
    Source: Wen & Yin, A feasible method for optimization with orthogonality constraints (2013), section 2.2.

    >>> x = Stiefel().random(5, 3)
    >>> v = Stiefel().project(x, torch.randn(5, 3))
    >>> bool(Stiefel().contains(retractions.cayley(x, v)))
    True
    """
    a = skew(x.mH @ v)
    if x.shape[-2] == x.shape[-1]:
        return cayley_move(x, a)
    k = v - x @ a
    s = sym(k.mH @ k)
    condition = length_of(v)
    if condition is not None and condition > 4:  # at p right angles |V| is sqrt(p), and nothing is ill-conditioned
        condition = (largest_norm(s.detach()) + largest_norm(a.detach())) / 4
    if wide := wider(condition, v.dtype):
        return cayley(x.to(wide), v.to(wide)).to(v.dtype)
    # B = L^-H (I - (L^-1 A L^-H)/2)^-1 L^-1 with L L^H = I + S/4
    inverse = torch.linalg.solve_triangular(cholesky(eye_like(a) + s / 4), eye_like(a).expand(a.shape), upper=False)
    b = inverse.mH @ resolvent(skew(inverse @ a @ inverse.mH)) @ inverse
    return orthonormal(unit_columns((2 * x + k) @ b - x), condition)


@in_full_precision
@_tall
def exp(x: Point, v: Point, *, metric: Metric = "euclidean") -> Point:
    """The geodesic of the metric from X with velocity V: X exp(A) if square, for both metrics.

    Else [X, K] exp([[m A, -S], [I, 0]]) [I; 0] exp(-(m - 1) A), with m = 1 for the canonical and m = 2 for the
    Euclidean metric: one exponential of size 2p x 2p. Exact. Differentiable at v = 0.
    Source: Edelman, Arias & Smith, The geometry of algorithms with orthogonality constraints (1998), 2.2 and 2.4;
    Zimmermann & Hueper, Computing the Riemannian logarithm on the Stiefel manifold (2022), section 2.

    >>> quarter = torch.tensor([[0.0, -torch.pi / 2], [torch.pi / 2, 0.0]])
    >>> retractions.exp(torch.eye(2), quarter).round().int().tolist()
    [[0, -1], [1, 0]]
    """
    a = skew(x.mH @ v)
    if x.shape[-2] == x.shape[-1]:
        return exp_move(x, a)
    k = v - x @ a
    s = sym(k.mH @ k)
    # the basis [X, K / scale] keeps the exponent balanced for long steps; the result does not depend on scale
    x = x.expand(k.shape)
    scale = s.detach().diagonal(dim1=-2, dim2=-1).real.sum(-1).sqrt().clamp_min(1)[..., None, None]
    eye = eye_like(a).expand(a.shape)
    m = 1 if metric == "canonical" else 2
    top, bottom = torch.cat([m * a, -s / scale], -1), torch.cat([scale * eye, torch.zeros_like(a)], -1)
    first = matrix_exp(torch.cat([top, bottom], -2))[..., : a.shape[-1]]
    y = torch.cat([x, k / scale], -1) @ first
    y = y @ matrix_exp(-a) if metric == "euclidean" else y
    r, condition = inverse_sqrt_and_condition(sym(y.mH @ y))  # rounding of the exponentials grows with the length of v
    if wide := wider(condition, y.dtype):
        return exp(x.to(wide), v.to(wide), metric=metric).to(v.dtype)
    return orthonormal(y @ r, condition)


@in_full_precision
@_tall
def qr(x: Point, v: Point) -> Point:
    """The Q factor of X + V with positive diagonal in R, by Cholesky of its Gram matrix. First order.

    Differentiable at v = 0. Source: Absil, Mahony & Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    example 4.1.3.

    >>> x = torch.eye(3, 2)
    >>> torch.equal(retractions.qr(x, torch.zeros(3, 2)), x)
    True
    """
    y = x + v
    s = sym(y.mH @ y)
    largest = largest_square(s)
    if largest is not None and not s.shape[-1] * largest * torch.finfo(s.dtype).eps <= 1e-2:
        q, r = torch.linalg.qr(y)
        return q * torch.where(r.diagonal(dim1=-2, dim2=-1).real < 0, -1, 1).unsqueeze(-2)  # type: ignore[no-any-return]
    y = _by_cholesky(y, s)
    return _by_cholesky(y, sym(y.mH @ y))  # the error of the first grows with the square of the condition of Y


@in_full_precision
@_tall
def polar(x: Point, v: Point) -> Point:
    """The polar factor Y (Y^H Y)^(-1/2) of Y = X + V: the nearest point of the manifold to X + V. Second order.

    Differentiable at v = 0. Source: Absil, Mahony & Sepulchre (2008), example 4.1.3; Absil & Malick, Projection-like
    retractions on matrix manifolds (2012).

    >>> x, v = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    >>> retractions.polar(x, v)  # (1, 1) / sqrt(2)
    tensor([[0.7071],
            [0.7071]])
    """
    y = x + v
    r, condition = inverse_sqrt_and_condition(sym(y.mH @ y))
    if wide := wider(condition, y.dtype):
        return polar(x.to(wide), v.to(wide)).to(y.dtype)
    return orthonormal(y @ r, condition)


def _by_cholesky(y: Tensor, s: Tensor) -> Tensor:
    """Y R^-1 with R^H R = S = Y^H Y."""
    return torch.linalg.solve_triangular(cholesky(s).mH, y, upper=True, left=False)  # type: ignore[no-any-return]
