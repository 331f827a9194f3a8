"""Metrics that are Euclidean in a chart: log-Euclidean and log-Cholesky."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Inexact
from torch import Tensor

from .._points import length
from ..kernels import hermitian
from ..kernels.hermitian import cholesky
from ..kernels.linalg import sym
from .metric import Metric, Numbers, Square, diagonal, entries, inside


class Flat(Metric):
    """A metric that is Euclidean in a chart onto a vector space; frames are what is added there."""

    is_flat = True

    @abstractmethod
    def chart(self, x: Square) -> Square: ...

    @abstractmethod
    def point(self, c: Square) -> Square:
        """The inverse of `chart`."""

    def exp(self, x: Square, v: Square) -> Square:
        return self.move(x, self.frame(x, v))

    def move(self, x: Square, w: Square) -> Square:
        return self.point(self.chart(x) + w)

    def log(self, x: Square, y: Square) -> Square:
        return self.vector(x, self.chart(y) - self.chart(x))

    def distance(self, x: Square, y: Square) -> Numbers:
        return length(self.chart(y) - self.chart(x), 2)

    def mean(self, x: Square, shares: Inexact[Tensor, "*batch N 1 1"]) -> Square:
        return self.point((shares * self.chart(x)).sum(-3))


class LogEuclidean(Flat):
    """tr(Dlog(X)[U] Dlog(X)[V]): the chart is log X."""

    def chart(self, x: Square) -> Square:
        return hermitian.log(x)

    def point(self, c: Square) -> Square:
        return hermitian.exp(c)

    def frame(self, x: Square, v: Square) -> Square:
        return hermitian.log_at(x, v)

    def vector(self, x: Square, w: Square) -> Square:
        return hermitian.exp_at(x, w)

    def pulled(self, x: Square, g: Square) -> Square:
        return hermitian.exp_at(x, g)


class LogCholesky(Flat):
    """The chart is L for X = L L^H, with log L_ii on its diagonal; frames are triangular."""

    def frames(self, a: Square) -> Square:
        return a.tril(-1) + diagonal(a.diagonal(dim1=-2, dim2=-1).real, a)

    def chart(self, x: Square) -> Square:
        factor = cholesky(x)
        return factor.tril(-1) + diagonal(entries(factor).log(), x)

    def point(self, c: Square) -> Square:
        factor = c.tril(-1) + diagonal(entries(c).exp(), c)
        return factor @ factor.mH

    def frame(self, x: Square, v: Square) -> Square:
        factor = cholesky(x)
        a = inside(factor, v)
        d = factor @ (a.tril(-1) + diagonal(entries(a) / 2, a))
        return d.tril(-1) + diagonal(entries(d) / entries(factor), d)

    def vector(self, x: Square, w: Square) -> Square:
        factor = cholesky(x)
        half = (w.tril(-1) + diagonal(entries(w) * entries(factor), w)) @ factor.mH
        return half + half.mH

    def pulled(self, x: Square, g: Square) -> Square:
        factor = cholesky(x)
        a = 2 * sym(g) @ factor
        return a.tril(-1) + diagonal(entries(a) * entries(factor), a)
