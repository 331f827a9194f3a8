"""The logarithm of the Stiefel manifold, in either metric, by Newton's method on the geodesics themselves.

In an orthonormal basis [X, Q] of the span of X and Y, with r = p + min(p, n - p) columns, tangent vectors at X are
W = [A; B], A skew, and their geodesics end in

    exp(S) [I; 0] exp(-(m - 1) A),  S = [[m A, -B^H], [B, 0]],

with m = 1 for the canonical metric and m = 2 for the Euclidean one. In the basis exp(S) that they carry along, the end
moves by J dW: the Jacobi fields, a d x d matrix for the d numbers of W. From canonical to Euclidean it goes by metrics
between them, as the canonical start is good and the shortest geodesics of neighbouring metrics are near.
Source: Zimmermann, A matrix-algebraic algorithm for the Riemannian logarithm on the Stiefel manifold under the
canonical metric (2017), for the start; Zimmermann & Hueper, Computing the Riemannian logarithm on the Stiefel manifold
(2022), for the metrics between and a step of the start; Najfeld & Havel (1995), for the derivative of exp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from .determinant import determinant_phase
from .exponential import matrix_exp
from .iterations import ORDER
from .linalg import eye_like, inverse_sqrt, may_wait, skew, sym
from .logarithm import logarithm as group_logarithm
from .transforms import is_recorded, whole

Points = Inexact[Tensor, "*batch n p"]
Basis = Inexact[Tensor, "*batch n r"]
Square = Inexact[Tensor, "*batch r r"]
Small = Inexact[Tensor, "*batch p p"]
Vectors = Inexact[Tensor, "*batch r p"]
Exp = Callable[[Points, Points], Points]

ROUNDS = 4  # of the start: with 2 some geodesics of length 2.8 were missed
LADDER = (1.0, 1.25, 1.5, 1.75)
STEPS = 64  # of Newton's method, which takes about 6 where it need not be held back
FIXED = 12  # in a graph, where nothing may be looked at
LONGEST = 0.5  # of one step: a longer one could leave the ball in which geodesics are shortest


def logarithm(x: Points, y: Points, m: int, exp: Exp) -> Points:
    """The V with exp(X, V) = Y, for n > p; NaN where Newton's method does not settle, and where X or Y is not finite.

    The shortest one within the injectivity radius. Differentiable up to ORDER. exp: that of the manifold.
    """
    sound = are_finite(x, y)
    here = torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device)
    x, y = (torch.where(sound, a, here) for a in (x, y))
    x, y = (a @ inverse_sqrt(sym(a.mH @ a)) for a in (x, y))
    base, p = x.detach(), x.shape[-1]
    away = y.detach() - base
    away = away - base @ (base.mH @ away)
    basis = torch.cat([base, torch.linalg.qr(torch.cat([base, away], -1)).Q[..., p:]], -1)
    end = basis.mH @ y.detach()
    w = _start(end)
    for between in LADDER if m == 2 and _are_far(w) else ():
        w, _ = _search(end, w, between, 1e-3)
    w, error = _search(end, w, m, 4 * _few(w))
    settled = (error <= 256 * _few(w))[..., None, None]
    v = _differentiable(x, y, basis, torch.where(settled, w, 0), m, exp)
    return torch.where(sound & settled, v, torch.nan)


def _are_far(w: Vectors) -> bool:
    """Whether some may be farther apart than where Newton's method alone finds the way."""
    return not may_wait(w) or bool(whole(torch.linalg.vector_norm(w, dim=(-2, -1)) > 1).any())


def _few(w: Vectors) -> float:
    """Of a sum of r roundings."""
    return w.shape[-2] * torch.finfo(w.dtype).eps


def are_finite(x: Points, y: Points) -> Bool[Tensor, "*batch 1 1"]:
    """Whether no number of the pair is NaN or Inf."""
    size = x.detach().abs() + y.detach().abs()  # torch knows no isfinite of a conjugate in vmap
    return size.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)


