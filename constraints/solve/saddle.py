"""Where the gradient vanishes: is it a minimum? The direction of least curvature, and a step along it."""

from __future__ import annotations

import torch
from torch import Tensor

from .hessians import Product
from .numbers import Number, Truth, any_, full, no, over, where
from .problem import Problem
from .solver import State, moved, reach
from .space import Rows

SHRINK, TRIALS = 0.25, 8


def least_curvature(problem: Problem, state: State, times: Product, products: int) -> tuple[Number, Rows]:
    """(<v, H v>, v) with v the unit vector where that is least among those in the Krylov space of a random vector.

    Lanczos: an upper bound of the smallest eigenvalue of H, from so many products with it.
    Source: Conn, Gould & Toint, Trust Region Methods (2000), section 5.2.
    """
    space, x = problem.space, state.x
    generator = torch.Generator(x.device).manual_seed(0)
    q = space.project(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
    q = q * over(1.0, space.norm(x, q))
    basis: list[Rows] = []
    alphas: list[Number] = []
    betas: list[Number] = []
    for _ in range(products):
        h = times(q)
        basis.append(q)
        alphas.append(space.inner(x, q, h))
        # against all, for rounding makes the first ones come back
        for _ in range(2):
            for each in basis:
                h = h - each * space.inner(x, each, h)
        betas.append(space.norm(x, h))
        # an invariant space: what is left of h is rounding
        if not any_(betas[-1] > 1e-10 * (abs(alphas[-1]) + betas[0])):
            break
        q = space.project(x, h) * over(1.0, betas[-1])
    diagonal, off = _stacked(alphas, x), _stacked(betas, x)[..., :-1]
    if not bool(torch.isfinite(diagonal).all() and torch.isfinite(off).all()):
        return full(state.value, 0.0), torch.zeros_like(x)
    values, vectors = torch.linalg.eigh(
        torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    )
    weights = vectors[..., :, 0]
    v = torch.stack([each * weights[..., i : i + 1] for i, each in enumerate(basis)]).sum(0)
    return (values[..., :1] if problem.space.batched else values[0].item()), v


def leave(problem: Problem, state: State, curvature: Number, v: Rows, wants: Truth) -> State:
    """A step along v, where the curvature is negative, that makes f smaller: the first of 1, 1/4, 1/16, ... that does
    by a tenth of what the curvature promises. Where none does the state stays."""
    t, size = full(state.value, 1.0), torch.finfo(state.x.dtype).eps
    for _ in range(TRIALS):
        y, good = reach(problem, state.x, v * t, wants)
        at = problem.at(y)
        promised = -curvature * t * t / 2
        taken = good & (at.value <= state.value - promised / 10 - 100 * size * abs(state.value))
        if any_(taken):
            state = moved(problem, state, y, at, t, taken)
            wants = wants & no(taken)
        if not any_(wants):
            break
        t = where(wants, SHRINK * t, t)
    return state


def _stacked(numbers: list[Number], like: Tensor) -> Tensor:
    if isinstance(numbers[0], Tensor):
        return torch.cat(numbers, -1)
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)
