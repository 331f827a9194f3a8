"""What is constrained in a model, and how far off it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manifolds import Layout, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Stiefel
from manifolds.compositions import ComposedProduct, Composition
from manifolds.kernels.precision import exact_products

from .composing import Parts, composed
from .held import Held, held_once
from .method import Method
from .names import check_module, owners
from .sharding import whole
from .values import at_least_float32, rounding
from .ways import blocks_of, determinant_signs

HEAD = ("", "name", "shape", "manifold", "layout", "method", "worst residual per factor", "det")
SHOWN = 4  # factors of a row, each with its own numbers; of more, the worst


@dataclass(frozen=True)
class Record:
    """One constraint of a model.

    A tensor that is composed of several points has one, too, without a method, before those of its parts.
    It is of the constrained tensor itself, also where a parametrization on top, as a gain, makes another one of it.
    composed: the kinds of those on top.
    residuals: the worst residual of each factor over the batch; NaN where the weight has a NaN. A part of a composed
        product is a stack of its factors.
    determinants: for each factor "+", "-", or "+-" within a batch, for real orthogonal blocks; "" for others.
    """

    name: str
    shape: tuple[int, ...]
    manifold: Manifold | Composition
    layout: Layout | None
    method: Method | None
    dtype: torch.dtype
    residuals: tuple[float, ...]
    determinants: tuple[str, ...]
    composed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every residual is at most `tolerance(dtype)`, as `contains` asks, or 4 eps of a half precision
        weight, which is a point rounded; NaN is not."""
        return all(residual <= rounding(self.dtype) for residual in self.residuals)


class Report(list[Record]):
    """The records of a model; prints as a table, with a `!` before rows that are off their manifold."""

    def __str__(self) -> str:
        if not self:
            return "nothing is constrained"
        rows = [HEAD, *(_row(record) for record in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    __repr__ = __str__


def report(model: nn.Module) -> Report:
    """One record for each constraint of the model, in the order of its modules; a tied tensor comes once.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> [(record.name, record.ok) for record in report(layer)]
    [('weight', True)]
    """
    check_module(model, "report")
    return Report([*_composed(model), *(_record(each) for each in held_once(model))])


@torch.no_grad()
def _composed(model: nn.Module) -> Iterator[Record]:
    """One record for each composed tensor, whose residual is the worst of its parts; a tied one once."""
    seen: set[int] = set()
    for prefix, owner in owners(model):
        for attribute, each in composed(owner):
            parts = each.parts
            if id(parts) in seen:
                continue
            seen.add(id(parts))
            residual = max(_worst(manifold, whole(point.detach())) for manifold, point in parts.held())
            kinds = tuple(type(one).__name__.lstrip("_") for one in list(each)[1:])
            layout = parts.composition.layout if isinstance(parts.composition, ComposedProduct) else None
            yield Record(
                prefix + attribute, parts.shape, parts.composition, layout, None, parts.dtype, (residual,), (), kinds
            )


@torch.no_grad()
def _record(each: Held) -> Record:
    manifold, dtype = each.manifold, each.like.dtype
    try:
        weight = at_least_float32(each.weight)
    except ValueError:
        weight = torch.full_like(at_least_float32(each.like), math.nan)
    blocks = _blocks(each, weight)
    return Record(
        each.name,
        tuple(weight.shape),
        manifold,
        manifold.layout if isinstance(manifold, ProductManifold) else None,
        each.method,
        dtype,
        tuple(_worst(factor, block) for factor, block in blocks),
        tuple(_sign(factor, block) for factor, block in blocks),
        each.composed,
    )


def _blocks(each: Held, weight: Tensor) -> list[tuple[Manifold, Tensor]]:
    """Each factor with its block; a part of a composed product is a stack of equal ones."""
    parts, manifold = each.owner, each.manifold
    if isinstance(parts, Parts) and isinstance(parts.composition, ComposedProduct):
        axis = len(parts.shape) - parts.composition.ndim
        return [(manifold, block) for block in weight.unbind(axis)]
    return blocks_of(manifold, weight)


def _worst(factor: Manifold, block: Tensor) -> float:
    if not bool(block.isfinite().all()):
        return math.nan
    try:
        with exact_products(block.device.type):
            return max(factor.residual(block).flatten().tolist(), default=0.0)  # of a batch of no points
    except ValueError:  # no nearest point to measure the distance to
        return math.inf


def _sign(factor: Manifold, block: Tensor) -> str:
    rotates = isinstance(factor, (Stiefel, Orthogonal, SpecialOrthogonal)) and block.shape[-2] == block.shape[-1]
    if not rotates or block.is_complex() or not bool(block.isfinite().all()):
        return ""
    signs = determinant_signs(block)
    return "".join(text for sign, text in ((1.0, "+"), (-1.0, "-")) if sign in signs)


def _row(record: Record) -> tuple[str, ...]:
    manifold = record.manifold
    return (
        "" if record.ok else "!",
        record.name,
        "x".join(map(str, record.shape)),
        # the layout has a column of its own
        repr(ProductManifold(manifold.factors) if isinstance(manifold, ProductManifold) else manifold),
        "" if record.layout is None else repr(record.layout),
        ", then ".join(["its parts" if record.method is None else repr(record.method), *record.composed]),
        _residuals(record.residuals),
        _determinants(record.determinants) if any(record.determinants) else "",
    )


def _residuals(residuals: tuple[float, ...]) -> str:
    if len(residuals) <= SHOWN:
        return " ".join(f"{residual:.1e}" for residual in residuals)
    worst = max(range(len(residuals)), key=lambda i: math.inf if math.isnan(residuals[i]) else residuals[i])
    return f"{residuals[worst]:.1e}, factor {worst} of {len(residuals)}"


def _determinants(signs: tuple[str, ...]) -> str:
    if len(signs) <= SHOWN:
        return " ".join(sign or "." for sign in signs)
    return " ".join(f"{signs.count(sign)}x{sign}" for sign in ("+", "-", "+-") if sign in signs)
