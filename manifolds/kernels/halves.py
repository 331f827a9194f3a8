"""(I - A/2)^-1 for skew A by halves: products do the work, which LU leaves to triangular solves at half their pace.

With M = [[M1, B], [C, M2]], E = M1^-1 and T = (M2 - C E B)^-1 the inverse is [[E + E B T C E, -E B T], [-T C E, T]].
Nothing is pivoted: M = I - A/2 has the Hermitian part I, that of M2 - C E B is no less, for C = -B^H, and so on down.
But M2 - C E B may be as large as |A|^2, and is rounded then. Blocks that are near I are inverted by products, too,
M^-1 = (I + B) (I + B^2) (I + B^4) ... with B = I - M: most are, in training, where the base follows the weight.
Source: Golub & Van Loan, Matrix Computations (2013), section 4.2.2 on unsymmetric positive definite systems.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import LU_BATCH
from .tiny import largest_norm

Matrices = Inexact[Tensor, "B n n"]

SMALLEST, SMALLEST_SHARED = 32, 128
"""Up to this size LU costs no more than the calls of its halves, on one thread and on several: these wait for each
other in each call, and where another process has a core they wait long, so that there should be a few dozen, as in LU.
"""

REACH = 32.0
"""Up to this norm of A rounding is that of LU with pivots; it grows with |A|^2, and shows from about 100 on."""


SHORT, SHORT_SHARED = 64, 128
"""Blocks of this size, down to its half, are tried by products in float32; in other dtypes these are more work."""


def smallest() -> int:
    """The size up to which halves are not halved again."""
    return SMALLEST if torch.get_num_threads() == 1 else SMALLEST_SHARED


def resolvent_by_halves(a: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """(I - A/2)^-1 for skew A with |A| <= REACH."""
    m = _shifted(a)
    _invert(m, smallest(), _short())
    return m.view(a.shape)


def factors_by_halves(a: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """[[E, E B], [C, T]] of M = I - A/2 for skew A with |A| <= REACH. That is half a product less than the inverse, and
    `solve_by_halves` is as much work as a product with it."""
    m = _shifted(a)
    _quarters(m)[1].copy_(_halve(m, smallest(), _short()))
    return m.view(a.shape)


def solve_by_halves(
    x: Inexact[Tensor, "... m n"], factors: Inexact[Tensor, "... n n"], adjoint: bool = False
) -> Inexact[Tensor, "... m n"]:
    """X (I - A/2)^-1, with the factors of `factors_by_halves`; adjoint: X (I + A/2)^-1. Batch axes are broadcast.

    Y2 = (X2 - X1 E B) T and Y1 = (X1 - Y2 C) E, from which the adjoint follows backwards.
    """
    batch = torch.broadcast_shapes(x.shape[:-2], factors.shape[:-2])
    x, factors = (t.expand(*batch, *t.shape[-2:]) for t in (x, factors))
    k, y = x.shape[-1] // 2, torch.empty_like(x, memory_format=torch.contiguous_format)
    e, eb, c, t = _quarters(factors.reshape(-1, *factors.shape[-2:]))
    (x1, x2), (y1, y2) = (z.view(-1, *z.shape[-2:]).tensor_split((k,), -1) for z in (x.contiguous(), y))
    if adjoint:
        torch.bmm(x1, e.mH, out=y1)
        torch.bmm(torch.baddbmm(x2, y1, c.mH, alpha=-1), t.mH, out=y2)
        y1.baddbmm_(y2, eb.mH, alpha=-1)
    else:
        torch.bmm(torch.baddbmm(x2, x1, eb, alpha=-1), t, out=y2)
        torch.bmm(torch.baddbmm(x1, y2, c, alpha=-1), e, out=y1)
    return y


def _shifted(a: Inexact[Tensor, "*batch n n"]) -> Matrices:
    """I - A/2."""
    m = a.reshape(-1, *a.shape[-2:]) * -0.5
    m.diagonal(dim1=-2, dim2=-1).add_(1)
    return m


def _short() -> int:
    return SHORT if torch.get_num_threads() == 1 else SHORT_SHARED


def _invert(m: Matrices, smallest: int, short: int) -> None:
    """Put M^-1 in the place of M: fresh memory costs as much as arithmetic on it."""
    n = m.shape[-1]
    if short // 2 < n <= short and _by_products(m):
        return
    if n <= smallest:
        for some in m.unbind() if n >= LU_BATCH else (m,):
            some.copy_(torch.linalg.inv_ex(some)[0])
        return
    k = n // 2
    e, b, c, t = _quarters(m)
    eb = _halve(m, smallest, short)
    ce = torch.bmm(c, e)
    ebt = torch.bmm(eb, t)
    e.baddbmm_(ebt, ce)
    torch.neg(ebt, out=b)
    torch.neg(torch.bmm(t, ce, out=eb.view(len(m), n - k, k)), out=c)


def _halve(m: Matrices, smallest: int, short: int) -> Inexact[Tensor, "B k l"]:
    """Put E and T in the place of M1 and M2, for E B."""
    e, b, c, t = _quarters(m)
    _invert(e, smallest, short)
    eb = torch.bmm(e, b)
    t.baddbmm_(c, eb, alpha=-1)
    _invert(t, smallest, short)
    return eb


def _quarters(m: Matrices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k = m.shape[-1] // 2
    return m[:, :k, :k], m[:, :k, k:], m[:, k:, :k], m[:, k:, k:]


def _by_products(m: Matrices) -> bool:
    """Put (I + B) (I + B^2) (I + B^4) (I + B^8), or less, in the place of M = I - B, where that is M^-1 to rounding.

    What a product up to B^k lacks is B^2k M^-1, with |M^-1| about 1 and |B^2k| <= |B^k|^2.
    """
    if m.dtype != torch.float32:
        return False
    b = torch.neg(m)
    b.diagonal(dim1=-2, dim2=-1).add_(1)
    if not largest_norm(b) <= 1:  # also where it is NaN
        return False
    power, rounding = torch.bmm(b, b), torch.finfo(m.dtype).eps / 8
    size = largest_norm(power)
    if not size**8 <= rounding:
        return False
    b.diagonal(dim1=-2, dim2=-1).add_(1)
    y = torch.baddbmm(b, b, power)
    while size**2 > rounding:
        power, size = torch.bmm(power, power), size**2
        y = torch.baddbmm(y, y, power)
    m.copy_(y)
    return True
