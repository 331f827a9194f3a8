"""Which value a constrained tensor takes: the present one, a given one, or one of the named starts."""

from __future__ import annotations

import cmath
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from manifolds import (
    Euclidean,
    Manifold,
    NearestPointManifold,
    ProductManifold,
    tolerance,
)
from manifolds._points import check_map
from manifolds.engine import engine, settled
from manifolds.kernels.others import without_others
from manifolds.kernels.precision import exact_products
from manifolds.kernels.transforms import is_transformed

from .finite import check_finite
from .given import AS_TENSOR, kind_of_value
from .inside import is_traced
from .starts import Start, named_start
from .ways import FUNCTION, INIT, NEAR, Way, filled, off_text, reflections

Init = Tensor | Start | Callable[[Tensor], Tensor] | None


def initial(manifold: Manifold, tensor: Tensor, init: Init, who: str) -> Tensor:
    """The point of the manifold that a tensor of this shape starts from, in float32 or better.

    None: the tensor itself if it is on the manifold, else the nearest point. "haar": a random point, uniform where the
    manifold is compact. "identity": ones on the diagonal. "torus": rotations by uniform angles in the planes (1, 2),
    (3, 4), ... A tensor, or a function of the present value that returns one, must lie within 1e-3 of the manifold.
    Euclidean blocks keep their value under the named starts. Raises ValueError where no such point exists, and
    where None would turn a reflection into a rotation.
    """
    if init is None:
        x = at_least_float32(tensor.detach())
        keeps = any(isinstance(factor, Euclidean) for factor, _ in engine(manifold).split(x))
        check_finite(x, who, "" if keeps else ", or a fresh start: init='haar'")
        with exact_products(x.device.type):
            if bool(manifold.contains(x).all()):
                return x.clone()
            _check_signs(manifold, x, who)
        return nearest(manifold, x, who)
    if isinstance(init, str):
        if init not in get_args(Start):
            raise ValueError(f"init of {who} is one of {get_args(Start)}, a tensor or a function; got {init!r}.")
        return named_start(manifold, at_least_float32(tensor.detach()), init, who)
    if isinstance(init, Tensor):
        return admit(manifold, init, tensor, f"init of {who}", INIT)
    if not callable(init):
        raise TypeError(
            f"init of {who} is one of {get_args(Start)}, a tensor or a function; got {kind_of_value(init)}. {AS_TENSOR}"
        )
    result = init(tensor.detach().clone())
    if not isinstance(result, Tensor):
        raise ValueError(
            f"the init function of {who} must return a tensor of shape {tuple(tensor.shape)}; it returned "
            f"{kind_of_value(result)}. {AS_TENSOR}"
        )
    return admit(manifold, result, tensor, f"init of {who}", FUNCTION)


def admit(manifold: Manifold, value: Tensor, like: Tensor, who: str, way: Way) -> Tensor:
    """A given value as a point of the manifold, in float32 or better, on the device of like.

    A point is kept as it is; within 1e-3 of the manifold, or within rounding of its own half precision, the nearest
    point is taken. Raises ValueError for anything else: another shape or kind of number, NaN, off the manifold, with
    the way out from there.
    """
    if value.shape != like.shape:
        raise ValueError(f"{who} needs shape {tuple(like.shape)}; got {tuple(value.shape)}.")
    if not (value.is_floating_point() or value.is_complex()) or (value.is_complex() and not like.is_complex()):
        raise ValueError(f"{who} has dtype {like.dtype}; got a value of dtype {value.dtype}. Convert it first.")
    x = at_least_float32(value.detach()).to(device=like.device, dtype=master_dtype(like.dtype))
    check_finite(x, who)
    # NaN is not <=
    with exact_products(x.device.type):
        if bool(manifold.contains(x).all()):
            return x.clone()
        within = max(near(value.dtype), near(like.dtype))
        if not bool((manifold.residual(x) <= within).all()):
            raise ValueError(off_text(manifold, x, who, way, within))
    return nearest(manifold, x, who, way)


def nearest(manifold: Manifold, x: Tensor, who: str, way: Way = INIT) -> Tensor:
    """manifold.nearest(x), or a ValueError that names the block that has no nearest point. Of sets without nearest
    points, x itself, within rounding of a point or refused with the ways in."""
    if not isinstance(manifold, NearestPointManifold):
        return _within_rounding(manifold, x, who, way)
    # every tenth random matrix of 512 x 512 is of deficient rank to float32
    exact = (x.cpu() if x.device.type == "mps" else x).to(torch.promote_types(x.dtype, torch.float64))
    try:
        with exact_products(x.device.type):
            y = check_map(manifold, "nearest", exact, manifold.nearest(exact)).to(x)
    except ValueError as error:
        where, reason = _culprit(manifold, exact)
        said = f"{who}, shape {tuple(x.shape)}{where}: {(reason or without_others(error)).removesuffix('.')}."
        raise ValueError(f"{said} {filled(way.other, manifold, x)}") from error
    with exact_products(y.device.type):
        on = bool((manifold.residual(y) <= near(y.dtype)).all())
    if not on:
        raise ValueError(
            f"{who}, shape {tuple(x.shape)}: {manifold}.nearest did not return a point of the manifold. "
            f"{filled(way.other, manifold, x)}"
        )
    return y


