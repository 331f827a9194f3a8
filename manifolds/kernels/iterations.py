"""S^(-1/2) and Lyapunov equations by products alone, in a number known beforehand: nothing is factorized or looked at.

Both are a sign function, of [[0, S], [I, 0]] and of [[Y, C], [0, -Y]], by the cubic Newton-Schulz iteration
X -> r X (3I - r^2 X^2) / 2. Scales r > 1 double its pace while eigenvalues are small, but it is not monotone then, and
rounding errors grow: for S^(-1/2) a last step mends them, and the Lyapunov equation is left at r = 1.
Source: Higham, Functions of Matrices (2008), sections 5.3 and 6.7; Chen & Chow, A stable scaling of Newton-Schulz for
improving the sign function computation of a Hermitian matrix (2014).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .tiny import product

Square = Inexact[Tensor, "*batch p p"]

ORDER = 4
"""Up to this order derivatives are right where they are those of an iteration that starts at its limit."""


def inverse_sqrt_by_products(s: Square) -> Square:
    """S^(-1/2) for Hermitian positive definite S, to about (20 + condition) eps; NaN where there is none."""
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    bound = _bound(s)
    first, *scales = SCALES[s.dtype]
    y = s / bound
    t = torch.sub(eye, y, alpha=first**2 / 3)
    y, z = product(y, t, alpha=1.5 * first), t * (1.5 * first)
    for scale in scales:  # Y stays Z S / bound, and Z Y comes to I
        t = torch.sub(eye, z @ y, alpha=scale**2 / 3)
        y, z = product(y, t, alpha=1.5 * scale), product(t, z, alpha=1.5 * scale)
    z = (z + z.mH) * (0.5 * bound.rsqrt())
    off = z @ (s @ z) - eye
    found = torch.linalg.vector_norm(off, dim=(-2, -1)) < 0.5
    return torch.where(found[..., None, None], product(off, z, z, -0.5), torch.nan)


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
    for _ in range(COUNTS[y.dtype]):
        square, aq = a @ a, a @ q
        q = 1.5 * q + 0.5 * (aq @ a) - aq.mH @ a
        q = (q + q.mH) / 2  # what is skew in it would double in every step
        a = 1.5 * a - 0.5 * (a @ square)
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    found = torch.linalg.vector_norm(a - eye, dim=(-2, -1)) < NEAR
    return torch.where(found[..., None, None], q / 2, torch.nan)


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
COUNTS = {dtype: len(_scales(eps, 1.0)) + 1 for dtype, eps in _EPS.items()}