def _start(end: Vectors) -> Vectors:
    """W nearly that of the canonical metric: the first columns of log [Y, Z], for Z that make the rest of it small.

    Z begins as near to [0; I] as can be; each round takes from log [Y, Z] what the first terms of the series of
    Baker, Campbell and Hausdorff take.
    """
    p = end.shape[-1]
    z = torch.linalg.qr(end, mode="complete").Q[..., p:]
    u, s, vh = torch.linalg.svd(z[..., p:, :])
    if not end.is_complex():
        det = determinant_phase(torch.cat([end, z @ (vh.mH @ u.mH)], -1))
        last = torch.arange(s.shape[-1], device=s.device) == s.shape[-1] - 1
        u = u * torch.where(last, det.unsqueeze(-1), 1).unsqueeze(-2)
    z = z @ (vh.mH @ u.mH)
    w = group_logarithm(torch.cat([end, z], -1))
    for _ in range(ROUNDS if _are_far(w[..., :p]) else 0):
        b, c = w[..., p:, :p], w[..., p:, p:]
        t, q = torch.linalg.eigh(sym(b @ b.mH) / 12 - eye_like(c) / 2)
        sums = (t.unsqueeze(-1) + t.unsqueeze(-2)).clamp(max=-0.25)  # the terms left out count where they are above
        z = z @ matrix_exp(skew(q @ ((q.mH @ c @ q) / sums) @ q.mH))
        w = group_logarithm(torch.cat([end, z], -1))
    return w[..., :p]


def _search(end: Vectors, w: Vectors, m: float, enough: float) -> tuple[Vectors, Float[Tensor, "*batch"]]:
    """W whose geodesic ends at Y, and how far from there. A step that comes no nearer is tried at half its length."""
    target = torch.eye(*end.shape[-2:], dtype=end.dtype, device=end.device)

    def look(w: Vectors) -> tuple[Tensor, Vectors]:
        fields = _fields(w, m)
        seen = fields.basis.mH @ end @ fields.turn
        q, r = torch.linalg.qr(fields.jacobian)
        step = _through(lambda c: torch.linalg.solve_triangular(r, q.mT @ c, upper=True), seen)
        length = torch.linalg.vector_norm(step, dim=(-2, -1), keepdim=True)
        return torch.linalg.vector_norm(seen - target, dim=(-2, -1)), step * (LONGEST / length).clamp(max=1)

    error, step = look(w)
    size = torch.ones_like(error)
    for _ in range(STEPS if may_wait(end) else FIXED):
        if may_wait(end) and bool(whole((error <= enough) | (size < 1e-3)).all()):
            break
        tried = w + size[..., None, None] * step
        tried = torch.where(tried.isfinite(), tried, w)  # where J has no inverse
        its, next_ = look(tried)
        nearer = its < error * (1 - size / 8)
        here = nearer[..., None, None]
        w, step = torch.where(here, tried, w), torch.where(here, next_, step)
        error, size = torch.where(nearer, its, error), torch.where(nearer, (2 * size).clamp(max=1), size / 2)
    return w, error


def _differentiable(x: Points, y: Points, basis: Basis, w: Vectors, m: int, exp: Exp) -> Points:
    """V as a function of X and Y: Newton steps with J kept, each right to one order more.

    Directions in which J is 0, so that V jumps, are left out.
    """
    fields = _fields(w, m)
    moved, v = basis @ fields.basis, basis @ w
    inverse, outer = (torch.linalg.pinv(a, rtol=_few(w) ** 0.5) for a in (fields.jacobian, fields.outside))
    for _ in range(ORDER if is_recorded(x) or is_recorded(y) else 1):
        v = v - x @ sym(x.mH @ v)
        z = exp(x, v)
        rest = y - z
        rest = (rest - z @ sym(z.mH @ rest)) @ fields.turn
        inside = moved.mH @ rest
        v = v + basis @ _through(lambda c: inverse @ c, inside) + (rest - moved @ inside) @ outer
    return v - x @ sym(x.mH @ v)


class Fields(NamedTuple):
    """What W carries to the end of its geodesic: exp(S); exp((m - 1) A); J; and J of what is normal to the basis."""

    basis: Square
    turn: Small
    jacobian: Float[Tensor, "*batch d d"]
    outside: Small


