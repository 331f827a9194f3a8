"""Doubly stochastic matrices that are the squared entries of a rotation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from .._points import check_real
from ..base import check_ndim, tolerance
from ..kernels.others import OTHERS
from ..orthogonal import SpecialOrthogonal
from ._svd import checked, each
from .base import Composition, Parts

Square = Inexact[Tensor, "*batch n n"]
SWEEPS = 300
ALL_SIGNS = 12  # up to this size, 2^11 columns at a time


@dataclass(frozen=True)
class Orthostochastic(Composition):
    """|Q_ij|^2 with Q a rotation, unitary of determinant 1 for complex Q: rows and columns sum to one, to rounding.

    All doubly stochastic matrices for n = 2; for larger n those that are orthostochastic, among them permutations up
    to signs and, where there is a Hadamard matrix, the constant 1 / n. An entry that is 0 stays for gradients alone,
    as the square is flat there: a weight that starts at a permutation would never move, and `constrain` refuses it.
    Source: Bengtsson et al., Birkhoff's polytope and unistochastic matrices (2005).

    >>> w = Orthostochastic().random(4, 4)
    >>> bool((w.sum(0) - 1).abs().max() < 1e-6), bool((w.sum(1) - 1).abs().max() < 1e-6)
    (True, True)
    """

    def parts(self, shape: Sequence[int]) -> Parts:
        """q: SpecialOrthogonal (n, n). Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        if n != m:
            raise ValueError(f"{self} needs square matrices; got shape {tuple(shape)}.")
        return {"q": (SpecialOrthogonal(), tuple(shape))}

    def compose(self, *, q: Square) -> Square:  # type: ignore[override]
        """|Q_ij|^2."""
        return (q * q.conj()).real

    def random_points(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """A uniform rotation. Raises ValueError for complex numbers."""
        check_real(self, dtype)
        return super().random_points(shape, generator, dtype, device)

    def decompose(self, x: Square) -> dict[str, Tensor]:
        """The signs of sqrt(x), up to n = 12 by search, beyond by alternating projections, which may miss them.

        Raises ValueError where that finds none: x is not doubly stochastic, or not orthostochastic.
        """
        check_real(self, x.dtype)
        wide = checked(x.detach())
        return {"q": each(lambda w: _root(w, x), wide, wide).to(x.dtype)}


def _root(w: Tensor, x: Tensor) -> Tensor:
    """A rotation with squared entries w."""
    n, limit = w.shape[-1], tolerance(x.dtype)
    sums = torch.cat([w.sum(0), w.sum(1)])
    if not bool((w >= -limit).all()) or not bool(((sums - 1).abs() <= limit * n).all()):
        raise ValueError(
            f"a matrix of shape {tuple(x.shape)} is not doubly stochastic: rows and columns sum to one, with "
            f"entries of 0 or more. {OTHERS}"
        )
    error = float("inf")
    for q in _candidates(w.clamp_min(0).sqrt(), x.dtype):
        off = float((q.square() - w).abs().max())
        if off <= limit:
            q[:, -1] *= torch.linalg.det(q).sign()
            return q
        error = min(error, off)
    raise ValueError(
        f"a matrix of shape {tuple(x.shape)} is doubly stochastic, but no rotation was found whose squared entries it "
        f"has, the nearest being off by {error:.1e}; all doubly stochastic matrices are DoublyStochastic(). {OTHERS}"
    )


def _candidates(modulus: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Orthogonal matrices with nearly these moduli: all of them up to signs of rows and columns for small sizes, else
    what alternating projections come to."""
    n = modulus.shape[-1]
    if n <= ALL_SIGNS:
        bits = torch.arange(2 ** (n - 1), device=modulus.device).unsqueeze(1) >> torch.arange(n, device=modulus.device)
        every = 1 - 2 * (bits & 1).flip(-1).to(modulus.dtype)  # the first row is positive
        # the root of an entry that is off by eps is off by its root
        slack = 4 * n * torch.finfo(dtype).eps ** 0.5
        for columns in _orthogonal(modulus, [modulus[:, 0]], every, slack):
            yield _polar(torch.stack(columns, -1))
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        q = torch.randn(n, n, dtype=modulus.dtype, generator=generator).to(modulus.device)
        for _ in range(SWEEPS):
            q = _polar(torch.where(q < 0, -modulus, modulus))
        yield q


def _orthogonal(modulus: Tensor, columns: list[Tensor], every: Tensor, slack: float) -> Iterator[list[Tensor]]:
    """Columns with these moduli, each orthogonal to those before it; one step back where there is none."""
    if len(columns) == modulus.shape[-1]:
        yield columns
        return
    choices = every * modulus[:, len(columns)]
    fit = (choices @ torch.stack(columns, -1)).abs().amax(-1) <= slack
    for choice in choices[fit]:
        yield from _orthogonal(modulus, [*columns, choice], every, slack)


def _polar(a: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(a)
    return u @ vh  # type: ignore[no-any-return]
