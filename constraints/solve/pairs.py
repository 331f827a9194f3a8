"""The last steps s and changes y of the gradient, and the product of a vector with the inverse Hessian they make.

From H = scale I each pair in turn, the oldest first, makes H <- (I - w s y^T) H (I - w y s^T) + w s s^T, with weight
w = 1 / <s, y>; one of weight 0 changes nothing.
Source: Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from operator import mul
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .numbers import Number, Truth, all_, full, is_finite, no, over, plus, where
from .space import Rows, Space


class Step(NamedTuple):
    """From x, where the gradient is g of this norm, by t d, which has this length, to the point `end` with gradient
    `after`; done: where there was a step; ended: where there was one, or there will be none."""

    x: Rows
    g: Rows
    norm: Number
    d: Rows
    t: Number
    length: Number
    end: Rows
    after: Rows
    done: Truth
    ended: Truth


class Pairs(ABC):
    """weights: of the pairs, from the oldest on. scale: of the matrix that they change. most: how many are kept."""

    def __init__(self, most: int, scale: Number) -> None:
        self.most, self.scale = most, scale
        self.weights: list[Number] = []

    @abstractmethod
    def times(self, space: Space, x: Rows, g: Rows) -> Rows:
        """-H g at x."""

    @abstractmethod
    def add(self, space: Space, step: Step, caution: float) -> None:
        """Go to the end of a step, and add its pair, which has a weight where <s, y> >= caution |g| <s, s>. Where the
        step ended and was none the others get weight 0, for they are wrong; where it did not end all stays."""

    @abstractmethod
    def stacked(self) -> tuple[Float[Tensor, "k *rows N"], Float[Tensor, "k *rows N"]]:
        """All s and all y, from the oldest on."""

    @abstractmethod
    def restore(self, space: Space, s: Rows, y: Rows, weight: Number) -> None:
        """Add a pair that `stacked` gave."""

    def none_used(self) -> Truth:
        """Where H is a multiple of the identity."""
        used = self.scale < 0
        for weight in reversed(self.weights):
            used = used | (weight > 0)
            if used is True:
                break
        return no(used)

    def _weigh(self, step: Step, caution: float, curvature: Number, square: Number) -> None:
        """With curvature = <s, y> and square = <y, y> of the pair that is added."""
        good = step.done & (curvature > caution * step.norm * step.length * step.length) & is_finite(curvature)
        self.scale = where(good, over(curvature, square), self.scale)
        weights = self._kept(self.weights)
        self.weights = weights if step.done is True else [where(step.done, weight, 0.0) for weight in weights]
        self.weights.append(where(good, over(1.0, curvature), 0.0))

    def _kept(self, each: list[Any]) -> list[Any]:
        """Of the pairs from the oldest on those that stay beside one more."""
        return each[max(0, len(each) + 1 - self.most) :]


def no_pairs(space: Space, memory: int, like: Number, x: Rows) -> Pairs:
    """None yet. As many pairs as there are dimensions know all of the Hessian, so that no more are kept."""
    most, scale = min(memory, max(1, space.dim())), full(like, 1.0)
    return Still(most, scale, x) if space.lies_still and not space.batched else Carried(most, scale)


class Carried(Pairs):
    """Pairs that are transported to each new point, all in one call, but where they lie still.

    Of a batch the oldest pair is dropped where a step ended, so that each problem has the last ones of its own.
    """

    def __init__(self, most: int, scale: Number) -> None:
        super().__init__(most, scale)
        self._s: list[Rows] = []
        self._y: list[Rows] = []

    def times(self, space: Space, x: Rows, g: Rows) -> Rows:
        kept: list[Number] = []
        for s, y, weight in zip(reversed(self._s), reversed(self._y), reversed(self.weights), strict=True):
            kept.append(weight * space.inner(x, s, g))
            g = plus(g, -kept[-1], y)
        g = g * -self.scale
        for s, y, weight, a in zip(self._s, self._y, self.weights, reversed(kept), strict=True):
            g = plus(g, -a - weight * space.inner(x, y, g), s)
        return space.aimed(x, g) if self._s and space.lies_still else g

    def add(self, space: Space, step: Step, caution: float) -> None:
        before = self._s, self._y, self.weights
        s, y = self._kept(self._s), self._kept(self._y)
        old, last = step.g, step.d * step.t
        if not space.lies_still:
            stack = space.transport(step.x, step.end, torch.stack([old, last, *s, *y]))
            old, last, *others = stack.unbind()
            s, y = others[: len(s)], others[len(s) :]
        change = step.after - old
        self._s, self._y = [*s, last], [*y, change]
        curvature, square = (space.inner(step.end, change, each) for each in (last, change))
        self._weigh(step, caution, curvature, square)
        if not all_(step.ended):
            now = self._s, self._y, self.weights
            self._s, self._y, self.weights = (
                _aligned(step.ended, new, old) for new, old in zip(now, before, strict=True)
            )

    def stacked(self) -> tuple[Tensor, Tensor]:
        return torch.stack(self._s), torch.stack(self._y)

    def restore(self, space: Space, s: Rows, y: Rows, weight: Number) -> None:
        self._s, self._y, self.weights = [*self._s, s], [*self._y, y], [*self.weights, weight]


def _aligned(ended: Truth, new: list[Any], old: list[Any]) -> list[Any]:
    """The new list where a step ended, else the old one: both with the youngest at the end, and none before the
    oldest."""
    old = old[-len(new) :]
    none = torch.zeros_like(new[0])
    return [where(ended, a, b) for a, b in zip(new, [none] * (len(new) - len(old)) + old, strict=True)]


class Still(Pairs):
    """Pairs that lie still, of one problem: their inner products are made once, and H g of two passes over all of them.

    The steps of the product above are taken on its coefficients: -H g = -scale g + sum c_i s_i + sum b_i y_i.
    """

    def __init__(self, most: int, scale: float, like: Rows) -> None:
        super().__init__(most, scale)
        self._count, self._oldest = 0, 0
        """How many pairs there are; where the oldest is, after which the others lie in a ring."""
        self._rows = like.new_zeros(2 * most, *like.shape)
        """All s, then all y; 0 where there is none yet."""
        self._across, self._views = self._rows.T, self._rows.unbind()
        # lists, from the oldest pair on
        self._s_younger: list[list[float]] = []
        """<s_i, y_j> for each i, of the pairs j younger than i, from the youngest on."""
        self._older_y: list[list[float]] = []
        """<s_i, y_j> for each j, of the pairs i older than j, from the youngest on; the last may be gone by now."""
        self._yy: list[deque[float]] = []
        """<y_i, y_j> for each i, of all pairs j, from the oldest on."""

    def times(self, space: Space, x: Rows, g: Rows) -> Rows:
        scale, weights = self.scale, self.weights
        if not self._count:
            return g.mul(-scale)
        s_g, y_g = self._with(space, g)
        a: list[float] = []
        for i in range(self._count - 1, -1, -1):
            a.append(weights[i] * (s_g[i] - sum(map(mul, self._s_younger[i], a))))
        a.reverse()
        c: list[float] = []
        for number, weight, each, with_s, with_y in zip(y_g, weights, a, self._older_y, self._yy, strict=True):
            rest = scale * (number - sum(map(mul, with_y, a))) - sum(map(mul, with_s, reversed(c)))
            c.append(weight * rest - each)
        b = [scale * each for each in a]
        return space.aimed(x, space.combined(-scale, g, self._in_ring(c) + self._in_ring(b), self._across))

    def add(self, space: Space, step: Step, caution: float) -> None:
        k = self._next()
        if step.t == 1:  # most are, and this is faster
            self._views[k].copy_(step.d)
        else:
            torch.mul(step.d, step.t, out=self._views[k])
        torch.sub(step.after, step.g, out=self._views[self.most + k])
        self._weigh(step, caution, *self._multiply(space, k))

    def stacked(self) -> tuple[Tensor, Tensor]:
        order = [(self._oldest + i) % self.most for i in range(self._count)]
        return self._rows[: self.most][order], self._rows[self.most :][order]

    def restore(self, space: Space, s: Rows, y: Rows, weight: Number) -> None:
        k = self._next()
        self._views[k].copy_(s)
        self._views[self.most + k].copy_(y)
        self._multiply(space, k)
        self.weights = [*self._kept(self.weights), weight]

    def _next(self) -> int:
        """Where the youngest pair goes, in place of the oldest where there are enough."""
        if self._count < self.most:
            self._count += 1
            return self._count - 1
        k = self._oldest
        self._oldest = (k + 1) % self.most
        for lists in (self._s_younger, self._older_y, self._yy):
            del lists[0]
        return k

    def _with(self, space: Space, v: Rows) -> tuple[list[float], list[float]]:
        """<s_i, v> and <y_i, v>, from the oldest pair on."""
        numbers, first, most = space.dots(self._rows, v), self._oldest, self.most
        if self._count < most:
            return numbers[: self._count], numbers[most : most + self._count]
        middle = most + first
        return numbers[first:most] + numbers[:first], numbers[middle:] + numbers[most:middle]

    def _in_ring(self, numbers: list[float]) -> list[float]:
        """Numbers of pairs from the oldest on, as the pairs lie; 0 where there is none yet."""
        if self._count < self.most:
            return numbers + [0.0] * (self.most - self._count)
        turn = self.most - self._oldest
        return numbers[turn:] + numbers[:turn]

    def _multiply(self, space: Space, k: int) -> tuple[float, float]:
        """<s, y> and <y, y> of the youngest pair, whose products with the others are kept."""
        with_s, with_y = self._with(space, self._views[self.most + k])
        curvature = with_s.pop()
        for products, number in zip(self._s_younger, with_s, strict=True):
            products.insert(0, number)
        for row, number in zip(self._yy, with_y, strict=False):
            row.append(number)
        self._s_younger.append([])
        self._older_y.append(with_s[::-1])
        self._yy.append(deque(with_y, self.most))
        return curvature, with_y[-1]
