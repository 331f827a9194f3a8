"""The manifold that holds a tensor: where layout, packing and shape agree."""

from __future__ import annotations

from dataclasses import replace

from manifolds import BlockSpec, Layout, Manifold, ProductManifold
from manifolds.compositions import ComposedProduct, Composition

from .method import Site
from .packing import check_packing, packing_of


def fit(manifold: Manifold | Composition, layout: Layout | None, site: Site) -> Manifold | Composition:
    """The manifold that holds this tensor, once layout, packing and shape agree."""
    shape = tuple(site.parameter.shape)
    packing = packing_of(site.owner, site.attribute)
    if layout is None and packing is not None:
        check_packing(packing, manifold, shape, str(site))
    try:
        chosen = manifold if layout is None else _with_layout(manifold, layout, shape)
        _check_axis(chosen, shape)
        dim = chosen.dim(shape)
    except ValueError as error:
        raise ValueError(f"{site}, shape {shape}: {error}") from error
    if dim == 0 and site.parameter.numel() and not site.parameter.is_complex():
        raise ValueError(
            f"{site}, shape {shape}: the points of {chosen} have 0 degrees of freedom in that shape, and nothing would "
            f"train. Take a larger set, as Orthogonal for square matrices, or leave it free with requires_grad = False."
        )
    return chosen


def _with_layout(manifold: Manifold | Composition, layout: Layout, shape: tuple[int, ...]) -> Manifold | Composition:
    if not isinstance(layout, Layout):
        raise TypeError(f"layout of constrain is a BlockSpec or a BlockSpec.pattern(...); got {layout!r}.")
    if isinstance(manifold, ProductManifold | ComposedProduct):
        if not manifold.stacked:
            raise ValueError(f"{manifold} has a layout of its own; got {layout} too. Drop one of them.")
        return replace(manifold, layout=layout)
    if layout == BlockSpec(rows=1, axis=0):
        return manifold
    ndim = layout.ndim(manifold.ndim)
    if len(shape) < ndim:
        raise ValueError(
            f"{layout} cuts points of {ndim} axes, and the tensor has {len(shape)}. Write a layout of axes that it "
            f"has, or reshape the tensor in its module."
        )
    count = len(layout.shapes(shape[len(shape) - ndim :]))
    return (
        ProductManifold((manifold,) * count, layout)
        if isinstance(manifold, Manifold)
        else ComposedProduct((manifold,) * count, layout)
    )


def _check_axis(manifold: Manifold | Composition, shape: tuple[int, ...]) -> None:
    """An axis counted from the first one means nothing where batch axes come before the packed point."""
    if not isinstance(manifold, ProductManifold | ComposedProduct) or len(shape) <= manifold.ndim:
        return
    layout = manifold.layout
    if isinstance(layout, BlockSpec) and layout.axis >= 0:
        meant = {
            layout.axis - len(shape): f"cut axis {layout.axis} of the tensor",
            layout.axis - manifold.ndim: "cut each of the batch",
        }
        ways = [
            f"layout=BlockSpec(rows={layout.rows}, axis={axis}) to {what}"
            for axis, what in meant.items()
            if _cuts(replace(manifold, layout=BlockSpec(rows=layout.rows, axis=axis)), shape)
        ]
        if not ways:
            ways = ["sizes of the blocks and an axis counted from the end, as layout=BlockSpec(rows=(...), axis=-1)"]
        raise ValueError(
            f"{layout} counts its axis from the first one, but the tensor has more axes than a point of {manifold}, "
            f"which has {manifold.ndim}: it is ambiguous. Pass {', '.join(ways)}, or a BlockSpec.pattern that names "
            f"every axis."
        )


def _cuts(manifold: ProductManifold | ComposedProduct, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is cut into points of the factors."""
    try:
        manifold.dim(shape)
    except ValueError:
        return False
    return True
