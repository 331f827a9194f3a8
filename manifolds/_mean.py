"""The weighted mean of points along geodesics."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .base import GeodesicManifold, per_point

STEPS = 256


def karcher(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], weights: Float[Tensor, "..."] | None
) -> Inexact[Tensor, "..."]:
    """argmin over y of sum_i w_i distance(x_i, y)^2 by y <- exp(y, sum_i w_i log(y, x_i)), from the first point of
    positive weight; see `GeodesicManifold.mean`."""
    axis = x.dim() - manifold.ndim - 1
    w = shares(manifold, x, weights)
    first = (w > 0).to(torch.uint8).argmax(axis, keepdim=True)
    y = x.take_along_dim(first.expand(*x.shape[:axis], 1, *x.shape[axis + 1 :]), axis)
    floor, last = 8 * torch.finfo(x.dtype).eps, float("inf")
    for _ in range(STEPS):
        v = (w * manifold.log(y, x)).sum(axis, keepdim=True)
        y = manifold.exp(y, v)
        size = float(torch.linalg.vector_norm(v.flatten(axis), dim=-1).max()) if v.numel() else 0.0
        scale = max(1.0, float(torch.linalg.vector_norm(y.flatten(axis), dim=-1).max())) if y.numel() else 1.0
        # within rounding, or as near to it as the digits of log let it come
        if size <= floor * scale or (size <= 1e3 * floor * scale and size >= last / 2):
            return y.squeeze(axis)
        if not math.isfinite(size):  # nor will any later one be
            break
        last = size
    raise RuntimeError(
        f"the mean of {x.shape[axis]} points of {manifold} did not settle in {STEPS} steps, or met what is not finite: "
        f"the last step had length {size:.1e}. Points that are not within one convex ball may have several means; "
        f"begin at one of them with minimize over the sum of squared distances."
    )


def shares(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], weights: Float[Tensor, "..."] | None
) -> Float[Tensor, "..."]:
    """Weights of sum 1, shaped to multiply the points (*batch, N, *point). ValueError where there are none."""
    axis = x.dim() - manifold.ndim - 1
    if axis < 0 or x.shape[axis] == 0:
        raise ValueError(
            f"the mean on {manifold} is over the last batch axis, (*batch, N, *point) with points of {manifold.ndim} "
            f"axes; got shape {tuple(x.shape)}. Stack the points first."
        )
    shape = x.shape[: axis + 1]
    if weights is None:
        return per_point(x.real.new_ones(shape) / shape[-1], manifold.ndim)
    try:
        w = weights.to(x.real).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"weights of a mean on {manifold} are one number for each of the points {tuple(shape)}, or for the last of "
            f"these axes; got shape {tuple(weights.shape)}."
        ) from None
    total = w.sum(-1, keepdim=True)
    if not bool((w >= 0).all()) or not bool((total > 0).all()):
        raise ValueError(
            f"weights of a mean on {manifold} are nonnegative with a positive sum; of shape {tuple(w.shape)}, "
            f"{int((~(w >= 0)).sum())} are negative or NaN, and {int((~(total > 0)).sum())} sums are not positive. "
            f"Clamp them, or leave a set of points without any weight out."
        )
    return per_point(w / total, manifold.ndim)
