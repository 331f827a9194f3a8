"""The nearest matrix of determinant 1: the polar factor with its singular directions turned.

With A = W S V^H and Q = W diag(e^(-i phi)) V^H, the phi sum to the angle of det(W V^H), and Re tr(Q^H A), the sum of
the s_i cos(phi_i), is to be largest. In the formulas p_i = s_i cos(phi_i): Q^H A has the Hermitian part V diag(p) V^H.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .determinant import determinant_phase, unit_determinant
from .linalg import newton_schulz
from .orthonormal import unique_svd
from .polar import factor

LACK = (
    "have deficient rank, below n - 1, or several nearest matrices of determinant 1, as a reflection has, which "
    "Orthogonal().nearest takes"
)

Square = Inexact[Tensor, "*batch n n"]
Values = Float[Tensor, "*batch n"]


def nearest(a: Square) -> Square:
    """The rotation (special unitary matrix) nearest to A. Raises ValueError where it is not unique."""
    w, s, vh = unique_svd(a, _gap, LACK)
    w, p = turned_basis(w, s, vh)
    return newton_schulz(factor(a, w, p, vh, unit_determinant if a.is_complex() else None))


def turned(w: Square, s: Values, vh: Square) -> Square:
    """One of determinant 1 that is nearest to W S V^H, unique or not."""
    return newton_schulz(turned_basis(w, s, vh)[0] @ vh)


def turned_basis(w: Square, s: Values, vh: Square) -> tuple[Square, Values]:
    """(W diag(e^(-i phi)), p)."""
    phase = determinant_phase(w @ vh)
    if w.is_complex():
        phases = _phases(s, phase.angle())
        return w * torch.polar(torch.ones_like(phases), -phases).unsqueeze(-2), s * phases.cos()
    turn = torch.cat([torch.ones_like(s[..., :-1]), phase.unsqueeze(-1)], -1)
    return w * turn.unsqueeze(-2), s * turn


def _gap(w: Square, s: Values, vh: Square) -> Float[Tensor, "*batch"]:
    """How far A is from one whose nearest matrix is not unique: the smallest p_i + p_j, or less.

    Of SU(n) that is the curvature of Re tr(Q^H A) where it is least, up to a factor; and 0 where the angles could as
    well sum to -pi.
    """
    if s.shape[-1] == 1:
        return torch.full_like(s[..., 0], torch.inf)  # one matrix is all there is
    phase = determinant_phase(w @ vh)
    if not w.is_complex():
        return s[..., -2] + phase * s[..., -1]
    total = phase.angle()
    p = s * (phases := _phases(s, total)).cos()
    first, last = p[..., :-1], p[..., -1]
    least = first.amin(-1)
    curvature = least + last * (least.unsqueeze(-1) / first).nan_to_num(1.0).sum(-1)
    turn = s[..., -1] * phases[..., -1].sin().abs()  # 0 where the phases are 0, ..., 0, pi: those of -pi are the same
    few = 16 * s.shape[-1] * torch.finfo(s.dtype).eps
    twice = (math.pi - total.abs() <= few) & (turn > few * s[..., 0])
    return torch.where(twice, 0, torch.minimum(curvature, least + last))


def _phases(s: Float[Tensor, "*batch n"], total: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
    """The angles phi that sum to total, in (-pi, pi], and maximize sum_i s_i cos(phi_i), for descending s > 0.

    At the optimum s_i sin(phi_i) is one number for all i. Let t = phi_n: the others are asin(s_n sin(t) / s_i), and
    their sum is continuous in t, 0 at t = 0 and pi at t = pi: bisection finds the t in between.
    """
    target = total.abs()
    last = s[..., -1:]

    def angles(t: Tensor) -> Tensor:
        others = torch.asin((last / s[..., :-1]).clamp(max=1) * t.sin().unsqueeze(-1))
        return torch.cat([others, t.unsqueeze(-1)], -1)

    half = torch.full_like(target, math.pi / 2)
    early = angles(half).sum(-1) >= target
    low, high = torch.where(early, torch.zeros_like(half), half), torch.where(early, half, 2 * half)
    for _ in range(2 + math.ceil(-math.log2(torch.finfo(s.dtype).eps))):
        middle = (low + high) / 2
        below = angles(middle).sum(-1) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    found = angles(high)
    found += ((target - found.sum(-1)) / s.shape[-1]).unsqueeze(-1)  # asin near 1 jumps by more than rounding
    return found * total.sign().unsqueeze(-1)
