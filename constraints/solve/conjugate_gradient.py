"""Nonlinear conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .betas import Beta, Change, Terms, memoryless_bfgs
from .descent import downhill, search_along
from .numbers import Number, Truth, all_, full, is_finite, no, over, plus, where
from .options import check_between, check_function, check_kind
from .problem import Problem
from .searches import LineSearch, StrongWolfe
from .solver import Solver, State
from .space import Rows

AWAY = 0.03
"""A direction that lies still is fastened where x, turning as one, has moved since by so large a part of |x|. Before,
its normal part is about as small a part of it, and changes the curve of nearest points by its square."""


@dataclass(frozen=True, repr=False)
class ConjugateGradient(Solver):
    """d <- -grad f(x) + beta T d with T the transport; the gradient alone where that leads not down.

    beta: of `betas`: memoryless_bfgs, which has a term more, hestenes_stiefel, hager_zhang, polak_ribiere,
    fletcher_reeves, or a function like them. With memoryless_bfgs an iteration is one value and one gradient, mostly.
    search: StrongWolfe(curvature=0.7) by default; others than memoryless_bfgs are better with 0.3. HagerZhang and
    Armijo are others. Its first trial is that of beta; else where the slope vanishes if the curvature of f along d is
    what it was along the last direction.
    restart: start anew where |<g+, T g>| is at least so large a part of |g+|^2, infinity for never (Powell 1977).
    Source: Sato, Riemannian conjugate gradient methods: general framework (2022); Shanno (1978) for memoryless_bfgs.

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=ConjugateGradient(), dtype=a.dtype).converged
    True
    """

    beta: Beta = memoryless_bfgs
    search: LineSearch = StrongWolfe(curvature=0.7)  # noqa: RUF009 - frozen
    restart: float = math.inf

    def __post_init__(self) -> None:
        check_function(self, "as those of `betas`", beta=self.beta)
        check_kind(self, LineSearch, search=self.search)
        if self.restart != math.inf:
            check_between(self, 0, math.inf, restart=self.restart)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x, g, memory = problem.space, state.x, state.gradient, state.memory
        down = downhill(problem, state, memory["d"] if memory else -g, active)
        d, slope = down.d, down.slope
        steepest = no(down.kept) | memory["steepest"] if memory else active
        squared = down.size * down.size
        stride = memory["stride"] if memory else space.stride(x)
        if not memory:
            first = over(stride, state.norm)
        else:
            # where the slope vanishes if the curvature along d is that along the last direction
            first = where(memory["first"] > 0, memory["first"], over(-slope, memory["curvature"] * squared))
        new, found, ended = search_along(problem, state, down, self.search, first, active)

        old, last = (g, d) if space.lies_still else space.transport(x, new.x, torch.stack([g, d]))
        g = new.gradient
        after = space.inner(new.x, last, g) if found.slope is None else found.slope

        def inner(u: Rows, v: Rows) -> Number:
            # the search knows these
            if (u is last and v is g) or (u is g and v is last):
                return after
            return slope if u is last and v is old and space.lies_still else space.inner(new.x, u, v)

        said = self.beta(Change(g, old, last, inner))
        terms = said if isinstance(said, Terms) else Terms(said)
        anew = no(is_finite(terms.beta) & is_finite(terms.of_change) & found.done)
        if self.restart != math.inf:
            anew = anew | (abs(inner(g, old)) >= self.restart * new.norm * new.norm)
        if terms.first is None:
            first = full(slope, 0.0)
        else:
            anew = anew | no(terms.first > 0)
            first = where(anew, 0.0, terms.first * found.t)
        # g - of_change y, of y as the rule had it: sums of g and old would be off by more than it where it is short
        less = torch.lerp(g, old, where(anew, full(slope, 0.0), terms.of_change)) if terms is said else g
        d = -plus(less, where(anew, 0.0, -terms.beta), last)
        bend = over(after - slope, found.t * squared)
        half = where(found.done, over(-slope, 2 * found.t * squared), new.norm)
        away = over(new.length, stride) + (memory["away"] if memory else 0.0)
        if space.lies_still and not (space.turns_as_one and all_(away < AWAY)):
            d, away = space.fasten(new.x, d), full(slope, 0.0)
        kept = {
            "d": d,
            "away": away,
            "stride": stride,
            "steepest": anew,
            "first": first,
            "curvature": where((bend > 0) & found.done, bend, half),
        }
        if not all_(ended | no(active)):
            # of those in a search all is as it was; before the first step there is the gradient alone
            zero = full(slope, 0.0)
            none = kept | {"d": -state.gradient, "away": zero, "steepest": active, "first": zero, "curvature": half}
            kept = {name: where(ended, number, (memory or none)[name]) for name, number in kept.items()}
        new.memory |= kept
        new.stuck = state.stuck | (ended & no(found.done) & steepest)
        return new
