"""The tangent vector of Stiefel with singular values up to 1 that goes most along a given one.

With M = X Omega + N, Omega = X^H M, N = M - X Omega, and S Hermitian,
    max {Re tr(M^H A) : A tangent at X, |A|_2 <= 1} = min over S of the sum of the singular values of [Omega + S; N],
and A = X B + C with [B; C] = msign([Omega + S; N]) at the best S, where B is skew. The sum is made smooth, sigma as
sqrt(sigma^2 + e), and its minimum followed by Newton steps as e goes to 0. Each of them is solved by conjugate
gradients, preconditioned by the matrix of the reweighted least squares that majorize the sum.
Source: Bernstein, Modular manifolds (2025), for the problem; Mohan & Fazel, Iterative reweighted algorithms for matrix
rank minimization (2012), for the majorant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor

Points = Inexact[Tensor, "*batch n p"]
Square = Inexact[Tensor, "*batch p p"]

GAP = 2e-7
"""What the result may lack of the optimum, as a part of it. It is reached in 10 to 20 steps where [Omega + S; N] keeps
its rank at the best S, in 30 to 60 where it does not, as for real X of odd n < 2p."""
STEPS, INNER = 200, 40
SMALLEST = 1e-15  # e, for |M| = 1: the sum is then right to 3e-8 for each singular value that is 0
CENTRED = 0.1
"""Of what e adds to the sum: where a Newton step gains less, S is at the minimum for e, and e goes on. Going on from
further away S falls behind, and no step reaches the minimum for the next e."""
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.02, 0.004, 0.001)


class _Smooth(NamedTuple):
    """The sum at S: Y = Omega + S, [Y; R] = W diag(sigma) V^H with R^H R = N^H N, root = sqrt(sigma^2 + e)."""

    y: Square
    sigma: Tensor
    root: Tensor
    v: Square

    def sum(self) -> Tensor:
        return self.root.sum(-1)[..., None, None]


def dual(x: Points, m: Points) -> Points:
    """A for tall X and tangent M; 0 where M is. The p x p work is in float64, and on an accelerator it waits for it."""
    wide = torch.promote_types(m.dtype, torch.float64)
    omega = x.mH @ m
    rest = m - x @ omega
    length = (_dot(m, m)).sqrt().to(wide.to_real())
    scale = torch.where(length > 0, length, 1.0)
    omega = ((omega - omega.mH) / 2).to(wide) / scale
    corner = torch.linalg.qr(rest.to(wide)).R / scale  # R^H R = N^H N
    inverse, b = _solved(omega, corner)
    a = x @ b.to(m.dtype) + (rest @ (inverse / scale).to(m.dtype))
    normal = x.mH @ a
    a = a - x @ ((normal + normal.mH) / 2)
    norm = torch.linalg.matrix_norm(a, 2)[..., None, None]
    return a / torch.where(norm > 0, norm, 1.0)


def _solved(omega: Square, corner: Square) -> tuple[Square, Square]:
    """(T, B): A = X B + N T, with |A|_2 <= 1, at the smallest gap seen."""
    s, e = torch.zeros_like(omega), omega.new_full((*omega.shape[:-2], 1, 1), 0.1, dtype=omega.dtype.to_real())
    best = omega.new_full(e.shape, torch.inf, dtype=e.dtype), torch.zeros_like(omega), torch.zeros_like(omega)
    for _ in range(STEPS):
        at = _smooth(omega + s, corner, e)
        best = _better(best, *_feasible(at, omega, corner))
        if bool((best[0] <= GAP).all()):
            break
        slope, step, safe = _newton(at)
        before, decrease = at.sum(), _dot(slope, step)
        to, found = s + safe, torch.zeros_like(before, dtype=torch.bool)
        for length in LENGTHS:
            there = s + length * step
            good = _smooth(omega + there, corner, e).sum() <= before + 0.1 * length * decrease
            to = torch.where(good & ~found, there, to)
            found |= good
            if bool(found.all()):
                break
        s = to
        smoothed = (e / at.root.unsqueeze(-2)).sum(-1, keepdim=True)  # what e may add to the sum
        e = torch.where(-decrease < CENTRED * smoothed, (e / 10).clamp_min(SMALLEST), e)
    return best[1], best[2]


def _smooth(y: Square, corner: Square, e: Tensor) -> _Smooth:
    _, sigma, vh = torch.linalg.svd(torch.cat([y, corner], -2), full_matrices=False)
    return _Smooth(y, sigma, (sigma.square() + e[..., 0]).sqrt(), vh.mH)


def _feasible(at: _Smooth, omega: Square, corner: Square) -> tuple[Tensor, Square, Square]:
    """(gap, T, B) of what is made of S: B made skew, and all of it shortened to norm 1."""
    t = (at.v / at.root.unsqueeze(-2)) @ at.v.mH
    b = at.y @ t
    b = (b - b.mH) / 2
    c = corner @ t
    norm = torch.linalg.matrix_norm(torch.cat([b, c], -2), 2)[..., None, None].clamp_min(1.0)
    value = (_dot(omega, b) + _dot(corner, c)) / norm
    optimum = at.sigma.sum(-1)[..., None, None]
    return (optimum - value) / torch.where(optimum > 0, optimum, 1.0), t / norm, b / norm


def _better(best: tuple[Tensor, Square, Square], gap: Tensor, t: Square, b: Square) -> tuple[Tensor, Square, Square]:
    less = gap < best[0]
    return torch.where(less, gap, best[0]), torch.where(less, t, best[1]), torch.where(less, b, best[2])


def _newton(at: _Smooth) -> tuple[Square, Square, Square]:
    """(gradient sym(Y P^-1) of the sum, Newton step, step of reweighted least squares), P = V diag(root) V^H.

    In the basis V: dP_ij = (D^H Y + Y^H D)_ij / (root_i + root_j), d(Y P^-1) = D P^-1 - Y P^-1 dP P^-1.
    """
    y, r = at.v.mH @ at.y @ at.v, at.root.reciprocal()
    column, row = r.unsqueeze(-1), r.unsqueeze(-2)
    sums = at.root.unsqueeze(-1) + at.root.unsqueeze(-2)

    def sym(a: Square) -> Square:
        return (a + a.mH) / 2

    def hessian(d: Square) -> Square:
        t = d.mH @ y
        return sym(d * row - y @ ((t + t.mH) / sums * column * row))

    def majorant(g: Square) -> Square:
        return 2 * g / (column + row)

    slope = sym(y * row)
    d, residue = torch.zeros_like(slope), -slope
    z = majorant(residue)
    q, size = z, _dot(residue, z)
    enough = 1e-24 * size
    for _ in range(INNER):
        hq = hessian(q)
        curvature = _dot(q, hq)
        goes = (size > enough) & (curvature > 0)
        by = torch.where(goes, size / torch.where(goes, curvature, 1.0), 0.0)
        d, residue = d + by * q, residue - by * hq
        z = majorant(residue)
        after = _dot(residue, z)
        q, size = z + torch.where(goes, after / torch.where(goes, size, 1.0), 0.0) * q, after
    return tuple(at.v @ each @ at.v.mH for each in (slope, d, majorant(-slope)))  # type: ignore[return-value]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum((-2, -1), keepdim=True)
