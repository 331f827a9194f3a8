"""x0 and manifold as they are given, checked: tensors, shapes, or dicts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold, tolerance
from manifolds.compositions import Composition
from manifolds.engine import engine, settled
from manifolds.kernels.precision import exact_products

from ..given import kind_of_value
from ..ways import has_nearest, point_code, random_code, which_off

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

Name = str | None


@dataclass(frozen=True)
class Given:
    """Points and their manifolds by name; one of name None where x0 is no dict. drawn: x0 gave shapes only."""

    manifolds: dict[Name, Manifold]
    points: dict[Name, Tensor]
    drawn: bool


def points_of(
    x0: Any,
    manifold: Any,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Given:
    """The starts, drawn where shapes are given. Raises TypeError or ValueError for what is no point of its manifold."""
    if isinstance(x0, Mapping) != isinstance(manifold, Mapping) or (
        isinstance(x0, Mapping) and x0.keys() != manifold.keys()
    ):
        raise ValueError(
            f"a dict of starts comes with a dict of manifolds of the same names; got {_said(x0)} and "
            f"{_said(manifold)}. Write minimize(f, {{'a': a}}, {{'a': Stiefel}})."
        )
    starts: Mapping[Name, Any] = x0 if isinstance(x0, Mapping) else {None: x0}
    if not starts:
        raise ValueError("x0 is empty: give one tensor or shape at least.")
    manifolds = {name: _manifold(m) for name, m in (manifold if isinstance(x0, Mapping) else {None: manifold}).items()}
    points, drawn = {}, False
    for name, value in starts.items():
        if isinstance(value, Tensor):
            points[name] = _checked(name, value.detach(), manifolds[name])
        elif isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value):
            _check_dtype(name, torch.get_default_dtype() if dtype is None else dtype, "Pass dtype=torch.float64")
            points[name] = manifolds[name].random(tuple(value), generator=generator, dtype=dtype, device=device)
            drawn = True
        else:
            raise TypeError(
                f"{_who(name)} is a tensor, or a shape such as (64, 5); got {kind_of_value(value)}. torch.as_tensor "
                f"makes a tensor of an array."
            )
    _check_drawn(points, drawn, dtype, device)
    check_alike(points)
    return Given(manifolds, points, drawn)


def _check_drawn(
    points: Mapping[Any, Tensor], drawn: bool, dtype: torch.dtype | None, device: torch.device | str | None
) -> None:
    """ValueError for a dtype or a device that no shape is drawn with and no start has."""
    for p in points.values():
        other = (dtype is not None and p.dtype != dtype) or (device is not None and p.device != _full(device))
        if other and not drawn:
            raise ValueError(
                f"dtype and device are for starts that are drawn; got tensors, {p.dtype} on {p.device}. Write "
                f"x0.to(...), and leave them out."
            )


def _full(device: torch.device | str) -> torch.device:
    """With its index, as tensors have it."""
    return torch.empty(0, device=device).device


def check_alike(points: Mapping[Any, Tensor]) -> None:
    """ValueError where the points differ in precision or device: they move as one."""
    kinds = {(p.dtype.to_real(), p.device) for p in points.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {p.dtype} on {p.device}" for name, p in points.items())
        raise ValueError(f"all points have one precision and one device; got {listed}. Convert them with .to(...).")


def _manifold(manifold: Any) -> Manifold:
    manifold = manifold() if isinstance(manifold, type) and issubclass(manifold, Manifold) else manifold
    if issubclass(manifold if isinstance(manifold, type) else type(manifold), Composition):
        said = manifold.__name__ if isinstance(manifold, type) else repr(manifold)
        raise TypeError(
            f"manifold is a Manifold; got {said}, which makes a tensor of several points. Write "
            f"constrain(module, name, {said}, Riemannian()) for a weight of a module, and minimize(closure, module)."
        )
    if not isinstance(manifold, Manifold):
        raise TypeError(
            f"manifold is a Manifold, such as Stiefel() or Sphere() * Stiefel(); got {kind_of_value(manifold)}."
        )
    return manifold


def _checked(name: Name, x: Tensor, manifold: Manifold) -> Tensor:
    _check_dtype(name, x.dtype, "Write x0.double()")
    manifold.dim(x.shape)
    with exact_products(x.device.type), torch.no_grad():
        residual = manifold.residual(x)
        if not bool((residual <= tolerance(x.dtype)).all()):
            # a float64 start may come from a float32 computation
            within = max(tolerance(x.dtype), tolerance(torch.float32))
            if not bool((residual <= within).all()):
                way = (
                    f"{point_code(manifold, x, 'x0')}, or the shape alone for a random start"
                    if has_nearest(manifold, x)
                    else f"its shape alone for a random start, or a point, such as {random_code(manifold, x)}"
                )
                which = which_off(manifold, x, within)
                raise ValueError(f"{_who(name)} of shape {tuple(x.shape)} is not on {manifold}{which}. Give {way}.")
            held = engine(manifold)
            x = held.join([settled(factor, points) for factor, points in held.split(x)], x.shape)
    return x.clone(memory_format=torch.contiguous_format)


def _check_dtype(name: Name, dtype: torch.dtype, way: str) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{_who(name)} has dtype {dtype}; solvers work in float32 or float64, real or complex. {way}.")


def _who(name: Name) -> str:
    return "x0" if name is None else f"x0[{name!r}]"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {sorted(value)}"
    if isinstance(value, type) and issubclass(value, Manifold):
        return value.__name__
    return repr(value) if isinstance(value, Manifold) else kind_of_value(value)
