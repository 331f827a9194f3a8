"""The contract every manifold keeps, and the algebra of products.

A manifold is a frozen value: no tensor inside, equal by value, hashable, picklable. Points are tensors whose
last `ndim` axes make one point; every leading axis is a batch axis. Tangent vectors are ambient: they have the
shape of their point, and v is what is added to x, so R_x(tv) = x + tv + O(t^2) holds as written.
"""

from __future__ import annotations

import inspect
from abc import ABC, ABCMeta, abstractmethod, update_abstractmethods
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from ._points import broadcast as broadcast  # what a family needs of it, too
from ._points import check_axes as check_axes
from ._points import check_map, root
from ._points import check_ndim as check_ndim
from ._points import inner as inner
from ._points import length as length
from ._points import per_point as per_point
from ._points import sizes as sizes
from .kernels.precision import as_given, maps_in_full_precision

if TYPE_CHECKING:
    from .engine import Engine
    from .product import ProductManifold


class ManifoldMeta(ABCMeta):
    """Lets the algebra be written on classes: `Stiefel**3` means `Stiefel()**3`. Maps have full precision."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        maps_in_full_precision(cls)
        # who writes nearest into a plain Manifold means the closed set that it makes
        if "nearest" in namespace and name != "NearestPointManifold" and not issubclass(cls, NearestPointManifold):
            for derived in ("retract", "residual", "random"):
                if getattr(getattr(cls, derived), "__isabstractmethod__", False):
                    setattr(cls, derived, vars(NearestPointManifold)[derived])
            update_abstractmethods(cls)
            NearestPointManifold.register(cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        frozen = getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)
        if not frozen and not cls.__abstractmethods__:
            raise TypeError(
                f"{cls.__name__} is a manifold, and those are values: equal where their options are, and hashable. "
                f"Write @dataclass(frozen=True) above class {cls.__name__}, with its options as fields."
            )
        return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the options, for help() and editors, which else show that of `__call__`."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __mul__(cls, other: Manifold | type[Manifold]) -> ProductManifold:
        instance: Manifold = cls()
        return instance * other

    def __pow__(cls, count: int) -> ProductManifold:
        instance: Manifold = cls()
        return instance**count


class Manifold(ABC, metaclass=ManifoldMeta):
    """What a set of tensors must say to be optimized over.

    A subclass is a frozen dataclass that defines `ndim`, `project`, `retract`, `residual`, `random` and `dim`;
    everything else follows from these six and may be overridden by something cheaper. A closed set, which has a
    nearest point for any tensor, is better written as a `NearestPointManifold`, where four are enough.
    `manifolds.testing.check_manifold` states the contract as theorems and says which of them a new manifold breaks.

    In the formulas x, y are points, u, v tangent vectors, a any ambient tensor, g a Euclidean gradient.
    Source: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), chapters 3 and 7.

    >>> Stiefel * Euclidean**2
    Stiefel * Euclidean**2
    >>> Stiefel() == Stiefel(), (Stiefel**3).dim((12, 4))
    (True, 18)
    """

    constant_norm: bool = False
    """All points have the same norm, so that L2 weight decay is normal to the manifold and does nothing."""

    is_quotient: bool = False
    """Tensors are representatives: different ones may be the same point, as X and X Q of a subspace."""

    # What a manifold must define -------------------------------------------------------------------------

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of trailing axes that make one point: 1 for vectors, 2 for matrices. A class attribute will do."""

    @abstractmethod
    def project(self, x: Inexact[Tensor, "..."], a: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """argmin over v in T_x of |v - a|: the tangent vector at x nearest to a. Shapes of x, a and result agree."""

    @abstractmethod
    def retract(self, x: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """R_x(v), with R_x(tv) = x + tv + O(t^2): the point reached from x along v."""

    @abstractmethod
    def residual(self, x: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Distance from feasibility, one number per point: 0 on M, NaN where x has a NaN."""

    @abstractmethod
    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Inexact[Tensor, "..."]:
        """A random point of this shape, numbers or one tuple of them; uniform (Haar) where M is compact."""

    @abstractmethod
    def dim(self, shape: Sequence[int]) -> int:
        """Degrees of freedom of real points of this shape, batch axes included.

        Raises ValueError, with the shape and the way out, where no point has this shape.
        """

    # What follows ----------------------------------------------------------------------------------------

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """Degrees of freedom, real ones, of complex points of this shape; 2 dim(shape) unless overridden."""
        return 2 * self.dim(shape)

    def contains(self, x: Inexact[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """residual(x) <= `tolerance`(x.dtype), one truth value per point; False where x has a NaN."""
        return self.residual(x) <= tolerance(x.dtype)

    def gradient(self, x: Inexact[Tensor, "..."], g: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The v in T_x with inner(x, v, u) = Re<g, u> for every u in T_x; project(x, g) for the ambient metric."""
        return self.project(x, g)

    def inner(
        self, x: Inexact[Tensor, "..."], u: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """Re<u, v>, one number per point: the metric of the ambient space unless overridden."""
        _, u, v = broadcast(self, x, u, v)
        return inner(u, v, self.ndim)

    def norm(self, x: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
        """sqrt(inner(x, v, v)), one number per point, with derivative 0 at v = 0."""
        return root(self.inner(x, v, v))

    def transport(
        self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """v carried from T_x to T_y, linear in v; project(y, v) unless overridden."""
        _, y, v = broadcast(self, x, y, v)
        return self.project(y, v)

    def random_tangent(
        self, x: Inexact[Tensor, "..."], generator: torch.Generator | None = None
    ) -> Inexact[Tensor, "..."]:
        """project(x, Gaussian): a Gaussian tangent vector at x, isotropic in the ambient metric."""
        return self.project(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))

    def _engine(self) -> Engine:
        """What optimizers and trivializations call in place of the methods above; see `manifolds.engine`."""
        from .engine import Engine  # which knows of this class

        return Engine(self)

    # The algebra -----------------------------------------------------------------------------------------

    def __mul__(self, other: Manifold | type[Manifold]) -> ProductManifold:
        """M * N: points of M and of N stacked on axis 0."""
        from .algebra import product

        return product(self, other)

    def __pow__(self, count: int) -> ProductManifold:
        """M**k: k points of M stacked on axis 0."""
        from .algebra import power

        return power(self, count)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # @dataclass writes a repr with every default; it leaves alone one that is there already
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = [(f, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        options = [
            f"{f.name}={getattr(v, '__name__', repr(v))}" for f, v in values if f.default is MISSING or v != f.default
        ]
        return type(self).__name__ + (f"({', '.join(options)})" if options else "")


class NearestPointManifold(Manifold):
    """A closed set: for any tensor there is a nearest point, from which retraction, residual and random points follow.

    A subclass defines `ndim`, `project`, `nearest` and `dim`. A `Manifold` that defines `nearest` becomes one.

    >>> isinstance(Stiefel(), NearestPointManifold)
    True
    """

    @abstractmethod
    def nearest(self, x: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """argmin over y in M of |y - x|: the point of M nearest to x. Keeps a point where it is."""

    def residual(self, x: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
        """|x - nearest(x)|, one number per point: the distance from feasibility. NaN where x has a NaN.

        Raises LinAlgError where `nearest` does for finite x.
        """
        check_axes(self, x.shape)
        try:
            near = self.nearest(x)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if bool(x.isfinite().all()):
                raise
            near = torch.full_like(x, torch.nan)  # of all points: a decomposition says not of which it is
        return length(x - check_map(self, "nearest", x, near), self.ndim)

    def retract(self, x: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """R_x(v), with R_x(tv) = x + tv + O(t^2); nearest(x + v) unless overridden."""
        x, v = broadcast(self, x, v)
        return self.nearest(x + v)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Inexact[Tensor, "..."]:
        """A random point of this shape: nearest(Gaussian), which is uniform where M is a compact homogeneous space.

        The shape is numbers or one tuple of them.
        """
        self.dim(shape := sizes(shape))
        gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return check_map(self, "nearest", gaussian, self.nearest(gaussian))


class GeodesicManifold(Manifold):
    """A manifold whose geodesics are known: exp, log and distance.

    >>> isinstance(Sphere(), GeodesicManifold)
    True
    """

    @abstractmethod
    def exp(self, x: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The geodesic of the metric that leaves x with velocity v, at time 1."""

    @abstractmethod
    def log(self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The shortest v in T_x with exp(x, v) = y."""

    def distance(self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
        """|log(x, y)|, the length of the shortest path, one number per pair."""
        return self.norm(x, self.log(x, y))

    def geodesic(
        self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."], t: float | Float[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """exp(x, t log(x, y)): from x at t = 0 to y at t = 1; t a number, or one for each pair."""
        v = self.log(x, y)
        return self.exp(x, v * (per_point(t.to(v.real.dtype), self.ndim) if isinstance(t, Tensor) else t))

    def mean(self, x: Inexact[Tensor, "..."], weights: Float[Tensor, "..."] | None = None) -> Inexact[Tensor, "..."]:
        """argmin over y of sum_i w_i distance(x_i, y)^2, the Karcher mean over the last batch axis of x.

        x is (*batch, N, *point), weights (*batch, N) or (N,), nonnegative with a positive sum, None for equal ones. A
        point of weight 0 may be anything. Iterates y <- exp(y, sum_i w_i log(y, x_i)), with shorter steps where these
        go too far, until that tangent vector is rounding. Differentiable, twice too, in points and weights.
        Raises ValueError where x has no axis to take the mean over, weights do not fit or a point is not finite,
        RuntimeError where the iteration does not settle, as for points that are not within one convex ball.
        Source: Afsari, Tron & Vidal, On the convergence of gradient descent for finding the Riemannian center of
        mass (2013).
        """
        from ._mean import karcher, weighted  # which know of this class

        return karcher(self, *weighted(self, x, weights))


def tolerance(dtype: torch.dtype) -> float:
    """128 eps of the dtype: a residual up to this is rounding, not a point off the manifold.

    >>> f"{tolerance(torch.float32):.1e}"
    '1.5e-05'
    """
    return 128 * torch.finfo(as_given(dtype)).eps
