"""Batches of points: the ambient metric, lengths with derivatives at 0, and the batch that tensors have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .kernels.arcs import root as root


class Pointed(Protocol):
    """What has points of so many axes."""

    @property
    def ndim(self) -> int: ...


def inner(u: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."], ndim: int) -> Float[Tensor, "..."]:
    """Re<u, v> = Re sum(conj(u) v) over the last ndim axes."""
    product = (u.conj() * v).real if u.is_complex() else u * v
    return product.sum(tuple(range(-ndim, 0))) if ndim else product


def length(a: Inexact[Tensor, "..."], ndim: int) -> Float[Tensor, "..."]:
    """|a| over the last ndim axes, 0 with derivative 0 at 0; no square under- or overflows."""
    axes = tuple(range(-ndim, 0))
    largest = a.detach().abs()
    largest = largest.amax(axes, keepdim=True) if ndim else largest
    scale = torch.where((largest == 0) | largest.isinf(), 1, largest)
    return root(inner(a / scale, a / scale, ndim)) * (scale.squeeze(axes) if ndim else scale)


def probing(device: torch.device | str = "cpu") -> torch.Generator:
    """For random directions in which a function is asked something: of a seed that nobody takes.

    Of seed 0 the first direction would be the very point that `manual_seed(0)` gave, and what is left of it in the
    tangent space of a sphere nothing.
    """
    return torch.Generator(device).manual_seed(0xDEECE66D)


def broadcast(manifold: Pointed, *tensors: Inexact[Tensor, "..."]) -> tuple[Tensor, ...]:
    """The tensors with the batch axes of all of them. ValueError where their points have different shapes, or no axes
    of a point."""
    shape = tensors[0].shape
    for t in tensors:
        if t.shape != shape:
            return _broadcast(manifold, tensors)
    check_axes(manifold, shape)
    return tensors


def check_axes(manifold: Pointed, shape: Sequence[int]) -> None:
    """ValueError where a tensor of this shape has fewer axes than a point."""
    if len(shape) < manifold.ndim:
        raise ValueError(
            f"points and tangent vectors of {manifold} have {manifold.ndim} axes, and batch axes before them; got "
            f"shape {tuple(shape)}. Give the tensor the axes of a point, as by reshape or unsqueeze."
        )


def per_point(s: Float[Tensor, "..."], ndim: int) -> Float[Tensor, "..."]:
    """Numbers that belong one to a point, shaped to multiply points of ndim axes."""
    return s[(..., *(None,) * ndim)]


def check_ndim(name: object, shape: Sequence[int], ndim: int) -> tuple[int, tuple[int, ...]]:
    """(number of points, shape of one point) of a tensor of this shape; ValueError if it has too few axes."""
    shape = tuple(shape)
    cut = len(shape) - ndim
    if cut < 0 or 0 in shape[cut:]:
        raise ValueError(
            f"a point of {name} has {ndim} axes of size 1 or more; got shape {shape}. "
            f"Reshape a tensor, or describe it with a BlockSpec pattern; in sizes, as of random, write every axis."
        )
    return math.prod(shape[:cut]), shape[cut:]


def sizes(shape: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """The shape that was given as numbers or as one tuple of them. TypeError for anything else."""
    one = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not all(hasattr(size, "__index__") for size in one):
        raise TypeError(f"the shape of random points is written as random(4, 3) or random((4, 3)); got {shape}.")
    return tuple(one)


def check_map(manifold: Pointed, name: str, x: Tensor, y: Tensor) -> Tensor:
    """y; ValueError where it, the result of the manifold's map of this name, is not of the shape and dtype of x."""
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        got = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{manifold}.{name} of a tensor of shape {tuple(x.shape)} of {x.dtype} is a tensor of the same shape and "
            f"dtype; got {got}. Mend {type(manifold).__name__}.{name}, and see manifolds.testing.check_manifold."
        )
    return y


def _broadcast(manifold: Pointed, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    ndim = manifold.ndim
    shapes = [tuple(t.shape) for t in tensors]
    points = {s[len(s) - ndim :] for s in shapes if len(s) >= ndim}
    if len(points) > 1 or min(map(len, shapes)) < ndim:
        raise ValueError(
            f"points and tangent vectors of {manifold} have one shape, their last {ndim} axes, and batch axes before "
            f"it, which broadcast; got shapes {', '.join(map(str, shapes))}. Give every tensor the axes of a point."
        )
    try:
        batch = torch.broadcast_shapes(*(s[: len(s) - ndim] for s in shapes))
    except RuntimeError as error:
        raise ValueError(
            f"the batch axes of points and tangent vectors of {manifold}, before the last {ndim}, broadcast; got "
            f"shapes {', '.join(map(str, shapes))}. Give them equal lengths, or length 1."
        ) from error
    return tuple(t.expand(*batch, *t.shape[t.dim() - ndim :]) for t in tensors)


class NotRealError(ValueError):
    """Complex numbers on a set that has none: no other value of the dtype is a point either."""


def check_real(manifold: Pointed, dtype: torch.dtype | None) -> None:
    """NotRealError where this is the dtype of complex numbers, on a set that has none."""
    if dtype is not None and dtype.is_complex:
        raise NotRealError(
            f"points of {manifold} are real; got dtype {dtype}. Give it the real part, or another manifold."
        )
