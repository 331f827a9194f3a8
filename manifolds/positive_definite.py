"""Hermitian positive definite matrices, with four metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._mean import attached, karcher, weighted
from ._points import broadcast, check_axes, length, sizes
from .base import GeodesicManifold, check_ndim, tolerance
from .cone import METRICS, Metric
from .cone.engine import ConeEngine
from .cone.metric import kept
from .engine import Engine
from .kernels import hermitian
from .kernels.linalg import may_wait, sym
from .kernels.transforms import whole

Square = Inexact[Tensor, "*batch n n"]
Name = Literal["affine-invariant", "log-euclidean", "log-cholesky", "bures-wasserstein"]


@dataclass(frozen=True)
class PositiveDefinite(GeodesicManifold):
    """{X : X = X^H, all eigenvalues positive}, symmetric where real. Points and tangent vectors are (..., n, n);
    T_X = {V : V = V^H}. The set is open: a value outside is refused, and no step leaves it.

    metric:
    - "affine-invariant": <U, V> = tr(X^-1 U X^-1 V). X -> A X A^H is an isometry for each invertible A.
    - "log-euclidean": <U, V> = tr(Dlog(X)[U] Dlog(X)[V]), the metric of log X as a matrix.
    - "log-cholesky": that of L, X = L L^H, with log L_ii in its diagonal. No eigenvalues: the cheapest of the four.
    - "bures-wasserstein": <U, V> = tr(L U) / 2 with L X + X L = V, so that distance(X, Y)^2 = tr X + tr Y
      - 2 tr (X^1/2 Y X^1/2)^1/2. Singular matrices are at a finite distance.

    Derivatives are finite where eigenvalues meet, as at the identity. A half precision weight is the matrix rounded,
    which is positive definite up to a condition of about 100. Raises ValueError for another metric.
    Source: Bhatia, Positive Definite Matrices (2007), chapter 6; Arsigny, Fillard, Pennec & Ayache (2007); Lin,
    Riemannian geometry of symmetric positive definite matrices via Cholesky decomposition (2019); Bhatia, Jain & Lim,
    On the Bures-Wasserstein distance (2019).

    >>> x, y = torch.eye(2), torch.diag(torch.tensor([1.0, torch.e**2]))
    >>> PositiveDefinite().distance(x, y)
    tensor(2.)
    """

    metric: Name = "affine-invariant"

    ndim = 2

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"metric of PositiveDefinite is one of {', '.join(map(repr, get_args(Name)))}; got {self.metric!r}."
                + " Write PositiveDefinite(): sizes are those of the tensor." * isinstance(self.metric, int)
            )

    @property
    def _metric(self) -> Metric:
        return METRICS[self.metric]

    def project(self, x: Square, a: Square) -> Square:
        """(A + A^H) / 2."""
        return sym(broadcast(self, x, a)[1])

    def residual(self, x: Square) -> Float[Tensor, "*batch"]:
        """|X - X^H| / (2 |X|), a relative error, as points are of any size; inf where X is not positive definite."""
        check_axes(self, x.shape)
        size = length(x, 2)
        skewness = length(x - x.mH, 2) / (2 * torch.where(size == 0, 1, size))
        definite = torch.linalg.cholesky_ex(x.detach()).info == 0
        return torch.where(definite | skewness.isnan(), skewness, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """n (n + 1) / 2 for each matrix. Raises ValueError where it is not square."""
        count, n = _sides(shape)
        return count * n * (n + 1) // 2

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """n^2 for each matrix."""
        count, n = _sides(shape)
        return count * n * n

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Square:
        """exp(S) for the Hermitian part S of a Gaussian matrix of variance 1/n: eigenvalues of about 1/4 to 4."""
        self.dim(shape := sizes(shape))
        gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return hermitian.exp(sym(gaussian) / math.sqrt(shape[-1]))

    def inner(self, x: Square, u: Square, v: Square) -> Float[Tensor, "*batch"]:
        """<U, V> of the metric."""
        return self._metric.inner(*broadcast(self, x, u, v))

    def gradient(self, x: Square, g: Square) -> Square:
        """X sym(G) X; Dexp Dexp[sym(G)] at log X; its like for L; 2 (G X + X G)."""
        return self._metric.gradient(*broadcast(self, x, g))

    def retract(self, x: Square, v: Square) -> Square:
        """X + V + V X^-1 V / 2, second order; exp under the log metrics; T X T with T = L + (I + L^2)^1/2, first order,
        under Bures-Wasserstein, whose exp ends where I + L is singular. Where rounding would leave the cone, each ends
        at 4 n eps of the diagonal before its edge."""
        return kept(self._metric.retract(*broadcast(self, x, v)))

    def transport(self, x: Square, y: Square, v: Square) -> Square:
        """V with the same entries in an orthonormal frame at Y as at X: an isometry.

        The frame is L W L^H for X = L L^H; Dlog(X)^-1[W]; its like for L, where this is parallel along geodesics, as
        under log-Euclidean; W_ij sqrt(2 (a_i + a_j)) in the basis of the eigenvalues a.
        """
        x, y, v = broadcast(self, x, y, v)
        return self._metric.vector(y, self._metric.frame(x, v))

    def exp(self, x: Square, v: Square) -> Square:
        """L exp(L^-1 V L^-H) L^H; exp(log X + Dlog(X)[V]); the same for L; (I + L) X (I + L) with L X + X L = V."""
        return kept(self._metric.exp(*broadcast(self, x, v)))

    def log(self, x: Square, y: Square) -> Square:
        """The V with exp(X, V) = Y, the only one; under Bures-Wasserstein the only one with I + L positive.

        Raises ValueError where X or Y is not Hermitian or not positive definite, where values may be looked at; so do
        `distance` and `mean`.
        """
        x, y = broadcast(self, x, y)
        return self._checked("log", lambda: self._metric.log(x, y), x, y)

    def _log(self, x: Square, y: Square) -> Square:
        return self._metric.log(*broadcast(self, x, y))

    def distance(self, x: Square, y: Square) -> Float[Tensor, "*batch"]:
        """|log(X^-1/2 Y X^-1/2)|; |log X - log Y|; its like for L; Bures-Wasserstein. Derivative 0 at Y = X."""
        x, y = broadcast(self, x, y)
        return self._checked("distance", lambda: self._metric.distance(x, y), x, y)

    def mean(self, x: Square, weights: Float[Tensor, "..."] | None = None) -> Square:
        """argmin over Y of sum_i w_i distance(X_i, Y)^2, over the last batch axis, see `GeodesicManifold.mean`.

        exp(sum w log X_i), and the like for L, in closed form; Y <- T Y T under Bures-Wasserstein, where T is the mean
        of the optimal maps from Y to X_i; by descent under the affine-invariant metric.
        Source: Alvarez-Esteban, del Barrio, Cuesta-Albertos & Matran, A fixed-point approach to barycenters in
        Wasserstein space (2016).
        """
        x, shares = weighted(self, x, weights)
        return self._checked("mean", lambda: self._mean(x, shares), x)

    def _mean(self, x: Square, shares: Tensor) -> Square:
        mean = self._metric.mean(x, shares)
        if mean is None:
            return karcher(self, x, shares, self._log)
        if self._metric.is_flat:
            return mean
        return attached(self, mean.unsqueeze(-3), x, shares, self._log).squeeze(-3)

    def _checked(self, what: str, compute: Callable[[], Tensor], *points: Square) -> Tensor:
        """ValueError where what is computed of points is wrong in silence, NaN, or fails: none of the formulas looks at
        both triangles, and a logarithm needs positive eigenvalues."""
        if not all(map(may_wait, points)):
            return compute()
        shape = tuple(points[-1].shape)
        for x in points:
            size, off = (whole(length(a.detach(), 2)) for a in (x, x - x.mH))
            if bool((off > 2 * tolerance(x.dtype) * size).any()):
                raise ValueError(
                    f"{what} on {self} is of symmetric matrices, A = A^H; got shape {shape} with others. Take "
                    f"(A + A.mH) / 2, or fill the triangle that is missing."
                )
        failed, found = None, None
        try:
            found = compute()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            failed = error
        if found is not None and not bool(whole(found.detach()).isnan().any()):
            return found
        if not all(bool(whole(x.detach()).isfinite().all()) for x in points):
            if found is not None:
                return found  # NaN of what is NaN
            raise ValueError(
                f"{what} on {self} is of positive definite matrices; got shape {shape} with NaN or infinite entries. "
                "Look for where they come from, or leave those matrices out."
            ) from failed
        raise ValueError(
            f"{what} on {self} is of positive definite matrices; got shape {shape} with one that has an eigenvalue of "
            "0 or less, to rounding. Add a multiple of the identity, as to covariances of fewer samples than variables."
        ) from failed

    def _engine(self) -> Engine:
        return _DefiniteEngine(self, self._metric)


class _DefiniteEngine(ConeEngine):
    def move(self, x: Square, c: Square) -> Square:
        """Not out of the cone by rounding."""
        return kept(super().move(x, c))


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    count, (n, m) = check_ndim("PositiveDefinite", shape, 2)
    if n != m:
        raise ValueError(
            f"PositiveDefinite holds square matrices; got shape {tuple(shape)}. Cut the tensor into square blocks with "
            f"a product and a layout."
        )
    return count, n
