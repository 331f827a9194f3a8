"""f as solvers see it: its value, its gradient and what its Hessian is computed from, at rows of a `Space`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .derivative import derivative
from .numbers import Number
from .outside import Outside
from .space import Rows, Space


@dataclass
class Evaluations:
    """How often f was called, differentiated, and multiplied by its Hessian.

    >>> Evaluations(values=3, gradients=2)
    Evaluations(values=3, gradients=2, hessians=0)
    """

    values: int = 0
    gradients: int = 0
    hessians: int = 0


class Evaluation:
    """f at x: the value, and the graph from which its derivatives come."""

    def __init__(
        self, problem: Problem, x: Rows, leaves: Sequence[Tensor], values: Tensor, slopes: Sequence[Tensor | None] = ()
    ) -> None:
        """slopes: the gradient by each leaf, where it is known."""
        self.problem, self.x, self.leaves = problem, x, leaves
        self.value: Number = values.detach().reshape(-1, 1).to(x.dtype) if problem.space.batched else values.item()
        self._values: Tensor | None = values
        self._slopes: list[Tensor] = []
        self._gradient: Rows | None = None
        if slopes and not problem.twice:
            self._take(slopes)

    @property
    def slopes(self) -> list[Tensor]:
        """The Euclidean gradient, piece by piece; with its own graph where the problem is differentiated `twice`."""
        total, problem = self._values, self.problem
        if total is not None:
            if total.dim():
                with problem.graph:
                    total = total.sum()
            self._take(derivative((total,), (problem.one(total),), self.leaves, twice=problem.twice))
        return self._slopes

    def _take(self, slopes: Sequence[Tensor | None]) -> None:
        self.problem.counts.gradients += 1
        pairs = zip(slopes, self.leaves, strict=True)
        self._slopes, self._values = [leaf.new_zeros(leaf.shape) if g is None else g for g, leaf in pairs], None

    @property
    def gradient(self) -> Rows:
        """The Riemannian gradient."""
        if self._gradient is None:
            slopes = self.slopes
            if self.problem.twice:
                slopes = [g.detach() for g in slopes]
            self._gradient = self.problem.space.gradient_of(self.x, slopes)
        return self._gradient


class Problem:
    """f: R-valued on the points of a `Space`; call: takes the pieces of x, which need a gradient, to (B,) values.

    Raises what f raises, and ValueError or TypeError where f is no smooth function of x: not a real scalar, not
    dependent on x, or one that writes into x.
    """

    def __init__(
        self,
        space: Space,
        call: Callable[[list[Tensor]], Any],
        rows: int,
        outside: Outside,
        place: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        """outside: how functions of the user see points.

        place: writes a point into tensors that f reads by itself, as the parameters of a model, and gives these."""
        self.space, self.rows, self.outside, self.counts = space, rows, outside, Evaluations()
        self._call, self._place, self._checked = call, place, False
        self.twice = False
        """Whether second derivatives are wanted, so that the graphs of first ones are kept."""
        self.seen_linear = False
        """Whether it was asked if f is linear, where autograd takes it for that, see `hessians`."""
        self._one: Tensor | None = None
        self.graph = torch.enable_grad()
        self.tol = 0.0
        """The gradient norm that is asked for."""
        self.out_of_time: Callable[[], bool] = lambda: False

    @property
    def keeps_graphs(self) -> bool:
        """Whether the derivatives of an `Evaluation` can be asked for after f was called elsewhere."""
        return self._place is None

    def at(self, x: Rows) -> Evaluation:
        """f at x."""
        leaves = [part.detach() for part in self.space.split(x)]
        if self._place is None:
            for leaf in leaves:
                leaf.requires_grad_()
        else:
            leaves = self._place(leaves)
        versions = [leaf._version for leaf in leaves]
        kept = None if self._checked else x.clone()
        self.counts.values += 1
        with self.graph:
            values = self._called(leaves)
            slopes = () if kept is None else self._check(values, leaves)
        if versions != [leaf._version for leaf in leaves] or not (kept is None or _same(kept, x)):
            raise _writes()
        return Evaluation(self, x, leaves, values, slopes)

    def one(self, like: Tensor) -> Tensor:
        """The number 1 as a tensor like this one."""
        one = self._one
        if one is None or one.dtype is not like.dtype or one.device != like.device:
            one = self._one = torch.ones_like(like, memory_format=torch.contiguous_format).detach()
        return one

    def _called(self, leaves: list[Tensor]) -> Tensor:
        try:
            values = self._call(leaves)
        except RuntimeError as error:
            if "in-place operation" in str(error) and "leaf" in str(error):
                raise _writes() from error
            raise
        if not isinstance(values, Tensor):
            raise TypeError(
                f"f returns a tensor, from which torch differentiates; got {type(values).__name__}. Compute it from x "
                f"with torch, and leave out .item() and .numpy()."
            )
        return values

    def _check(self, values: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The gradient by each leaf."""
        check_shape(values, (self.rows,) if self.space.batched else ())
        if not values.is_floating_point():
            way = "Take its real part" if values.is_complex() else "Compute it in floating point"
            raise TypeError(f"f returns a real floating-point number; got dtype {values.dtype}. {way}.")
        if not values.requires_grad:
            raise ValueError(
                "f does not depend on x as far as autograd knows. Compute it from its argument with torch, without "
                "detach(), .data, .item() or torch.no_grad()."
            )
        try:
            total = values.sum() if values.dim() else values
            found = derivative((total,), (self.one(total),), leaves, keep=True)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise ValueError(
                "the graph of what f returns is gone: f calls backward(), which solvers do themselves. Leave it out."
            ) from error
        if all(g is None for g in found) and self._place is not None:
            raise ValueError("the loss does not depend on any parameter of the model. Compute it from this model.")
        unused = [str(piece) for piece, g in zip(self.space.pieces, found, strict=True) if g is None]
        if unused and self._place is None:
            raise ValueError(
                f"f does not depend on {', '.join(unused)}. Use it in f, or leave it out of x0 and manifold."
            )
        if self.space.batched and self.rows > 1:
            first = torch.autograd.grad(values[0], leaves, retain_graph=True, allow_unused=True)
            if any(g is not None and bool((g[1:].abs() > 0).any()) for g in first):
                raise ValueError(
                    "with batched=True the problems are independent: f(x)[i] depends on x[i] only; got a value that "
                    "depends on other rows. Drop batched=True to solve them as one problem, with the sum of the values."
                )
        self._checked = True
        return found


def check_shape(values: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless f returned values of this shape: (B,), or () for one problem."""
    if tuple(values.shape) != shape:
        what = f"{shape[0]} numbers, one for each problem," if shape else "one number"
        way = "Reduce over every axis but the first." if shape else "Add up what it returns."
        raise ValueError(f"f returns {what} of shape {shape}; got shape {tuple(values.shape)}. {way}")


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all())


def _writes() -> ValueError:
    return ValueError("f changes its argument x in place. Let it work on x.clone().")
