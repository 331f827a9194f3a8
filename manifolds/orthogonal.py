"""The orthogonal group O(n), the unitary group U(n), and their parts with determinant 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import _group
from ._points import broadcast, inner, sizes
from .base import NearestPointManifold, check_ndim
from .kernels import chart, orthonormal, rotation, steps
from .kernels.cayley import cayley_step
from .kernels.determinant import determinant_phase, unit_determinant
from .kernels.linalg import eye_like, newton_schulz, orthogonality_error, skew
from .retractions import Retraction, cayley, polar

Square = Inexact[Tensor, "*batch n n"]


@dataclass(frozen=True)
class Orthogonal(NearestPointManifold):
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

    def coordinates(self, x: Square, a: Square) -> Square:
        """skew(A)."""
        return skew(a)

    def lift(self, x: Square, g: Square) -> Square:
        """skew(X^H G)."""
        return _group.lift(x, g)

    def move(self, x: Square, c: Square) -> Square:
        """X Cayley(C); X exp(C) for `exp`; the retraction of X C for others."""
        return _group.move(self.retraction, x, c)

    def carry(self, x: Square, y: Square, c: Square) -> Square:
        """C."""
        return c

    def coordinate_inner(self, x: Square, c: Square, d: Square) -> Float[Tensor, "*batch"]:
        """Re tr(C^H D)."""
        return inner(c, d, 2)

    def recenter(self, x: Square, y: Square, c: Square, m: Square) -> Square:
        """As defined; for Cayley (I - C/2) M (I + C/2)."""
        return chart.cayley(c, m) if self.retraction in (cayley, polar) else super().recenter(x, y, c, m)

    def polish(self, x: Square) -> Square:
        """X (3I - X^H X) / 2."""
        return newton_schulz(x)

    def mix(self, x: Square, stored: Square, g: Square, keep: float, add: float) -> tuple[Square, Tensor]:
        """As defined, with fewer passes over memory."""
        return steps.mix_square(x, stored, g, keep, add, canonical=False)

    def advance(self, x: Square, c: Square, size: float | Tensor) -> Square:
        """As defined; for short steps by series, where engines use Cayley."""
        y = cayley_step(x, c, size) if self.retraction in (cayley, polar) else None
        return super().advance(x, c, size) if y is None else y


@dataclass(frozen=True)
class SpecialOrthogonal(NearestPointManifold):
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
        return x @ _traceless(skew(x.mH @ a))

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

    def coordinates(self, x: Square, a: Square) -> Square:
        """skew(A), traceless."""
        return _traceless(skew(a))

    def lift(self, x: Square, g: Square) -> Square:
        """skew(X^H G), traceless."""
        return _traceless(_group.lift(x, g))

    def move(self, x: Square, c: Square) -> Square:
        """As for `Orthogonal`, with determinant 1."""
        return unit_determinant(_group.move(self.retraction, x, c))

    def carry(self, x: Square, y: Square, c: Square) -> Square:
        """C."""
        return c

    def coordinate_inner(self, x: Square, c: Square, d: Square) -> Float[Tensor, "*batch"]:
        """Re tr(C^H D)."""
        return inner(c, d, 2)

    def recenter(self, x: Square, y: Square, c: Square, m: Square) -> Square:
        """As defined; for Cayley as for `Orthogonal`, with a trace of zero."""
        if self.retraction not in (cayley, polar):
            return super().recenter(x, y, c, m)
        return chart.cayley_special(c, m) if m.is_complex() else chart.cayley(c, m)

    def polish(self, x: Square) -> Square:
        """X (3I - X^H X) / 2."""
        return newton_schulz(x)

    def mix(self, x: Square, stored: Square, g: Square, keep: float, add: float) -> tuple[Square, Tensor]:
        """As defined; for real matrices, whose lifts have no trace, with fewer passes over memory."""
        if x.is_complex():
            return super().mix(x, stored, g, keep, add)
        return steps.mix_square(x, stored, g, keep, add, canonical=False)

    def advance(self, x: Square, c: Square, size: float | Tensor) -> Square:
        """As defined; for short steps by series, where engines use Cayley."""
        y = cayley_step(x, c, size) if self.retraction in (cayley, polar) else None
        return super().advance(x, c, size) if y is None else unit_determinant(y)


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


def _traceless(omega: Square) -> Square:
    """Omega - tr(Omega) I / n; a real skew matrix has no trace."""
    if not omega.is_complex():
        return omega
    trace = omega.diagonal(dim1=-2, dim2=-1).mean(-1)
    return omega - trace[..., None, None] * eye_like(omega)


def _determinant_error(x: Square) -> Float[Tensor, "*batch"]:
    """How far the phase of det X is from 1, shared by the n directions that can mend it; 2 for a real reflection."""
    phase = determinant_phase(x)
    return (phase - 1).abs() / x.shape[-1] if x.is_complex() else 1 - phase
