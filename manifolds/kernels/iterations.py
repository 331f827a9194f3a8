"""S^(-1/2), Lyapunov equations and (I - A/2)^-1 by products alone, in a number known beforehand: nothing is factorized
or looked at.

The first two are a sign function, of [[0, S], [I, 0]] and of [[Y, C], [0, -Y]], by the cubic Newton-Schulz iteration
X -> r X (3I - r^2 X^2) / 2; the third is made of a polar factor, by X -> r X (3I - r^2 X^H X) / 2. Scales r > 1 double
its pace while eigenvalues are small, but it is not monotone then, and rounding errors grow: a last step mends them.
Source: Higham, Functions of Matrices (2008), sections 5.3 and 6.7; Chen & Chow, A stable scaling of Newton-Schulz for
improving the sign function computation of a Hermitian matrix (2014).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

Square = Inexact[Tensor, "*batch p p"]

ORDER = 4
"""Up to this order derivatives are right where they are those of an iteration that starts at its limit."""


def inverse_sqrt_by_products(s: Square) -> Square:
    """S^(-1/2) for Hermitian positive definite S, to about (20 + condition) eps; NaN where there is none."""
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand(s.shape)
    bound = _bound(s)
    y, z = s / bound, eye
    for k, scale in enumerate(SCALES[s.dtype]):  # Y stays Z S / bound, and Z Y comes to I
        t = (
            torch.sub(1.5 * scale * eye, y, alpha=0.5 * scale**3)
            if k == 0
            else fused(eye, z, y, 1.5 * scale, -0.5 * scale**3)
        )
        y, z = y @ t, t if k == 0 else t @ z
    z = z * bound.rsqrt()
    z = (z + z.mH) / 2
    near = z @ (s @ z)
    found = torch.linalg.vector_norm(near - eye, dim=(-2, -1)) < 0.5
    return torch.where(found[..., None, None], fused(z, near, z, 1.5, -0.5), torch.nan)


def inverse_sqrt_in_basis(s: Square) -> Square:
    """S^(-1/2) for Hermitian positive definite S by eigh, with derivatives up to ORDER in every mode of torch.

    In the eigenbasis at S, R <- R - Z with R^-1 Z + Z R^-1 = R S R - I: where R starts, a constant, is the limit, and
    each step is right to one order more in dS.
    """
    values, q = torch.linalg.eigh(s.detach())
    r = values.rsqrt()
    s, x = q.mH @ s @ q, torch.diag_embed(r).to(q.dtype)
    by = 1 / (r.reciprocal().unsqueeze(-1) + r.reciprocal().unsqueeze(-2))
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    for _ in range(ORDER):
        x = x - (x @ s @ x - eye) * by
    return q @ x @ q.mH  # type: ignore[no-any-return]


def lyapunov_by_products(y: Square, c: Square) -> Square:
    """The Hermitian Z with Y Z + Z Y = C, for Hermitian C and positive definite Y of condition up to eps^(-1/2).

    NaN where Y is not that: A, which comes to I, has not come there.
    """
    bound = _bound(y)
    a, q = y / bound, c / bound
    y, c = a, q
    for scale in LYAPUNOV[y.dtype]:
        square, aq = a @ a, a @ q
        q = fused(q, torch.sub(aq.mH, aq, alpha=0.5), a, 0.75 * scale, -0.5 * scale**3)
        q = q + q.mH  # what is skew in it would double in every step
        a = fused(a, a, square, 1.5 * scale, -0.5 * scale**3)
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    found = torch.linalg.vector_norm(a - eye, dim=(-2, -1)) < NEAR
    left = fused(c, y, q, 0.5, -0.5)  # of the equation, half: Y is near I where rounding is most of the error
    return torch.where(found[..., None, None], (q + left + left.mH) / 2, torch.nan)


def resolvent_by_products(a: Square) -> Square:
    """(I - A/2)^-1 for skew A, as exact as its condition sqrt(1 + |A|^2/4) allows; NaN where that may be too large,
    from |A| = 2 / sqrt(eps) on, or a n^(1/4)-th part of it.

    It is (I + U^2) / 2, with U the polar factor of I + A/2: all singular values are from 1 up to the condition.
    """
    squares = _times(a, a)  # -A^H A
    # its norm is |A|^2 or more, and sqrt(2) times that where A is real: its singular values come in pairs
    square = torch.linalg.vector_norm(squares, dim=(-2, -1), keepdim=True) / (4 if a.is_complex() else 32**0.5)
    by = (1 + square).reciprocal()
    by = torch.where(by < torch.finfo(a.dtype).eps, torch.nan, by)
    root = by.sqrt()
    u = _shifted(a * (root / 2), root)
    gram = _shifted(squares * (by / -4), by)
    for k, scale in enumerate(SCALES[a.dtype]):
        gram = gram if k == 0 else _times(u.mH if u.is_complex() else u.mT, u)
        u = fused(u, u, gram, 1.5 * scale, -0.5 * scale**3)
    p = _shifted(fused(u, u, u, 0, 0.5), 0.5)
    return fused(p, p, fused(p, a, p, 1, -0.5), 2, -1)  # P as it is may be off by a part of it, for it may be small


def _shifted(a: Square, by: float | Tensor) -> Square:
    """A + by I, in the memory of A."""
    a.diagonal(dim1=-2, dim2=-1).add_(by if isinstance(by, float) else by[..., 0])
    return a


def _times(a: Square, b: Square) -> Square:
    """A B, without what torch does to find out which product that is."""
    return torch.bmm(a, b) if a.dim() == b.dim() == 3 else a @ b


def fused(c: Square, a: Square, b: Square, beta: float, alpha: float) -> Square:
    """beta C + alpha A B, in one call where there is one."""
    if a.dim() in (2, 3) and a.shape == b.shape == c.shape:
        multiply = torch.addmm if a.dim() == 2 else torch.baddbmm
        return multiply(c, a, b, beta=beta, alpha=alpha)
    return beta * c + alpha * (a @ b)


def _bound(s: Square) -> Float[Tensor, "*batch 1 1"]:
    """The largest row, which is no less than |S| and at most sqrt(p) |S|, as that of Frobenius, but 1 at S = I."""
    if not s.shape[-1]:
        return s.abs().sum((-2, -1), keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(s, 1, dim=-1).amax(-1)
    return norm[..., None, None]


def _scales(eps: float, largest: float) -> tuple[float, ...]:
    """The scales, of at most this size, that bring all numbers in [sqrt(eps), 1] to within sqrt(eps) of 1.

    Each raises the lower end as far as the image of the upper allows.
    """
    low, scales = eps**0.5, []
    while 1 - low > eps**0.5:
        scale = min(largest, (3 / (1 + low + low**2)) ** 0.5)
        low = min(scale * x * (3 - (scale * x) ** 2) / 2 for x in (low, 1.0))
        scales.append(scale)
    return tuple(scales)


NEAR = 1e-2  # the iteration is quadratic: whoever is not as near at its end has steps to go
_EPS = {d: torch.finfo(d).eps for d in (torch.float32, torch.float64, torch.complex64, torch.complex128)}
SCALES = {dtype: _scales(eps, 1.6977) for dtype, eps in _EPS.items()}  # at sqrt(3) the upper end would go to 0
LYAPUNOV = {dtype: (*_scales(eps, 1.4), 1.0) for dtype, eps in _EPS.items()}
