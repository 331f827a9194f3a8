"""Vectors of norm r along some axes of a tensor: what spheres and products of spheres have in common.

axes are those of one vector, negative; numbers keep them with length 1. In the formulas <u, v> is the real part.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .linalg import may_wait
from .others import OTHERS
from .transforms import whole

Axes = tuple[int, ...]
Vectors = Inexact[Tensor, "..."]
Numbers = Float[Tensor, "..."]


def root(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """sqrt(s); 0 with derivative 0 where s is 0, or less by rounding."""
    zero = s <= 0
    return torch.where(zero, 0 * s, torch.where(zero, 1, s).sqrt())


def dot(u: Vectors, v: Vectors, axes: Axes) -> Numbers:
    """<u, v>."""
    product = (u.conj() * v).real if u.is_complex() else u * v
    return product.sum(axes, keepdim=True)


def size(a: Vectors, axes: Axes) -> Numbers:
    """|a|, 0 with derivative 0 at 0; no square under- or overflows."""
    largest = a.detach().abs().amax(axes, keepdim=True)
    scale = torch.where((largest == 0) | largest.isinf(), 1, largest)
    return root(dot(a / scale, a / scale, axes)) * scale


def project(x: Vectors, a: Vectors, axes: Axes, r: float) -> Vectors:
    """a - <x, a> x / r^2."""
    s = dot(x, a, axes)
    return a - (s if r == 1 else s / r**2) * x


def normalized(a: Vectors, axes: Axes, r: float) -> Vectors:
    """r a / |a|; NaN at 0."""
    a = a / a.detach().abs().amax(axes, keepdim=True)  # the square of a tiny or huge vector would under- or overflow
    s = dot(a, a, axes).sqrt()
    return a / (s if r == 1 else s / r)


def nearest(name: object, a: Vectors, axes: Axes, r: float) -> Vectors:
    """r a / |a|. Raises ValueError for a zero vector; NaN in a graph that is recorded."""
    if may_wait(a) and bool(whole(a.detach().abs().amax(axes) == 0).any()):
        raise ValueError(
            f"a zero vector has no nearest point on {name}; got shape {tuple(a.shape)} with a zero vector along "
            f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}. {OTHERS}"
        )
    return normalized(a, axes, r)


def exp(x: Vectors, v: Vectors, axes: Axes, r: float) -> Vectors:
    """cos(t) x + sin(t) v / t with t = |v| / r."""
    squared = dot(v, v, axes)
    squared = squared if r == 1 else squared / r**2
    # cos t and sin t / t are smooth in t^2, but sqrt is not at 0: below 1e-4 use their series there
    small = squared < 1e-4
    t = torch.where(small, torch.ones_like(squared), squared).sqrt()
    cos = torch.where(small, 1 - squared / 2 + squared**2 / 24 - squared**3 / 720, t.cos())
    sinc = torch.where(small, 1 - squared / 6 + squared**2 / 120 - squared**3 / 5040, t.sin() / t)
    return cos * x + sinc * v


def log(x: Vectors, y: Vectors, axes: Axes, r: float) -> Vectors:
    """r t w / |w| with w = project(x, y) and t = atan2(|w| / r, <x, y> / r^2), the angle between x and y.

    At y = -x, where every direction is shortest, one of length pi r, and NaN for vectors of one real entry. Smooth at
    y = x, twice too.
    """
    c = dot(x, y, axes)
    c = c if r == 1 else c / r**2
    # of y and y -+ x, which have one projection, the shortest loses no digits
    w = project(x, torch.where(c < 0, y + x, y - x), axes, r)
    # atan(s) / s is smooth in s^2 = |w / r|^2 / c^2, but sqrt is not at 0: for small angles its series
    front = torch.where(c > 0, c, 1)
    s2 = dot(w, w, axes) / (r * front) ** 2
    small = (c > 0) & (s2 < 1e-4)
    series = (1 - s2 / 3 + s2**2 / 5 - s2**3 / 7) / front
    opposite = (c < 0) & (w == 0).all(axes, keepdim=True)
    w_far = torch.where(small | opposite, _tangent(x, axes, r), w)
    s = size(w_far, axes)
    t = torch.where(opposite, math.pi, torch.atan2(s / r, c))
    v = torch.where(small, series * w, r * t * (w_far / s))
    alone = math.prod(x.shape[axis] for axis in axes) == 1 and not x.is_complex()
    return torch.where(opposite, torch.nan, v) if alone else v


def angle(x: Vectors, y: Vectors, axes: Axes) -> Numbers:
    """2 atan2(|x - y|, |x + y|): exact near 0 and pi, where acos loses half its digits; with derivative 0 there."""
    return 2 * torch.atan2(size(x - y, axes), size(x + y, axes))


def _tangent(x: Vectors, axes: Axes, r: float) -> Vectors:
    """A constant unit tangent vector at x; for vectors of one real entry, where there is none, x itself."""
    x = x.detach()
    if x.is_complex():
        return 1j * x / r
    shape, last = [x.shape[axis] for axis in axes], tuple(range(-len(axes), 0))
    if math.prod(shape) == 1:
        return x
    entries = x.abs().movedim(axes, last).flatten(-len(axes))
    place = torch.arange(entries.shape[-1], device=x.device) == entries.argmin(-1, keepdim=True)
    direction = place.to(x.dtype).unflatten(-1, shape).movedim(last, axes)
    return normalized(project(x, direction, axes, r), axes, 1)
