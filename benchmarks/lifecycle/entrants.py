"""Who is tried: how each holds a weight orthonormal, trains it and lets it go, as its documentation says.

The peers are imported only when they are used; who is not installed is shown as such.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from constraints import Riemannian, Trivialization, constrain, export_state_dict, rebase, unconstrain
from constraints.held import held
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import Stiefel


class Entrant(ABC):
    """A library, or an engine of one."""

    name: str

    @abstractmethod
    def hold(self, net: nn.Module, name: str) -> None:
        """Hold the tensor of this dotted name orthonormal; of a GRU, each gate where the library can."""

    @abstractmethod
    def release(self, net: nn.Module) -> None:
        """Make every held weight of the net a plain Parameter of the same value, in place."""

    def adam(self, net: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(net.parameters(), lr, **options)

    def group(self, p: nn.Parameter, module: nn.Module) -> dict[str, Any]:
        """A parameter group of one parameter of the module."""
        return {"params": [p]}

    def export(self, net: nn.Module) -> dict[str, Tensor]:
        """A state_dict for the plain net; who cannot write one lets go of the weights for it."""
        self.release(net)
        return net.state_dict()

    def rebase(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Move the base of the coordinates to the present weight. NotImplementedError where there is none."""
        raise NotImplementedError


class Ours(Entrant):
    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = type(method).__name__

    def hold(self, net: nn.Module, name: str) -> None:
        owner, _ = at(net, name)
        constrain(net, name, Stiefel**3 if isinstance(owner, nn.GRU) else Stiefel, self.method)

    def release(self, net: nn.Module) -> None:
        unconstrain(net, "*")

    def adam(self, net: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.Optimizer:
        if isinstance(self.method, Riemannian):
            return RiemannianAdam(net, lr, **options)
        return super().adam(net, lr, **options)

    def group(self, p: nn.Parameter, module: nn.Module) -> dict[str, Any]:
        for each in held(module):
            if each.owner._parameters.get(each.attribute) is p:
                return {"params": [p], "manifold": each.manifold}
        return {"params": [p]}

    def export(self, net: nn.Module) -> dict[str, Tensor]:
        return export_state_dict(net)

    def rebase(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(self.method, Riemannian):
            raise NotImplementedError
        rebase(net, optimizer)


class Parametrized(Entrant):
    """A library whose weights are torch parametrizations."""

    def release(self, net: nn.Module) -> None:
        for module in list(net.modules()):
            if parametrize.is_parametrized(module):
                for attribute in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, attribute)


class Torch(Parametrized):
    name = "torch orthogonal"

    def hold(self, net: nn.Module, name: str) -> None:
        nn.utils.parametrizations.orthogonal(*at(net, name))


class Geotorch(Parametrized):
    name = "geotorch"

    def hold(self, net: nn.Module, name: str) -> None:
        import geotorch

        geotorch.orthogonal(*at(net, name))

    def rebase(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import geotorch

        for module in list(net.modules()):
            if parametrize.is_parametrized(module):
                for attribute in module.parametrizations:  # type: ignore[union-attr]
                    geotorch.update_base(module, attribute)


class Geoopt(Entrant):
    name = "geoopt"

    def hold(self, net: nn.Module, name: str) -> None:
        import geoopt

        module, attribute = at(net, name)
        manifold = geoopt.Stiefel(canonical=False)
        start = manifold.projx(getattr(module, attribute).detach())
        setattr(module, attribute, geoopt.ManifoldParameter(start, manifold=manifold))

    def release(self, net: nn.Module) -> None:
        for module in net.modules():
            for attribute, p in list(module._parameters.items()):
                if p is not None and type(p).__name__ == "ManifoldParameter":
                    setattr(module, attribute, nn.Parameter(p.detach().as_subclass(Tensor).clone()))

    def adam(self, net: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.Optimizer:
        import geoopt

        return geoopt.optim.RiemannianAdam(net.parameters(), lr=lr, **options)  # type: ignore[no-any-return]


def at(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(module, attribute) of a dotted name."""
    path, _, attribute = name.rpartition(".")
    return net.get_submodule(path), attribute


def parametrizations(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """(attribute, first parametrization) of every parametrized tensor of the net."""
    for module in net.modules():
        if parametrize.is_parametrized(module):
            for attribute, chain in module.parametrizations.items():  # type: ignore[operator,union-attr]
                yield attribute, chain[0]


ENTRANTS: tuple[Entrant, ...] = (Ours(Trivialization()), Ours(Riemannian()), Geotorch(), Geoopt(), Torch())