def _within_rounding(manifold: Manifold, x: Tensor, who: str, way: Way) -> Tensor:
    """x, polished factor by factor; ValueError where that is no point."""
    with exact_products(x.device.type):
        y = engine(manifold).join(
            [
                settled(f, t) if bool((f.residual(t) <= near(x.dtype)).all()) else t
                for f, t in engine(manifold).split(x)
            ],
            x.shape,
        )
        if bool(manifold.contains(y).all()):
            return y.clone()
    raise ValueError(off_text(manifold, x, who, way, near(x.dtype)))


def near(dtype: torch.dtype) -> float:
    """The residual up to which a value of this dtype is a rounded point: 1e-3, or 4 eps in half precision."""
    return max(NEAR, rounding(dtype))


def rounding(dtype: torch.dtype) -> float:
    """The residual up to which a weight of this dtype is on its manifold: `tolerance`, or 4 eps in half precision,
    where what is held is a point rounded, which moves X^H X by at most 2 eps."""
    return tolerance(dtype) if master_dtype(dtype) == dtype else 4 * torch.finfo(dtype).eps


def is_near(manifold: Manifold, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether x, which was held in this dtype, is on the manifold to rounding; what is not finite is not."""
    return bool((manifold.residual(x) <= near(dtype)).all())


def check_whole(p: Tensor, who: str) -> None:
    """ValueError where p is sharded over processes: what is a constraint on a tensor says nothing about its shards."""
    if hasattr(p, "placements") and hasattr(p, "to_local"):  # DTensor, which takes a second to import
        here = tuple(p.to_local().shape)
        raise ValueError(
            f"{who}, shape {tuple(p.shape)}, is sharded over processes, as by fully_shard, with shape {here} here; a "
            f"constraint is on the whole tensor. Constrain the model first, fully_shard it then, and make the "
            f"optimizer last. Not by ignored_params= alone: nobody averages the gradients that it leaves out, and the "
            f"processes drift apart."
        )


def is_finite(x: Tensor) -> bool:
    """Whether x has neither NaN nor infinite entries."""
    # the sum of finite numbers may overflow, so it can only acquit
    return cmath.isfinite(x.detach().sum().item()) or bool(torch.isfinite(x).all())


def may_look(x: Tensor) -> bool:
    """Whether values of x may be looked at: an accelerator would have to be waited for, and a trace has none."""
    plain = type(x) is Tensor and not is_transformed(x)
    return plain and x.is_cpu and not is_traced()


class Checksum(NamedTuple):
    """A sum, and what the order that it was taken in depends on: of one order, another sum means another value."""

    total: complex
    order: tuple[int, ...]


def checksum(x: Tensor) -> Checksum:
    """What is equal only if, but for rare chance, nothing was written to x. It waits for an accelerator."""
    x = x.detach() if x.requires_grad else x
    # integers would add up alike in any order, but so would they after many a change of signs or powers of 2
    return Checksum(x.sum().item(), (torch.get_num_threads(), *x.stride()))


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself: geometry needs its digits."""
    return dtype if dtype.is_complex else torch.promote_types(dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """x in its `master_dtype`."""
    return x.to(master_dtype(x.dtype))


def _check_signs(manifold: Manifold, x: Tensor, who: str) -> None:
    """ValueError where x has reflections, whose nearest rotation is at a distance of 2: not what rounding means."""
    negative, count = reflections(manifold, x, NEAR)
    if negative:
        raise ValueError(
            f"{who}, shape {tuple(x.shape)}, has {negative} of {count} orthogonal matrices with determinant -1: many "
            f"rotations are at a distance of 2, and none is nearer. Orthogonal admits them; for a random rotation pass "
            f"init='haar'."
        )


def _culprit(manifold: Manifold, x: Tensor) -> tuple[str, str]:
    """(which block has no nearest point, why)."""
    if isinstance(manifold, ProductManifold):
        for i, (factor, block) in enumerate(zip(manifold.factors, manifold.unpack(x), strict=True)):
            where, reason = _culprit(factor, block)
            if reason:
                return f", block {i} of {len(manifold)}, shape {tuple(block.shape)}{where}", reason
        return "", ""
    try:
        if isinstance(manifold, NearestPointManifold):
            manifold.nearest(x)
    except ValueError as error:
        return "", without_others(error)
    return "", ""
