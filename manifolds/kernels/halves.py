"""(I - A/2)^-1 for skew A by halves: products do the work, which LU leaves to triangular solves at half their pace.

With M = [[M1, B], [C, M2]], E = M1^-1 and T = (M2 - C E B)^-1 the inverse is [[E + E B T C E, -E B T], [-T C E, T]].
Nothing is pivoted: M = I - A/2 has the Hermitian part I, that of M2 - C E B is no less, for C = -B^H, and so on down.
But M2 - C E B may be as large as |A|^2, and is rounded then.
Source: Golub & Van Loan, Matrix Computations (2013), section 4.2.2 on unsymmetric positive definite systems.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import LU_BATCH

SMALLEST, SMALLEST_SHARED = 32, 128
"""Up to this size LU costs no more than the calls of its halves, on one thread and on several: these wait for each
other in each call, and where another process has a core they wait long, so that there should be a few dozen, as in LU.
"""

REACH = 32.0
"""Up to this norm of A rounding is that of LU with pivots; it grows with |A|^2, and shows from about 100 on."""


def smallest() -> int:
    """The size up to which halves are not halved again."""
    return SMALLEST if torch.get_num_threads() == 1 else SMALLEST_SHARED


def resolvent_by_halves(a: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """(I - A/2)^-1 for skew A with |A| <= REACH."""
    m = a.reshape(-1, *a.shape[-2:]) * -0.5
    m.diagonal(dim1=-2, dim2=-1).add_(1)
    _invert(m, smallest())
    return m.view(a.shape)


def _invert(m: Inexact[Tensor, "B n n"], smallest: int) -> None:
    """Put M^-1 in the place of M: fresh memory costs as much as arithmetic on it."""
    n = m.shape[-1]
    if n <= smallest:
        for some in m.unbind() if n >= LU_BATCH else (m,):
            some.copy_(torch.linalg.inv_ex(some)[0])
        return
    k = n // 2
    e, b, c, t = m[:, :k, :k], m[:, :k, k:], m[:, k:, :k], m[:, k:, k:]
    _invert(e, smallest)
    eb, ce = torch.bmm(e, b), torch.bmm(c, e)
    t.baddbmm_(c, eb, alpha=-1)
    _invert(t, smallest)
    ebt = torch.bmm(eb, t)
    e.baddbmm_(ebt, ce)
    torch.neg(ebt, out=b)
    torch.neg(torch.bmm(t, ce, out=eb.view(len(m), n - k, k)), out=c)
