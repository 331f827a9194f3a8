"""Where the gradient vanishes: is it a minimum? The direction of least curvature, and a step along it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manifolds._points import probing

from .hessians import Product
from .numbers import Number, Truth, any_, no, over, where
from .problem import Problem
from .solver import State, moved, reach
from .space import Rows

SHRINK, TRIALS = 0.25, 8


class Curvature(NamedTuple):
    """<v, H v> for the unit vector v where that is least among those that were seen, and the largest |<v, H v>|."""

    least: Number
    v: Rows
    largest: Number


def least_curvature(problem: Problem, state: State, times: Product, products: int) -> Curvature:
    """Curvatures in the Krylov space of a random vector.

    Lanczos: an upper bound of the smallest eigenvalue of H, from so many products with it. NaN, and v = 0, where these
    are not finite.
    Source: Conn, Gould & Toint, Trust Region Methods (2000), section 5.2.
    """
    space, x = problem.space, state.x
    generator = probing(x.device)
    q = space.project(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
    q = q * over(1.0, space.norm(x, q))
    basis: list[Rows] = []
    alphas: list[Number] = []
    betas: list[Number] = []
    lives = state.norm >= 0  # where the space still grows
    for _ in range(products):
        h = times(q)
        basis.append(q)
        alpha = space.inner(x, q, h)
        # of a problem whose space is complete q is 0: a number that is not the least
        alphas.append(where(lives, alpha, abs(alphas[0]) * 2 + 1) if alphas else alpha)
        # against all, for rounding makes the first ones come back
        for _ in range(2):
            for each in basis:
                h = h - each * space.inner(x, each, h)
        beta = space.norm(x, h)
        # an invariant space: what is left of h is rounding
        lives = lives & (beta > 1e-10 * (abs(alpha) + (betas[0] if betas else beta)))
        betas.append(where(lives, beta, 0.0))
        if not any_(lives):
            break
        q = where(lives, space.project(x, h) * over(1.0, beta), torch.zeros_like(h))
    diagonal, off = _stacked(alphas, x), _stacked(betas, x)[..., :-1]
    small = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    known = torch.isfinite(small).all(-1).all(-1, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.where(known[..., None], small, 0.0))
    values = torch.where(known, values, math.nan)
    weights = vectors[..., :, 0]
    v = torch.stack([each * weights[..., i : i + 1] for i, each in enumerate(basis)]).sum(0)
    least, largest = values[..., :1], values.abs().amax(-1, keepdim=True)
    v = torch.where(known, v, torch.zeros_like(v))
    if problem.space.batched:
        return Curvature(least, v, largest)
    return Curvature(least.item(), v, largest.item())


def leave(problem: Problem, state: State, curvature: Number, v: Rows, wants: Truth) -> State:
    """A step along v, where the curvature is negative, that makes f smaller: the first of 1, 1/4, 1/16, ... times the
    length of a first step that does by a tenth of what the curvature promises. Where none does the state stays."""
    t, size = problem.space.stride(state.x), torch.finfo(state.x.dtype).eps
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
