"""A problem with the manifold of pymanopt that has the same points; and three functions that need more than a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """f takes one tensor for each manifold; peer: of pymanopt.manifolds, (name, arguments, options) for each."""

    name: str
    title: str
    f: Callable[..., Tensor]
    manifolds: Sequence[Manifold]
    shapes: Sequence[tuple[int, ...]]
    peers: Sequence[tuple[str, tuple[int, ...], dict[str, Any]]]
    dtype: torch.dtype = F64
    near: Callable[[torch.Generator], list[Tensor]] | None = None

    def starts(self, seed: int) -> list[Tensor]:
        """Random points, or those of `near`."""
        generator = torch.Generator().manual_seed(seed)
        if self.near is not None:
            return self.near(generator)
        pairs = zip(self.manifolds, self.shapes, strict=True)
        return [m.random(shape, generator=generator, dtype=self.dtype) for m, shape in pairs]


@dataclass
class Problems:
    """Problems that are added one by one."""

    found: list[Problem] = field(default_factory=list)

    def one(
        self,
        name: str,
        title: str,
        f: Callable[..., Tensor],
        manifold: Manifold,
        shape: tuple[int, ...],
        peer: str,
        *sizes: int,
        near: Callable[[torch.Generator], list[Tensor]] | None = None,
        dtype: torch.dtype = F64,
        **options: Any,
    ) -> None:
        """A problem with one unknown."""
        self.found.append(Problem(name, title, f, [manifold], [shape], [(peer, sizes, options)], dtype, near))


def digits() -> Tensor:
    """The covariance of the handwritten digits, of trace 1."""
    from sklearn.datasets import load_digits

    c = torch.cov(torch.tensor(load_digits().data, dtype=F64).T)
    return c / c.trace()


def overlap(tensors: Tensor, state: Tensor) -> Tensor:
    """<state| network |0...0> of two-site isometries in a brick wall on six sites."""
    psi = torch.zeros(2**6, dtype=state.dtype)
    psi[0] = 1
    psi = psi.reshape((2,) * 6)
    places = [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4), (0, 1), (2, 3), (4, 5), (1, 2), (3, 4)]
    for gate, place in zip(tensors, places, strict=True):
        psi = torch.tensordot(gate.reshape(2, 2, 2, 2), psi, ([2, 3], list(place)))
        psi = psi.movedim((0, 1), place)
    return psi.flatten() @ state


def circuit(gates: Tensor, unitary: Tensor) -> Tensor:
    """|tr(U^H V)| / 8 squared, V of gates on spins (0, 1) and (1, 2) in turn."""
    eye = torch.eye(2, dtype=gates.dtype)
    v = torch.eye(8, dtype=gates.dtype)
    for k, gate in enumerate(gates):
        v = (torch.kron(gate, eye) if k % 2 == 0 else torch.kron(eye, gate)) @ v
    return (unitary.conj() * v).sum().abs().square() / 64
