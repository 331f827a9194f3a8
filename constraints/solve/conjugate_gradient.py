"""Nonlinear conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .betas import Beta, Change, hager_zhang
from .descent import downhill, first_step, search_along
from .options import check_between
from .problem import Problem
from .searches import HagerZhang, LineSearch
from .solver import Mask, Solver, State


@dataclass(frozen=True, repr=False)
class ConjugateGradient(Solver):
    """d <- -grad f(x) + beta T d with T the transport; the gradient alone where that leads not down.

    beta: of `betas`: hager_zhang, polak_ribiere, hestenes_stiefel, fletcher_reeves, or a function like them.
    search: HagerZhang(), StrongWolfe() or Armijo(), with options.
    restart: start anew where |<g+, T g>| is at least so large a part of |g+|^2, infinity for never (Powell 1977).
    Source: Sato, Riemannian conjugate gradient methods: general framework (2022); Hager & Zhang (2006).
    """

    beta: Beta = hager_zhang
    search: LineSearch = HagerZhang(sigma=0.4)  # noqa: RUF009 - frozen
    restart: float = math.inf

    def __post_init__(self) -> None:
        if self.restart != math.inf:
            check_between(self, 0, math.inf, restart=self.restart)

    def advance(self, problem: Problem, state: State, active: Mask) -> State:
        space, x, g, memory = problem.space, state.x, state.gradient, state.memory
        d, slope, kept = downhill(problem, state, memory.get("d", -g), active)
        steepest = ~kept if "d" in memory else active
        # as far as the last step, by the change of the slope (Nocedal & Wright 2006, section 3.5)
        first = first_step(state) if "t" not in memory else memory["t"] * memory["slope"] / slope
        new, found = search_along(problem, state, d, slope, self.search, first, active)

        old, last = space.transport(x, new.x, torch.stack([g, d])).unbind()
        g = new.gradient
        beta = self.beta(Change(g, old, last, lambda u, v: space.inner(new.x, u, v)))
        anew = ~(beta.isfinite() & found.done)
        if self.restart != math.inf:
            anew = anew | (space.inner(new.x, g, old).abs() >= self.restart * new.norm.square())
        beta = torch.where(anew, 0, beta)
        d = torch.addcmul(-g, beta, last)
        t = torch.where(found.done, found.t, first_step(new))
        new.memory = {"d": d, "t": t, "slope": torch.where(found.done, slope, -new.norm.square())}
        new.stuck = state.stuck | (active & ~found.done & (steepest | memory.get("failed", steepest)))
        new.memory["failed"] = ~found.done
        return new
