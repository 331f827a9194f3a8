"""Several starts of one problem, run as a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .components import determinants, mirrored
from .outside import Outside
from .piece import Piece
from .points import Given, Name
from .problem import Problem, check_shape
from .result import Result
from .run import Run, Stops, Why, sentence
from .space import Rows, Space

MOST_FACTORS = 4
"""Both components of so many factors are tried: 16 starts."""


class Starts:
    """From what was given to rows, and back: K starts of B problems are K B rows."""

    def __init__(self, given: Given, batched: bool, count: int, both: bool, generator: torch.Generator | None) -> None:
        self._names, self._batched = list(given.points), batched
        self.manifolds = given.manifolds
        self._drawn = next(iter(given.points.values())).dtype if given.drawn else None
        points = [given.points] + [self._another(given, generator) for _ in range(count - 1)]
        points = [mirror for each in points for mirror in (self._mirrors(each) if both else [each])]
        self._count = len(points)
        several = self._count > 1
        tensors = [torch.stack([p[name] for p in points]) if several else points[0][name] for name in self._names]
        lead = int(batched)
        self._problems = self._leading(given) if batched else 1
        keys = None if None in given.points else self._names
        self._outside = Outside(keys, self._count, self._problems if batched else None)
        shapes = [given.points[name].shape[lead:] for name in self._names]
        if several and batched:
            tensors = [t.flatten(0, 1) for t in tensors]
        dtypes = [t.dtype for t in tensors]
        pieces = [
            Piece(name, given.manifolds[name], tuple(shape), dtype)
            for name, shape, dtype in zip(self._names, shapes, dtypes, strict=True)
        ]
        self.space = Space(pieces, batched or several)
        self.rows: Rows = self.space.join(tensors)

    def problem(self, f: Callable[..., Any]) -> Problem:
        """f on the rows."""
        return Problem(self.space, self._caller(_told(f, self._drawn)), self._count * self._problems, self._outside)

    def whole(self, rows: Rows) -> Any:
        """Rows as f takes them; of several starts all, on a leading axis."""
        return self._outside.named([part.detach().clone() for part in self._outside.apart(self.space.split(rows))])

    def result(self, problem: Problem, done: Run, stops: Stops) -> Result:
        """The best start of every problem."""
        state, steps, why = done.state, done.steps, done.why
        value, norm, x, values = state.value, state.norm, self.space.split(state.x), None
        curvature = state.memory.get("curvature")
        if self.space.batched:
            if self._count > 1:
                values = value.reshape(self._count, self._problems)
                # what is not finite is never the best
                best = torch.where(values.isfinite(), values, torch.inf).argmin(0)
                rows = best * self._problems + torch.arange(self._problems, device=best.device)
            else:
                rows = torch.arange(self._problems, device=value.device)
            x = self.space.split(state.x[rows])
            value, norm, steps, why = (t[rows, 0] for t in (value, norm, steps, why))
            curvature = None if curvature is None else curvature[rows, 0]
        if self.space.batched and not self._batched:
            x, values = [part[0] for part in x], None if values is None else values[:, 0]
            value, norm, steps, why = (t.item() for t in (value, norm, steps, why))
            curvature = None if curvature is None else curvature.item()
        x = [part.detach().clone() for part in x]
        kinds = why.tolist() if self._batched else [why]
        size, count = (math.nan, 0) if self._batched else (norm, int(steps))
        signs = [determinants(m, t, int(self._batched)) for m, t in zip(self.manifolds.values(), x, strict=True)]
        known = [s for s in signs if s is not None]
        return Result(
            x=self._outside.named(x),
            value=value,
            gradient_norm=norm,
            steps=steps.long() if self._batched else int(steps),
            evaluations=problem.counts,
            converged=why == Why.CONVERGED,
            reason=sentence(problem, kinds, size, count, stops, None if self._batched else curvature),
            history=done.history,
            curvature=curvature,
            values_of_starts=values,
            determinants=torch.cat(known, -1) if known else None,
        )

    # How ---------------------------------------------------------------------------------------------------

    def _caller(self, f: Callable[..., Any]) -> Callable[[list[Tensor]], Any]:
        if self._count == 1:
            if self._outside.names is None:
                return lambda parts: f(parts[0])
            return lambda parts: f(self._outside.named(parts))
        mapped = torch.vmap(f)
        shape = (self._problems,) if self._batched else ()
        loops = False

        def call(parts: list[Tensor]) -> Any:
            nonlocal loops
            apart = self._outside.apart(parts)
            if not loops:
                try:
                    values = mapped(self._outside.named(apart))
                    check_shape(values[0], shape)
                    return values.flatten()
                except (RuntimeError, ValueError):
                    loops = True  # f does what vmap cannot, or is wrong, which it says itself then
            found = [f(x) for x in self._outside.calls(parts)]
            if not all(isinstance(v, Tensor) for v in found):
                return found[0]
            for values in found:
                check_shape(values, shape)
            return torch.stack(found).flatten()

        return call

    def _leading(self, given: Given) -> int:
        sizes = {tuple(p.shape[:1]) for p in given.points.values()}
        for name, p in given.points.items():
            if p.dim() <= given.manifolds[name].ndim:
                raise ValueError(
                    f"with batched=True the leading axis counts problems; {given.manifolds[name]} has points of "
                    f"{given.manifolds[name].ndim} axes, and the start has shape {tuple(p.shape)}. Give it one more."
                )
        if len(sizes) > 1:
            raise ValueError(f"with batched=True all starts have the same leading axis; got lengths {sorted(sizes)}.")
        return int(next(iter(sizes))[0])

    @staticmethod
    def _another(given: Given, generator: torch.Generator | None) -> dict[Name, Tensor]:
        return {
            name: given.manifolds[name].random(tuple(p.shape), generator=generator, dtype=p.dtype, device=p.device)
            for name, p in given.points.items()
        }

    def _mirrors(self, points: dict[Name, Tensor]) -> list[dict[Name, Tensor]]:
        lead = int(self._batched)
        found = {name: determinants(self.manifolds[name], p, lead) for name, p in points.items()}
        counts = {name: 0 if signs is None else signs.shape[-1] for name, signs in found.items()}
        total = sum(counts.values())
        if not total:
            raise ValueError(
                f"both_components=True starts also from the mirror image of each factor on O(n), of one to "
                f"{MOST_FACTORS} factors; there are 0. SO(n), U(n) and matrices of fewer columns are connected, and "
                f"have no other component: leave it out."
            )
        if total > MOST_FACTORS:
            raise ValueError(
                f"both_components=True starts also from the mirror image of each factor on O(n), of one to "
                f"{MOST_FACTORS} factors; there are {total}. Leave it out, or give the starts as a batch."
            )
        images = []
        for pattern in itertools.product((1, -1), repeat=total):
            signs = iter(pattern)
            images.append({name: mirrored(self.manifolds[name], p, lead, signs) for name, p in points.items()})
        return images


def _told(f: Callable[..., Any], drawn: torch.dtype | None) -> Callable[..., Any]:
    """f, whose complaint about dtypes says in which one the start was drawn."""

    def told(x: Any) -> Any:
        try:
            return f(x)
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            raise TypeError(f"{error}. x0 was drawn in {drawn}; write dtype=torch.float64 for another.") from error

    return f if drawn is None else told
