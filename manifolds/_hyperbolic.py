"""What both models of hyperbolic space need: their curvature, and a function that is smooth at 0."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Manifold

Numbers = Float[Tensor, "*batch 1"]


def asinhc(square: Numbers) -> Numbers:
    """asinh(s) / s of s^2, smooth at 0."""
    small = square < 1e-4
    s = torch.where(small, 1, square).sqrt()
    series = 1 - square / 6 + 3 * square**2 / 40 - 15 * square**3 / 336
    return torch.where(small, series, s.asinh() / s)


def check_curvature(manifold: Manifold, curvature: object) -> None:
    number = isinstance(curvature, int | float) and not isinstance(curvature, bool)
    if not isinstance(curvature, int | float) or not number or not -math.inf < curvature < 0:
        raise ValueError(
            f"the curvature of {type(manifold).__name__} is a negative number, -1 / R^2; got {curvature!r}. For 0 take "
            f"Euclidean, for a positive one Sphere(radius)."
        )
    object.__setattr__(manifold, "curvature", float(curvature))