def _fields(w: Vectors, m: float) -> Fields:
    r, p = w.shape[-2:]
    vectors = _vectors(r, p, w)
    t, z = _spectrum(_generator(w, m))
    top = z[..., :p, :]
    change = z.mH.unsqueeze(-3) @ _generator(vectors, m).to(z) @ z.unsqueeze(-3)
    ends = z.unsqueeze(-3) @ (_phi(t).unsqueeze(-3) * change @ top.mH.unsqueeze(-3))
    turn = eye_like(w[..., :p, :]).expand(*w.shape[:-2], p, p)
    if m > 1:
        t_a, z_a = _spectrum((m - 1) * w[..., :p, :])
        turn = _like((z_a * _phase(t_a).unsqueeze(-2)) @ z_a.mH, w)
        change = z_a.mH.unsqueeze(-3) @ ((m - 1) * vectors[..., :p, :]).to(z) @ z_a.unsqueeze(-3)
        less = z_a.unsqueeze(-3) @ (_phi(t_a).unsqueeze(-3) * change) @ z_a.mH.unsqueeze(-3)
        ends = torch.cat([ends[..., :p, :] - less, ends[..., p:, :]], -2)
    mean = torch.sinc(t / (2 * torch.pi)) * _phase(t / 2)  # of exp(i s t) over 0 <= s <= 1
    return Fields(
        _like((z * _phase(t).unsqueeze(-2)) @ z.mH, w),
        turn,
        _coordinates(_like(ends, w), vectors).mT,
        _like((top * mean.unsqueeze(-2)) @ top.mH, w),
    )


def _generator(w: Vectors, m: float) -> Square:
    """S = [[m A, -B^H], [B, 0]]."""
    p = w.shape[-1]
    a, b = w[..., :p, :], w[..., p:, :]
    return torch.cat([torch.cat([m * a, b], -2), torch.cat([-b.mH, b @ b.new_zeros(p, b.shape[-2])], -2)], -1)


def _spectrum(s: Square) -> tuple[Float[Tensor, "*batch r"], Square]:
    """t, Z of S = Z diag(it) Z^H."""
    t, z = torch.linalg.eigh(sym(-1j * s))
    return t, z


def _phi(t: Float[Tensor, "*batch r"]) -> Square:
    """F with exp(-S) d exp(S) = Z (F o Z^H dS Z) Z^H."""
    apart = t.unsqueeze(-1) - t.unsqueeze(-2)
    return torch.sinc(apart / (2 * torch.pi)) * _phase(-apart / 2)


def _phase(t: Float[Tensor, "..."]) -> Inexact[Tensor, "..."]:
    return torch.polar(torch.ones_like(t), t)


def _like(a: Tensor, w: Tensor) -> Tensor:
    return a if w.is_complex() else a.real


def _vectors(r: int, p: int, like: Tensor) -> Inexact[Tensor, "d r p"]:
    """An orthonormal basis of the W, in the real inner product."""
    square, rest = (torch.eye(k * p, dtype=like.dtype, device=like.device).unflatten(-1, (k, p)) for k in (p, r - p))
    row, column = torch.tril_indices(p, p, -1, device=like.device)
    half = square[row * p + column] / 2**0.5
    a, b = half - half.mT, rest
    if like.is_complex():
        a = torch.cat([a, 1j * (half + half.mT), 1j * square[:: p + 1]])
        b = torch.cat([b, 1j * b])
    first = torch.cat([a, a.new_zeros(len(a), r - p, p)], -2)
    return torch.cat([first, torch.cat([b.new_zeros(len(b), p, p), b], -2)])


def _coordinates(w: Vectors, vectors: Inexact[Tensor, "d r p"]) -> Float[Tensor, "*batch d"]:
    product = w.flatten(-2) @ vectors.flatten(-2).mH
    return product.real if product.is_complex() else product


def _through(solve: Callable[[Tensor], Tensor], w: Vectors) -> Vectors:
    """A linear map of coordinates, of that part of [A; B] whose A is skew."""
    vectors = _vectors(w.shape[-2], w.shape[-1], w)
    c = solve(_coordinates(w, vectors).unsqueeze(-1)).squeeze(-1)
    return (c.to(w) @ vectors.flatten(-2)).unflatten(-1, w.shape[-2:])  # type: ignore[no-any-return]
