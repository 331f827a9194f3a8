"""Nonlinear conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from .betas import Beta, Change, hestenes_stiefel
from .descent import downhill, first_step, search_along
from .numbers import Truth, is_finite, no, over, plus, where
from .options import check_between, check_function, check_kind
from .problem import Problem
from .searches import LineSearch, StrongWolfe
from .solver import Solver, State


@dataclass(frozen=True, repr=False)
class ConjugateGradient(Solver):
    """d <- -grad f(x) + beta T d with T the transport; the gradient alone where that leads not down.

    beta: of `betas`: hestenes_stiefel, hager_zhang, polak_ribiere, fletcher_reeves, or a function like them.
    search: StrongWolfe(curvature=0.3) by default; HagerZhang and Armijo are others. Its first trial is where the slope
    vanishes if the curvature of f along d is what it was along the last direction.
    restart: start anew where |<g+, T g>| is at least so large a part of |g+|^2, infinity for never (Powell 1977).
    Source: Sato, Riemannian conjugate gradient methods: general framework (2022); Hager & Zhang (2006).

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=ConjugateGradient(), dtype=a.dtype).converged
    True
    """

    beta: Beta = hestenes_stiefel
    search: LineSearch = StrongWolfe(curvature=0.3)  # noqa: RUF009 - frozen
    restart: float = math.inf

    def __post_init__(self) -> None:
        check_function(self, "as those of `betas`", beta=self.beta)
        check_kind(self, LineSearch, search=self.search)
        if self.restart != math.inf:
            check_between(self, 0, math.inf, restart=self.restart)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x, g, memory = problem.space, state.x, state.gradient, state.memory
        d, slope, kept = downhill(problem, state, memory["d"] if memory else -g, active)
        steepest = no(kept) | memory["steepest"] if memory else active
        # where the slope vanishes if the curvature along d is that along the last direction
        length = space.inner(x, d, d)
        first = over(-slope, memory["curvature"] * length) if memory else first_step(state)
        new, found = search_along(problem, state, d, slope, self.search, first, active)

        if space.lies_still:
            old, last, g = (space.loose(*pair) for pair in ((x, g), (x, d), (new.x, new.gradient)))
            inner = space.dot
        else:
            g, (old, last) = new.gradient, space.transport(x, new.x, torch.stack([g, d]))
            inner = partial(space.inner, new.x)
        bend = over(inner(g, last) - slope, found.t * length)
        beta = self.beta(Change(g, old, last, inner))
        anew = no(is_finite(beta) & found.done)
        if self.restart != math.inf:
            anew = anew | (abs(inner(g, old)) >= self.restart * new.norm * new.norm)
        d = plus(-g, where(anew, 0.0, beta), last)
        new.memory = {
            "d": space.fasten(new.x, d) if space.lies_still else d,
            "steepest": anew,
            "curvature": where(
                (bend > 0) & found.done, bend, where(found.done, over(-slope, 2 * found.t * length), new.norm)
            ),
        }
        new.stuck = state.stuck | (active & no(found.done) & steepest)
        return new
