"""The logarithm of orthogonal and unitary matrices: the shortest skew Omega with exp(Omega) = Q.

In closed form for 2 x 2 and 3 x 3 real matrices. Else by three Hermitian eigenproblems, exact to rounding for every
angle up to pi: cos(theta), the eigenvalues of sym(Q), are flat at 0 and at pi, so that they only cut the space in two
where they leave the widest gap; on each part the angles are those of a tangent of half of them, which is not flat.
Where angles are pi, and planes are therefore not determined, some are taken: every choice is shortest.
Source: Higham, Functions of Matrices (2008), chapter 11; Gawlik & Leok, Computing the Frechet derivative of the polar
decomposition (2017), on planes as a polar factor; Shepperd, Quaternion from rotation matrix (1978).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from .exponential import exp_move
from .iterations import ORDER
from .linalg import eye_like, inverse_sqrt, may_wait, newton_schulz, skew, sym
from .transforms import is_recorded, whole

Square = Inexact[Tensor, "*batch n n"]
Values = Float[Tensor, "*batch n"]


def logarithm(q: Square, *, special: bool = False) -> Square:
    """The shortest skew Omega with exp(Omega) = Q; special: among those of trace 0, for det Q = 1.

    NaN where a real Q has determinant -1, as no path leads there from the identity, and where Q has a NaN.
    Differentiable, in every mode up to ORDER, where the largest angle between two eigenvalues is below 2 pi; there
    derivatives leave out the directions in which Omega jumps.
    """
    n = q.shape[-1]
    if n <= 3 and not q.is_complex():
        omega = q - q if n == 1 else _log2(q) if n == 2 else _log3(q)
        return omega if special else torch.where(_is_reflection(q), torch.nan, omega)
    lost = ~q.detach().isfinite().all(-1).all(-1)[..., None, None]
    q = torch.where(lost, eye_like(q), q)
    q = q @ inverse_sqrt(sym(q.mH @ q))
    fixed = q.detach()
    omega = _complex(fixed) if q.is_complex() else _real(fixed)
    if special and q.is_complex():
        omega = _traceless(omega)
    lost = lost | omega.isnan()
    if is_recorded(q):
        omega = _differentiable(q, torch.where(lost, 0, omega), special)
    return torch.where(lost, torch.nan, omega)


def _log2(q: Square) -> Square:
    """The angle of a plane rotation is atan2(sin, cos)."""
    t = torch.atan2(q[..., 1, 0] - q[..., 0, 1], q[..., 0, 0] + q[..., 1, 1])
    return torch.stack([torch.zeros_like(t), -t, t, torch.zeros_like(t)], -1).unflatten(-1, (2, 2))  # type: ignore[no-any-return]


def _log3(q: Square) -> Square:
    """t axis with t = 2 atan2(|(x, y, z)|, w), of any multiple (w, x, y, z) of (cos(t/2), sin(t/2) axis)."""
    a, b, c, d, e, f, g, h, i = q.flatten(-2).unbind(-1)
    wx, wy, wz, xy, xz, yz = h - f, c - g, d - b, b + d, c + g, f + h
    # row k is 4 q_k (w, x, y, z): the one whose q_k is largest loses no digits
    rows = (
        *(1 + a + e + i, wx, wy, wz),
        *(wx, 1 + a - e - i, xy, xz),
        *(wy, xy, 1 - a + e - i, yz),
        *(wz, xz, yz, 1 - a - e + i),
    )
    table = torch.stack(rows, -1).unflatten(-1, (4, 4))
    largest = table.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    w, *axis = table.take_along_dim(largest[..., None, None], -2).squeeze(-2).unbind(-1)
    squares = axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2]
    # t / sin(t/2) is smooth in the square of the sine, but sqrt is not at 0: below 1e-3 its series there
    small = squares < 1e-6 * (w * w)
    r = squares / torch.where(small, w, 1).square()
    sine = torch.where(small, 1, squares).sqrt()
    far = 2 * torch.atan2(torch.where(w < 0, -sine, sine), w.abs()) / sine
    factor = torch.where(small, (2 - r * (2 / 3 - r * (2 / 5))) / torch.where(small, w, 1), far)
    x, y, z = (factor * a for a in axis)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))  # type: ignore[no-any-return]


def _is_reflection(q: Square) -> Bool[Tensor, "*batch 1 1"]:
    """det Q < 0, of matrices up to 3 x 3."""
    n, q = q.shape[-1], q.detach()
    if n == 1:
        det = q[..., 0, 0]
    elif n == 2:
        det = q[..., 0, 0] * q[..., 1, 1] - q[..., 0, 1] * q[..., 1, 0]
    else:
        det = (q[..., 0, :] * torch.linalg.cross(q[..., 1, :], q[..., 2, :])).sum(-1)
    return (det < 0)[..., None, None]


def _parts(q: Square) -> tuple[Square, Square, Square, Bool[Tensor, "*batch n"]]:
    """Z, A, B, far: sym(Q) = Z diag(cos) Z^H, far where cos is below its widest gap, and in this basis the skew A and
    B with eigenvalues i tan(theta / 2) on the near part and i tan((pi - theta) / 2) on the far one, 0 elsewhere."""
    c, z = torch.linalg.eigh(sym(q))
    end = torch.full_like(c[..., :1], 0.8)
    edges = torch.cat([-end, c.clamp(-0.8, 0.8), end], -1)
    place = edges.diff().argmax(-1, keepdim=True)
    cut = (edges.take_along_dim(place, -1) + edges.take_along_dim(place + 1, -1)) / 2
    far = c < cut
    s = z.mH @ skew(q) @ z
    # on the parts sin(theta) is one number times the square root of those of both sides, which are equal
    a = (~far / (1 + c).abs().clamp_min(0.1).sqrt()).to(s)
    b = (far / (1 - c).abs().clamp_min(0.1).sqrt()).to(s)
    return z, a.unsqueeze(-1) * s * a.unsqueeze(-2), b.unsqueeze(-1) * s * b.unsqueeze(-2), far


def _arctangent(a: Square) -> Square:
    """2 atan(A) for skew A: A times an even function of it, which has no corner at 0."""
    square, w = torch.linalg.eigh(a.mH @ a)
    t = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    f = torch.where(t < 1e-4, 2 - 2 * square / 3, 2 * t.atan() / t)
    return a @ (w * f.to(w).unsqueeze(-2)) @ w.mH  # type: ignore[no-any-return]


def _real(q: Square) -> Square:
    z, a, b, far = _parts(q)
    omega = _arctangent(a)
    if not may_wait(q) or bool(whole(far).any()):
        omega = omega + math.pi * _planes(b, far) - _arctangent(b)
        odd = far.sum(-1) % 2 == 1
        omega = torch.where(odd[..., None, None], torch.nan, omega)
    return skew(z @ omega @ z.mH)


def _planes(b: Square, far: Bool[Tensor, "*batch n"]) -> Square:
    """The skew J with J^T J the projection on the far part that commutes with B: its polar factor; where B is no more
    than rounding, any."""
    n = b.shape[-1]
    both = far.unsqueeze(-1) & far.unsqueeze(-2)
    rest = torch.diag_embed((~far).to(b))
    u, _, vh = torch.linalg.svd(b + rest)
    j = skew(torch.where(both, u @ vh, 0))
    squares, w = torch.linalg.eigh(j.mH @ j + 4 * rest)  # near 0 where B is rounding, 1 where it is not, 4 on the rest
    index = torch.arange(n, device=b.device)
    lost = index < 2 * (((squares < 0.5).sum(-1, keepdim=True) + 1) // 2)
    kept = ~lost & (squares < 2)
    found = j @ (w * (kept / squares.clamp_min(0.1).sqrt()).to(w).unsqueeze(-2)) @ w.mT
    pairs = torch.diag_embed((index[: n - 1] % 2 == 0).to(b), 1)
    pairs = torch.where(lost.unsqueeze(-1) & lost.unsqueeze(-2), pairs - pairs.mT, 0)
    return newton_schulz(skew(found + w @ pairs @ w.mT))


def _complex(q: Square) -> Square:
    z, a, b, far = _parts(q)
    omega = _arctangent(a)
    if not may_wait(q) or bool(whole(far).any()):
        t, w = torch.linalg.eigh(sym(-1j * b) + 9 * torch.diag_embed((~far).to(b)))
        angles = torch.where(t > 6, 0, math.pi * torch.where(t < 0, -torch.ones_like(t), 1) - 2 * t.atan())
        omega = omega + 1j * ((w * angles.to(w).unsqueeze(-2)) @ w.mH)
    return skew(z @ omega @ z.mH)


def _traceless(omega: Square) -> Square:
    """The shortest of trace 0 with the same exponential up to a phase: the largest angles are turned back by 2 pi."""
    angles, z = torch.linalg.eigh(sym(-1j * omega))
    turns = (angles.sum(-1, keepdim=True) / (2 * math.pi)).round()
    order = torch.arange(angles.shape[-1], device=angles.device)
    back = (order >= angles.shape[-1] - turns).to(angles) - (order < -turns).to(angles)
    angles = angles - 2 * math.pi * back
    angles = angles - angles.mean(-1, keepdim=True)
    return skew(1j * ((z * angles.to(z).unsqueeze(-2)) @ z.mH))


def _differentiable(q: Square, omega: Square, special: bool) -> Square:
    """Omega as a function of Q: Newton steps, whose derivative of exp is kept, raise the order of what is right by 1.

    d exp(Omega) = exp(Omega) (1 - e^-ad)/ad dOmega, in the basis of eigenvectors a number for each pair of them.
    """
    complex_ = omega if omega.is_complex() else torch.complex(omega, torch.zeros_like(omega))
    angles, z = torch.linalg.eigh(sym(-1j * complex_))
    half = (angles.unsqueeze(-1) - angles.unsqueeze(-2)) / 2
    jumps = half.abs() > math.pi - 1e-6
    over = torch.where(half.abs() < 1e-4, 1 + half**2 / 6, half / torch.where(half == 0, 1, half.sin()))
    factor = torch.polar(torch.where(jumps, 0, over).abs(), half)
    for _ in range(ORDER):
        rest = skew(exp_move(eye_like(q).expand(q.shape), -omega) @ q)
        step = z @ (factor * (z.mH @ rest.to(z) @ z)) @ z.mH
        step = step if q.is_complex() else step.real
        if special and q.is_complex():
            step = step - step.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * eye_like(step)
        omega = skew(omega + step)
    return omega
