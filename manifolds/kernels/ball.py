"""One step of an optimizer in a ball of hyperbolic space: few passes over memory, one of each vector that is read.

A row of a few numbers is short for torch: a product with one number a row takes twice as long as an entrywise one, a
sum over it four times. But all that a step computes lies in the span of x and c, so that a few inner products give the
two numbers a row by which they are to be multiplied. `Engine.mix` and `Engine.travel` are the definitions; what is here
computes the same without derivatives. Points are (B, n), |x| < R, k = 1 / R^2, coordinates c = h v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from .cayley import Size
from .linalg import may_look

Points = Float[Tensor, "B n"]
Numbers = Float[Tensor, "B 1"]
Plain = Callable[[Points, Points, Size], tuple[Points, Points]]

CHUNK = 2**22
"""Bytes of one tensor that a pass is over on CPU: all that a step reads and writes then stays in the last cache."""

FAR = 16 / 9
"""The square of size c / R up to which 1 + 2k<x, z> + k^2 |x|^2 |z|^2 >= 1/4, where it has all its digits."""


def mix(
    x: Points, stored: Points, g: Points, keep: float, add: float, k: float
) -> tuple[Points, Float[Tensor, " B"], Numbers]:
    """(keep M + add L, |L|^2, k |x|^2) with L = g / h = (1 - k |x|^2) g / 2. M is overwritten."""
    square, far = torch.empty_like(x[:, :1]), torch.empty_like(x[:, :1])
    for a, m, b, s, xx in _chunks(x, stored, g, square, far):
        room = torch.empty_like(a)
        torch.mul(_dot(a, a, room), k, out=xx)
        half = xx.mul(-0.5).add_(0.5)
        torch.mul(_dot(b, b, room), half, out=s).mul_(half)
        lifted = torch.mul(b, half, out=room)
        m.lerp_(lifted, add) if keep + add == 1 else m.mul_(keep).add_(lifted, alpha=add)
    return stored, square.squeeze(-1), far


def travel(
    x: Points, c: Points, size: Size, k: float, far: Numbers | None, plain: Plain
) -> tuple[Points, Points] | None:
    """The Mobius sum y = x + z, z = size c / (1 + q), q = (1 + k |size c|^2)^1/2, and gyr[y, -x] c; None where values
    cannot be looked at. c is overwritten. Chunks that `plain` is asked for: with a long step, or one to the boundary.

    far: k |x|^2, where it is known. With b = size / (1 + q), u = k b |c|^2, e = k b <x, c>, w = b u k |x|^2 and
    d = 1 + 2e + w, y = ((1 + 2e + b u) x + (1 - k |x|^2) b c) / d and gyr[y, -x] c = ((1 - w) c + 2 (1 + e) u x) / d.
    """
    if not may_look(x):
        return None
    y, by = torch.empty_like(x), size if isinstance(size, Tensor) and size.dim() else None
    least = 16 * torch.finfo(x.dtype).eps
    for a, m, to, *rows in _chunks(x, c, y, *(t for t in (far, by) if t is not None)):
        xx, s = _dot(a, a, to).mul_(k) if far is None else rows[0], size if by is None else rows[-1]
        cc = _dot(m, m, to)
        q = (cc * s).mul_(s).mul_(k).add_(1).sqrt_()
        b = s / (1 + q)
        u, e = cc.mul_(b).mul_(k), _dot(a, m, to).mul_(b).mul_(k)
        z = b * u
        w = z * xx
        d = torch.add(w, e, alpha=2).add_(1).reciprocal_()
        depth = (1 - xx).mul_(d)
        left = torch.addcmul(depth, depth, z, value=-1)
        if not (q.amax().item() ** 2 <= 1 + FAR and left.amin().item() >= least):  # also where they are NaN
            reached, carried = plain(a, m, s)
            to.copy_(reached)
            m.copy_(carried)
            continue
        torch.mul(a, z.sub_(w).mul_(d).add_(1), out=to).addcmul_(m, depth.mul_(b))
        m.mul_(w.neg_().add_(1).mul_(d)).addcmul_(a, e.add_(1).mul_(u).mul_(d), value=2)
    return y, c


def _dot(a: Points, b: Points, room: Points) -> Numbers:
    """<a, b>: on CPU as a product with ones, which is faster than a sum of short rows. room is overwritten."""
    product = torch.mul(a, b, out=room)
    return product @ a.new_ones(a.shape[-1], 1) if a.is_cpu else product.sum(-1, keepdim=True)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all tensors, so many that they stay in the cache."""
    first = tensors[0]
    rows = max(1, CHUNK // (first.shape[-1] * first.element_size()))
    if not first.is_cpu or rows >= len(first):
        return iter([tensors])
    return zip(*(t.split(rows) for t in tensors), strict=True)
