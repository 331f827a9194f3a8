"""Nonlinear conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .betas import Beta, Change, hager_zhang
from .descent import downhill, first_step, search_along
from .numbers import Truth, is_finite, no, over, plus, where
from .options import check_between
from .problem import Problem
from .searches import HagerZhang, LineSearch
from .solver import Solver, State


@dataclass(frozen=True, repr=False)
class ConjugateGradient(Solver):
    """d <- -grad f(x) + beta T d with T the transport; the gradient alone where that leads not down.

    beta: of `betas`: hager_zhang, polak_ribiere, hestenes_stiefel, fletcher_reeves, or a function like them.
    search: HagerZhang(), StrongWolfe() or Armijo(), with options.
    restart: start anew where |<g+, T g>| is at least so large a part of |g+|^2, infinity for never (Powell 1977).
    Source: Sato, Riemannian conjugate gradient methods: general framework (2022); Hager & Zhang (2006).

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=ConjugateGradient(), dtype=a.dtype).converged
    True
    """

    beta: Beta = hager_zhang
    search: LineSearch = HagerZhang(sigma=0.4)  # noqa: RUF009 - frozen
    restart: float = math.inf

    def __post_init__(self) -> None:
        if self.restart != math.inf:
            check_between(self, 0, math.inf, restart=self.restart)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x, g, memory = problem.space, state.x, state.gradient, state.memory
        d, slope, kept = downhill(problem, state, memory["d"] if memory else -g, active)
        steepest = no(kept) | memory["steepest"] if memory else active
        # as far as the last step, by the change of the slope (Nocedal & Wright 2006, (3.60))
        first = over(memory["t"] * memory["slope"], slope) if memory else first_step(state)
        new, found = search_along(problem, state, d, slope, self.search, first, active)

        g, (old, last) = new.gradient, space.transport(x, new.x, torch.stack([g, d]))
        beta = self.beta(Change(g, old, last, lambda u, v: space.inner(new.x, u, v)))
        anew = no(is_finite(beta) & found.done)
        if self.restart != math.inf:
            anew = anew | (abs(space.inner(new.x, g, old)) >= self.restart * new.norm * new.norm)
        new.memory = {
            "d": plus(-g, where(anew, 0.0, beta), last),
            "steepest": anew,
            "t": where(found.done, found.t, first_step(new)),
            "slope": where(found.done, slope, -new.norm * new.norm),
        }
        new.stuck = state.stuck | (active & no(found.done) & steepest)
        return new
