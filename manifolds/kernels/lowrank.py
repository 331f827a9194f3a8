"""The singular value decomposition of a matrix whose rank is known to be small: products with few columns.

With a sketch Q = orth(A O) for a fixed O of a few more columns than the rank, Z = orth(A^H Q) and Q R = A Z, the matrix
is Q R Z^H, and what is decomposed is R. Each of the three products takes the singular directions nearer by the ratio of
a dropped singular value and a kept one, which for a matrix of that rank is rounding: where O lies badly to A, the
second and third product mend it. `leading` is what steps take on accelerators: the same with more products, with
Cholesky factors of Gram matrices for QR, and without the decomposition of R, which would be waited for.
Source: Halko, Martinsson & Tropp, Finding structure with randomness (2011), algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .linalg import cholesky, may_wait
from .transforms import whole

Points = Inexact[Tensor, "*batch n m"]
Values = Float[Tensor, "*batch k"]
Decomposition = tuple[Tensor, Tensor, Tensor]

MORE = 2  # columns of the sketch: one in a thousand then loses two digits, where without it would be all of float32
LEFT = 16  # eps of |A|, by which sums of n terms differ: with less left, A has no larger rank but for rounding


def svd(a: Points, rank: int | None = None, *, known: bool = False) -> Decomposition:
    """(U, s, V) with A = U diag(s) V^H, as constants; NaN for a matrix with a NaN or an infinity.

    rank: of a matrix of no larger one only so many terms are given, by products. known: whether that is known; else it
        is looked at, where values may be waited for, and all terms of a larger one are given.
    """
    a = a.detach()
    if rank is not None and 2 * (rank + MORE) <= min(a.shape[-2:]) and (known or may_wait(a)):
        u, s, v = few = _of_few(a, rank)
        if known:
            return few
        most = torch.where(s[..., :1] == 0, 1, s[..., :1])  # whose square may overflow, or be lost
        left = (a - (u * s.unsqueeze(-2)) @ v.mH) / most.unsqueeze(-1)
        rest = torch.linalg.vector_norm(left.flatten(-2), dim=-1)
        least = LEFT * torch.finfo(a.dtype).eps * torch.linalg.vector_norm(s / most, dim=-1)
        if bool(whole(rest <= least).all()):
            return few
    return _whole(a)


def leading(a: Points, rank: int, products: int) -> tuple[Points, Points]:
    """(U, V), orthonormal bases of the leading singular subspaces, without waiting and without derivatives: as near as
    the product of so many ratios s_(r+1) / s_r is; any other rank r above it. NaN where A has a lower rank."""
    v, has = _sketch(a, rank), a.device.type != "mps"  # which has no float64
    wide = torch.promote_types(a.dtype, torch.float64) if has else a.dtype
    times = 3 if a.dtype == wide else 2  # the digits that float64 has more do for the third
    for left in range(products, 0, -1):
        u, v = v, _by_cholesky((a @ v).to(wide), 1 if left > 2 else times).to(a.dtype)
        a = a.mH
    return (v, u) if products % 2 else (u, v)


def _by_cholesky(y: Points, times: int) -> Points:
    """A basis of the range, orthonormal after more than one time; else it is at least not near to a lower rank.

    Source: Fukaya et al., Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices (2020).
    """
    for k in range(times):
        gram = y.mH @ y
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        if k == 0:  # what rounding may take from a factor that there is
            diagonal.add_(diagonal.sum(-1, keepdim=True), alpha=torch.finfo(y.dtype).eps * y.shape[-1])
        factor = cholesky(gram) if k else torch.linalg.cholesky_ex(gram).L
        y = torch.linalg.solve_triangular(factor.mH, y, upper=True, left=False)
    return y


def _whole(a: Points) -> Decomposition:
    """In float64 on accelerators that have it: one gave a matrix of rank 3 in float32 terms that were off by more than
    its rounding."""
    sound = a.isfinite().all(-1).all(-1)[..., None, None]
    wide = a.dtype if a.device.type in ("cpu", "mps") else torch.promote_types(a.dtype, torch.float64)
    u, s, vh = torch.linalg.svd(torch.where(sound, a, 0).to(wide), full_matrices=False)
    return u.to(a.dtype), torch.where(sound.squeeze(-1), s, torch.nan).to(a.real.dtype), vh.mH.to(a.dtype)


def _of_few(a: Points, rank: int) -> Decomposition:
    q = torch.linalg.qr(a @ _sketch(a, rank + MORE)).Q
    z = torch.linalg.qr(a.mH @ q).Q
    q, r = torch.linalg.qr(a @ z)
    u, s, v = _whole(r)  # which has the NaN of A
    return q @ u[..., :rank], s[..., :rank], z @ v[..., :rank]


def _sketch(a: Points, columns: int) -> Inexact[Tensor, "m k"]:
    """Numbers from -1 to 1 without pattern, the same for all matrices of this size."""
    m = a.shape[-1]
    index = torch.arange(1, m * columns + 1, dtype=torch.int32, device=a.device) * 1664525 + 1013904223
    index = index * (index ^ (index >> 15)) * 1664525 + 1013904223  # modulo 2^32
    return (index.to(a.real) * 2.0**-31).reshape(m, columns).to(a.dtype)
