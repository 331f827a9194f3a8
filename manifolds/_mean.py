"""The weighted mean of points along geodesics."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .base import GeodesicManifold, per_point
from .engine import engine, settled
from .kernels.iterations import ORDER
from .kernels.linalg import may_wait
from .kernels.transforms import is_recorded, whole

STEPS = 512


Log = Callable[[Tensor, Tensor], Tensor]


def karcher(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], shares: Float[Tensor, "..."], log: Log | None = None
) -> Inexact[Tensor, "..."]:
    """argmin over y of f(y) = sum_i w_i distance(x_i, y)^2 / 2 by y <- exp(y, t v), v = sum_i w_i log(y, x_i), from the
    first point of positive weight; see `GeodesicManifold.mean`. log: that of the manifold, if it asks less of points.

    Where curvature is not negative f comes down with t = 1, the first one. After a step t is what the change of v, as
    seen from the new point, says of the second derivative of f along it; where f does not come down, half of it.
    Source: Iannazzo & Porcelli, The Riemannian Barzilai-Borwein method with nonmonotone line search and the matrix
    geometric mean computation (2018).
    """
    with torch.no_grad():
        y = _found(manifold, x.detach(), shares.detach(), log or manifold.log)
    return attached(manifold, y, x, shares, log or manifold.log).squeeze(x.dim() - manifold.ndim - 1)


def attached(
    manifold: GeodesicManifold,
    y: Inexact[Tensor, "..."],
    x: Inexact[Tensor, "..."],
    shares: Float[Tensor, "..."],
    log: Log,
) -> Inexact[Tensor, "..."]:
    """The mean y, with an axis of one for that of x, as a function of points and weights: differentiable up to ORDER.

    Newton steps for v(exp(y, c)) = 0 from the constant c = 0, with the matrix of derivatives there, each right to one
    order more. Steps of a descent would have those of the way, which from a mean itself is none.
    """
    if not (is_recorded(x) or is_recorded(shares)):
        return y
    axis, y = x.dim() - manifold.ndim - 1, y.detach()

    def end(c: Tensor, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        c = c.reshape(*y.shape, *(2,) * y.is_complex())
        z = manifold.exp(y, manifold.project(y, torch.view_as_complex(c) if y.is_complex() else c))
        return z, _entries((shares * log(z, x)).sum(axis, keepdim=True), axis)

    with torch.enable_grad():
        c = torch.zeros_like(_entries(y, axis), requires_grad=True)
        pulls = end(c, x.detach(), shares.detach())[1].unbind(-1)
        rows = [torch.autograd.grad(pull.sum(), c, retain_graph=True)[0] for pull in pulls]
    inverse = torch.linalg.pinv(torch.stack(rows, -2), rtol=torch.finfo(x.dtype).eps ** 0.5)
    c = c.detach()
    for _ in range(ORDER):
        step = (inverse @ end(c, x, shares)[1].unsqueeze(-1)).squeeze(-1)
        c = c - (step - step.detach())  # of which the value is rounding
    z = end(c, x, shares)[0]
    return y + (z - z.detach())


def _entries(a: Inexact[Tensor, "..."], axis: int) -> Float[Tensor, "*batch d"]:
    """The real numbers of each point."""
    return (torch.view_as_real(a.resolve_conj()) if a.is_complex() else a).flatten(axis)


def _found(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], shares: Float[Tensor, "..."], log: Log
) -> Inexact[Tensor, "..."]:
    axis, eps = x.dim() - manifold.ndim - 1, torch.finfo(x.dtype).eps
    first = (shares > 0).to(torch.uint8).argmax(axis, keepdim=True)
    y = x.take_along_dim(first.expand(*x.shape[:axis], 1, *x.shape[axis + 1 :]), axis)

    def look(y: Tensor) -> tuple[Tensor, Tensor]:
        logs = log(y, x)
        squares = per_point(manifold.inner(y, logs, logs), manifold.ndim)
        return (shares * logs).sum(axis, keepdim=True), (shares * squares).detach().sum(axis, keepdim=True)

    v, f = look(y)
    t, least, idle = torch.ones_like(f), math.inf, 0
    for _ in range(STEPS):
        size = float(torch.linalg.vector_norm(v.flatten(axis), dim=-1).max()) if v.numel() else 0.0
        scale = max(1.0, float(torch.linalg.vector_norm(y.flatten(axis), dim=-1).max())) if y.numel() else 1.0
        least, idle = (size, 0) if size < least / 2 else (least, idle + 1)
        # within rounding, or as near to it as the digits of log let it come
        if size <= 8 * eps * scale or (size <= 8e3 * eps * scale and idle >= 3):
            return _polished(manifold, manifold.exp(y, v))
        if not math.isfinite(size):  # nor will any later one be
            break
        # polished, else what rounding leaves across the set, and log magnifies, would grow step by step
        there = _polished(manifold, manifold.exp(y, t * v))
        its, lower = look(there)
        # what f is off by may hide a last step down, which v still shows
        smaller, near = (torch.linalg.vector_norm(a.flatten(axis), dim=-1) for a in (its, v)), f * (1 + eps**0.5)
        less = per_point(torch.lt(*smaller).unsqueeze(axis), manifold.ndim)
        down = (lower <= f * (1 + 64 * eps)) | ((lower <= near) & less)
        next_ = torch.where(down, _step(manifold, there, t, manifold.transport(y, there, v), its), t / 2)
        y, v, f, t = torch.where(down, there, y), torch.where(down, its, v), torch.where(down, lower, f), next_
    raise RuntimeError(
        f"the mean of {x.shape[axis]} points of {manifold} did not settle in {STEPS} steps, or met what is not finite: "
        f"the last step had length {size:.1e}. Points that are not within one convex ball may have several means; "
        f"begin at one of them with minimize over the sum of squared distances."
    )


def _step(
    manifold: GeodesicManifold,
    y: Inexact[Tensor, "..."],
    t: Float[Tensor, "..."],
    before: Inexact[Tensor, "..."],
    after: Inexact[Tensor, "..."],
) -> Float[Tensor, "..."]:
    """<s, s> / <s, d> for the step s = t before and the change of the gradient d = before - after, from t / 4 to 4."""
    along, turned = (per_point(manifold.inner(y, before, w).detach(), manifold.ndim) for w in (before, before - after))
    bent = (turned > 0) & (along > 0)
    return torch.where(bent, (t * along / torch.where(bent, turned, 1)).clamp(max=4), 1.0).maximum(t / 4)


def _polished(manifold: GeodesicManifold, y: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
    """y without the rounding that is off the set: by `polish`, or as the nearest point where that does nothing."""
    all_, parts = engine(manifold), []
    for factor, part in all_.split(y):
        own = engine(factor)
        parts.append(own.polish(part) if own.polishes else settled(factor, part))
    return all_.join(parts, y.shape)


def weighted(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], weights: Float[Tensor, "..."] | None
) -> tuple[Inexact[Tensor, "..."], Float[Tensor, "..."]]:
    """Points (*batch, N, *point), those without weight replaced by one that has some, and weights of sum 1, shaped to
    multiply points. ValueError where there are none, and where a point of some weight is not finite."""
    axis = x.dim() - manifold.ndim - 1
    if axis < 0 or x.shape[axis] == 0:
        raise ValueError(
            f"the mean on {manifold} is over the last batch axis, (*batch, N, *point) with points of {manifold.ndim} "
            f"axes; got shape {tuple(x.shape)}. Stack the points first."
        )
    shape = x.shape[: axis + 1]
    if weights is None:
        shares = per_point(x.real.new_ones(shape) / shape[-1], manifold.ndim)
    else:
        shares = per_point(_normalized(manifold, x, weights), manifold.ndim)
        if not is_recorded(weights):  # whose derivative would ask for the log of a point without weight
            first = (shares > 0).to(torch.uint8).argmax(axis, keepdim=True)
            some = x.take_along_dim(first.expand(*x.shape[:axis], 1, *x.shape[axis + 1 :]), axis)
            x = torch.where(shares > 0, x, some)
    if may_wait(x) and not bool(whole(x.detach()).isfinite().all()):
        bad = int((~x.detach().isfinite()).flatten(axis + 1).any(-1).sum()) if manifold.ndim else 1
        raise ValueError(
            f"the mean on {manifold} is of points that are finite; of shape {tuple(x.shape)}, {bad} have a NaN or an "
            f"infinity. Give these the weight 0."
        )
    return x, shares


def _normalized(
    manifold: GeodesicManifold, x: Inexact[Tensor, "..."], weights: Float[Tensor, "..."]
) -> Float[Tensor, "*batch N"]:
    shape = x.shape[: x.dim() - manifold.ndim]
    if not isinstance(weights, Tensor) or weights.is_complex():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights of a mean on {manifold} are a tensor of real numbers; got {got}.")
    try:
        w = weights.to(x.real).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"weights of a mean on {manifold} are one number for each of the points {tuple(shape)}, or for the last of "
            f"these axes; got shape {tuple(weights.shape)}."
        ) from None
    largest = w.detach().amax(-1, keepdim=True)
    if not bool(((w >= 0) & w.isfinite()).all()) or not bool((largest > 0).all()):
        raise ValueError(
            f"weights of a mean on {manifold} are finite and nonnegative with a positive sum; of shape "
            f"{tuple(w.shape)}, {int((~((w >= 0) & w.isfinite())).sum())} are negative, infinite or NaN, and "
            f"{int((~(largest > 0)).sum())} sums are not positive. Clamp them, or leave a set of points without any "
            f"weight out."
        )
    w = w / largest  # the sum of huge ones would overflow
    return w / w.sum(-1, keepdim=True)
