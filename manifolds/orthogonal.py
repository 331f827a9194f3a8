"""The orthogonal group O(n), the unitary group U(n), and their parts with determinant 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import _group
from ._points import broadcast, sizes
from .base import GeodesicManifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels import orthonormal, rotation
from .kernels.determinant import determinant_phase, unit_determinant
from .kernels.exponential import exp_move
from .kernels.linalg import orthogonality_error, skew
from .retractions import Retraction, cayley, exp

Square = Inexact[Tensor, "*batch n n"]


@dataclass(frozen=True)
class Orthogonal(NearestPointManifold, GeodesicManifold):
    """Square matrices (..., n, n) with X^H X = I: O(n), or U(n) for complex tensors; metric Re tr(U^H V).

    T_X = {X Omega : Omega skew(-Hermitian)}. Optimization keeps the sign of the determinant it starts with: O(n) has
    two parts, and no path joins them.
    retraction: a function (x, v) -> y; engines use Cayley for `polar`, see `Stiefel`.
    Raises ValueError for matrices that are not square.
    Source: Edelman, Arias & Smith (1998), section 2.2; Boumal (2023), section 7.4.

    >>> u = Orthogonal().random(4, 4, dtype=torch.complex128)  # unitary
    >>> torch.allclose(u.mH @ u, torch.eye(4, dtype=u.dtype))
    True
    """

    retraction: Retraction = cayley

    ndim = 2
    constant_norm = True

    def __post_init__(self) -> None:
        _group.check_retraction("Orthogonal", self.retraction)

    def project(self, x: Square, a: Square) -> Square:
        """X skew(X^H A)."""
        _check_square("Orthogonal", x.shape)
        return _group.project(*broadcast(self, x, a))

    def nearest(self, x: Square) -> Square:
        """The polar factor W V^H of X = W S V^H. Raises ValueError for deficient rank, NaN or Inf."""
        _check_square("Orthogonal", x.shape)
        return orthonormal.polar_factor(x)

    def dim(self, shape: Sequence[int]) -> int:
        """n (n - 1) / 2 for each matrix."""
        count, n = _sides("Orthogonal", shape)
        return count * (n * (n - 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """n^2 for each matrix."""
        count, n = _sides("Orthogonal", shape)
        return count * n**2

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Square:
        """A uniform (Haar) random point."""
        self.dim(shape := sizes(shape))
        return orthonormal.haar(shape, generator, dtype, device)

    def residual(self, x: Square) -> Float[Tensor, "*batch"]:
        """max |X^H X - I|."""
        _check_square("Orthogonal", x.shape)
        return orthogonality_error(x)

    def retract(self, x: Square, v: Square) -> Square:
        """retraction(X, V)."""
        return self.retraction(*broadcast(self, x, v))

    def transport(self, x: Square, y: Square, v: Square) -> Square:
        """Y X^H V: the same Omega at Y, an isometry."""
        return _group.transport(*broadcast(self, x, y, v))

    def exp(self, x: Square, v: Square) -> Square:
        """X exp(X^H V)."""
        return exp(*broadcast(self, x, v))

    def log(self, x: Square, y: Square) -> Square:
        """X Omega, with the shortest skew Omega of exp(Omega) = X^H Y: all angles up to pi, to rounding.

        Where an angle is pi and several are shortest, one of them. No derivative where two eigenvalues of Omega are
        2 pi apart, where it jumps: those directions are left out.
        Raises ValueError where the determinants of real X and Y have different signs, as no path joins them; NaN in a
        graph that is recorded.
        """
        return _group.log(self, *broadcast(self, x, y))

    def distance(self, x: Square, y: Square) -> Float[Tensor, "*batch"]:
        """sqrt(sum_i theta_i^2) over the angles of the eigenvalues e^(i theta) of X^H Y, sqrt(2) times the angle of a
        rotation of R^3; infinite where no path joins X and Y."""
        return _group.distance(*broadcast(self, x, y))

    def _engine(self) -> Engine:
        return _group.SquareEngine(self, self.retraction)


@dataclass(frozen=True)
class SpecialOrthogonal(NearestPointManifold, GeodesicManifold):
    """Rotations: square matrices (..., n, n) with X^H X = I and det X = 1; SO(n), or SU(n) for complex tensors.

    T_X = {X Omega : Omega skew(-Hermitian), tr Omega = 0}; metric Re tr(U^H V).
    retraction: a function (x, v) -> y that moves along a path on O(n), as all of `retractions` do; on SU(n) the
    result is multiplied by the phase that makes its determinant 1.
    Raises ValueError for matrices that are not square. The `residual` of a reflection is 2.
    Source: as for `Orthogonal`.

    >>> SpecialOrthogonal().random(10, 3, 3).det().round().unique()
    tensor([1.])
    """

    retraction: Retraction = cayley

    ndim = 2
    constant_norm = True

    def __post_init__(self) -> None:
        _group.check_retraction("SpecialOrthogonal", self.retraction)

    def project(self, x: Square, a: Square) -> Square:
        """X skew(X^H A), less its trace part on SU(n)."""
        _check_square("SpecialOrthogonal", x.shape)
        x, a = broadcast(self, x, a)
        return x @ _group.traceless(skew(x.mH @ a))

    def nearest(self, x: Square) -> Square:
        """The polar factor W V^H of X = W S V^H if its determinant is 1; else its singular directions are turned until
        it is, most that of the smallest singular value. Raises ValueError where that is not unique, as for diag(1, 1,
        -1) and for rank n - 2 or less, and for NaN or Inf."""
        _check_square("SpecialOrthogonal", x.shape)
        return rotation.nearest(x)

    def dim(self, shape: Sequence[int]) -> int:
        """n (n - 1) / 2 for each matrix."""
        count, n = _sides("SpecialOrthogonal", shape)
        return count * (n * (n - 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """n^2 - 1 for each matrix."""
        count, n = _sides("SpecialOrthogonal", shape)
        return count * (n**2 - 1)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Square:
        """A uniform (Haar) random point: the rotation nearest to a Gaussian matrix."""
        self.dim(shape := sizes(shape))
        gaussian = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
        return rotation.turned(*torch.linalg.svd(gaussian))

    def residual(self, x: Square) -> Float[Tensor, "*batch"]:
        """The larger of max |X^H X - I| and |det X - 1|, the latter being 2 for a reflection."""
        _check_square("SpecialOrthogonal", x.shape)
        return torch.maximum(orthogonality_error(x), _determinant_error(x))

    def retract(self, x: Square, v: Square) -> Square:
        """retraction(X, V), with determinant 1."""
        return unit_determinant(self.retraction(*broadcast(self, x, v)))

    def transport(self, x: Square, y: Square, v: Square) -> Square:
        """Y X^H V: the same Omega at Y, an isometry."""
        return _group.transport(*broadcast(self, x, y, v))

    def exp(self, x: Square, v: Square) -> Square:
        """X exp(X^H V)."""
        x, v = broadcast(self, x, v)
        return exp_move(x, _group.traceless(skew(x.mH @ v)))

    def log(self, x: Square, y: Square) -> Square:
        """X Omega, with the shortest skew Omega of trace 0 and exp(Omega) = X^H Y; see `Orthogonal.log`."""
        return _group.log(self, *broadcast(self, x, y), special=True)

    def distance(self, x: Square, y: Square) -> Float[Tensor, "*batch"]:
        """|Omega| as in `log`: sqrt(2) times the angle of a rotation of R^3."""
        return _group.distance(*broadcast(self, x, y), special=True)

    def _engine(self) -> Engine:
        return _group.SquareEngine(self, self.retraction, special=True)


def _check_square(name: str, shape: Sequence[int]) -> None:
    _, (n, m) = check_ndim(name, shape, 2)
    if n != m:
        such = f", such as {name}**{n // m}" if n % m == 0 and len(shape) == 2 else ""
        raise ValueError(
            f"{name} holds square matrices; got shape {tuple(shape)}. Use Stiefel for orthonormal columns (or rows), "
            f"or a product with a layout that cuts the tensor into square blocks{such}."
        )


def _sides(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """(number of matrices, n)."""
    _check_square(name, shape)
    count, (n, _) = check_ndim(name, shape, 2)
    return count, n


def _determinant_error(x: Square) -> Float[Tensor, "*batch"]:
    """How far the phase of det X is from 1, shared by the n directions that can mend it; 2 for a real reflection."""
    phase = determinant_phase(x)
    return (phase - 1).abs() / x.shape[-1] if x.is_complex() else 1 - phase
