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

SMALLEST = 32
"""Up to this size LU costs no more than the calls of its halves."""

REACH = 32.0
"""Up to this norm of A rounding is that of LU with pivots; it grows with |A|^2, and shows from about 100 on."""


def resolvent_by_halves(a: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """(I - A/2)^-1 for skew A with |A| <= REACH."""
    m = a.reshape(-1, *a.shape[-2:]) * -0.5
    m.diagonal(dim1=-2, dim2=-1).add_(1)
    return _inverse(m).view(a.shape)


def _inverse(m: Inexact[Tensor, "B n n"]) -> Inexact[Tensor, "B n n"]:
    """M^-1."""
    n = m.shape[-1]
    if n <= SMALLEST:
        return torch.linalg.inv_ex(m)[0]  # type: ignore[no-any-return]
    k = n // 2
    e, b, c = _inverse(m[:, :k, :k]), m[:, :k, k:], m[:, k:, :k]
    eb, ce = torch.bmm(e, b), torch.bmm(c, e)
    t = _inverse(torch.baddbmm(m[:, k:, k:], c, eb, alpha=-1))
    ebt = torch.bmm(eb, t)
    p = torch.empty_like(m, memory_format=torch.contiguous_format)
    p[:, :k, :k] = e.baddbmm_(ebt, ce)
    torch.neg(ebt, out=p[:, :k, k:])
    torch.neg(torch.bmm(t, ce), out=p[:, k:, :k])
    p[:, k:, k:] = t
    return p
