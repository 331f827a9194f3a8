"""Hypothesis strategies for shapes, points and tangent vectors. Needs the extra `testing`.

A draw is a function of a seed that Hypothesis chooses: a failing example is found again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._points import inner
from ..base import Manifold, per_point

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

Dtypes = torch.dtype | Sequence[torch.dtype]
SCALES = (0.0, 1e-4, 1.0, 10.0)


def shapes(
    manifold: Manifold | type[Manifold], *, max_side: int = 6, max_batch: int = 2
) -> SearchStrategy[tuple[int, ...]]:
    """Shapes of points: sides up to max_side that the manifold accepts, behind up to max_batch batch axes.

    Raises ValueError where it accepts none, as for a layout with larger blocks: raise max_side.

    >>> @given(shapes(Stiefel))
    ... def test_shapes(shape):
    ...     assert Stiefel().random(*shape).shape == shape
    """
    from hypothesis import strategies as st

    m = _instance(manifold)
    fitting = [shape for shape in itertools.product(range(1, max_side + 1), repeat=m.ndim) if _accepts(m, shape)]
    if not fitting:
        raise ValueError(
            f"{m!r} has no points of {m.ndim} axes with sides up to max_side={max_side}. Pass a larger max_side."
        )
    batches = st.lists(st.integers(1, 3), max_size=max_batch).map(tuple)
    return st.tuples(batches, st.sampled_from(fitting)).map(lambda parts: parts[0] + parts[1])


def points(
    manifold: Manifold | type[Manifold],
    shape: Sequence[int] | None = None,
    *,
    dtype: Dtypes = torch.float64,
    device: torch.device | str | None = None,
) -> SearchStrategy[Tensor]:
    """Random points of this shape, or of `shapes(manifold)`; of one of these dtypes.

    >>> @given(points(Sphere, (3,)))
    ... def test_points_have_norm_one(x):
    ...     assert abs(x.norm() - 1) < 1e-12
    """
    return _draws(manifold, shape, dtype, device).map(lambda draw: draw[0])


def tangent_vectors(
    manifold: Manifold | type[Manifold],
    shape: Sequence[int] | None = None,
    *,
    dtype: Dtypes = torch.float64,
    device: torch.device | str | None = None,
) -> SearchStrategy[tuple[Tensor, Tensor]]:
    """Pairs (x, v): a point as from `points`, a tangent vector there of norm 0, 1e-4, 1 or 10 (0 where T_x is).

    >>> @given(tangent_vectors(Sphere, (3,)))
    ... def test_tangent_vectors_are_orthogonal_to_their_point(pair):
    ...     x, v = pair
    ...     assert abs(x @ v) < 1e-12 * (1 + v.norm())
    """
    from hypothesis import strategies as st

    m = _instance(manifold)
    draws = _draws(m, shape, dtype, device)

    @st.composite
    def pairs(draw: DrawFn) -> tuple[Tensor, Tensor]:
        x, generator = draw(draws)
        v = m.project(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
        size = inner(v, v, m.ndim).sqrt()
        size = torch.where(size > 1e-3, size, torch.inf)
        # once more: division by a small norm magnifies what rounding leaves of the normal part
        return x, m.project(x, v * per_point(draw(st.sampled_from(SCALES)) / size, m.ndim))

    return pairs()


def _draws(
    manifold: Manifold | type[Manifold],
    shape: Sequence[int] | None,
    dtype: Dtypes,
    device: torch.device | str | None,
) -> SearchStrategy[tuple[Tensor, torch.Generator]]:
    """A random point, and the generator it was drawn from, to draw more."""
    from hypothesis import strategies as st

    m = _instance(manifold)
    place = torch.empty(0).device if device is None else torch.device(device)
    sizes = shapes(m) if shape is None else st.just(tuple(shape))
    dtypes = st.sampled_from([dtype] if isinstance(dtype, torch.dtype) else list(dtype))

    @st.composite
    def point(draw: DrawFn) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator(place).manual_seed(draw(st.integers(0, 2**31 - 1)))
        return m.random(*draw(sizes), generator=generator, dtype=draw(dtypes), device=place), generator

    return point()


def _instance(manifold: Manifold | type[Manifold]) -> Manifold:
    return manifold() if isinstance(manifold, type) else manifold


def _accepts(manifold: Manifold, shape: tuple[int, ...]) -> bool:
    try:
        manifold.dim(shape)
    except ValueError:
        return False
    return True
