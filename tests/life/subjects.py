"""The models whose life is tested: one for each kind of module that holds matrices, and an engine for each test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constraints import BlockSpec, Riemannian, Trivialization, constrain
from constraints.held import held
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Stiefel
from manifolds.engine import engine as engine_of

CONV = BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=2)


class Net(nn.Module):
    """core, which holds what is constrained, and a free head."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 5, 4) -> (batch, 3)."""
        if isinstance(self.core, nn.RNNBase):
            y = self.core(x)[0].mean(1)
        elif isinstance(self.core, nn.MultiheadAttention):
            x = torch.cat([x, x.flip(1)], 2)
            y = self.core(x, x, x, need_weights=False)[0].mean(1)
        elif isinstance(self.core, nn.Conv2d):
            y = self.core(x.mT[..., None]).mean((2, 3))
        else:
            y = self.core(x).mean(1)
        return self.head(y.tanh())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Subject:
    """A kind of module, and the constraints of it: name or glob, manifold, layout."""

    name: str
    make: Callable[[], nn.Module]
    constraints: tuple[tuple[str, Any, Any], ...]

    def plain(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return Net(self.make())

    def constrained(self, method: Method, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """Constrained, and away from where it began."""
        net = self.constrain(self.plain(seed).to(dtype), method)
        x = batch(16).to(dtype)
        optimizer = adam(net)
        for _ in range(2):
            train(net, optimizer, x)
        optimizer.zero_grad()
        return net

    def constrain(self, net: Any, method: Method) -> Any:
        for name, manifold, layout in self.constraints:
            constrain(net, name, manifold, method, layout=layout)
        return net


SUBJECTS = [
    Subject("Linear", lambda: nn.Linear(4, 8), (("core.weight", Stiefel, None),)),
    Subject("Conv2d", lambda: nn.Conv2d(4, 8, (2, 1), groups=2), (("core.weight", Stiefel, CONV),)),
    Subject("GRU", lambda: nn.GRU(4, 8, num_layers=2, batch_first=True), (("core.weight_hh_l*", Stiefel**3, None),)),
    Subject("LSTM", lambda: nn.LSTM(4, 8, batch_first=True), (("core.weight_hh_l0", Stiefel**4, None),)),
    Subject(
        "MultiheadAttention",
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        (("core.in_proj_weight", Stiefel**3, None), ("core.out_proj.weight", Stiefel, None)),
    ),
]
RECURRENT = [subject for subject in SUBJECTS if subject.name in {"GRU", "LSTM"}]
ENGINES: list[Method] = [Trivialization(), Riemannian()]

each = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
recurrent = pytest.mark.parametrize("subject", RECURRENT, ids=lambda subject: subject.name)
engine = pytest.mark.parametrize("method", ENGINES, ids=lambda method: type(method).__name__)


def batch(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))


def riemannian(net: nn.Module) -> bool:
    return any(isinstance(e.method, Riemannian) for e in held(net))


def adam(net: nn.Module, lr: float = 3e-2, **options: Any) -> Optimizer:
    """Adam for this model, whatever holds it."""
    return RiemannianAdam(net, lr, **options) if riemannian(net) else torch.optim.Adam(net.parameters(), lr, **options)


def sgd(net: nn.Module, lr: float = 3e-2, **options: Any) -> Optimizer:
    """SGD for this model, whatever holds it."""
    return RiemannianSGD(net, lr, **options) if riemannian(net) else torch.optim.SGD(net.parameters(), lr, **options)


def objective(net: Any, x: Tensor) -> Tensor:
    """Classify a batch by the sign of its first entries."""
    labels = (x[:, 0, 0] > 0).long() + (x[:, 1, 1] > 0).long()
    return nn.functional.cross_entropy(net(x), labels)


def train(net: Any, optimizer: Optimizer, x: Tensor) -> float:
    """One step, as in any training loop."""
    optimizer.zero_grad()
    loss = objective(net, x)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Every constrained weight by its name, as it is used."""
    return {e.name: e.weight.clone() for e in held(net)}


def residual(net: nn.Module) -> float:
    """How far the worst block is from orthonormal: max |X^T X - I|. NaN if there is one."""
    worst = [torch.zeros(())]
    for e in held(net):
        for _, x in engine_of(e.manifold).split(e.weight):
            x = x.double()
            tall = x if x.shape[-2] >= x.shape[-1] else x.mT
            worst.append((tall.mT @ tall - torch.eye(tall.shape[-1], dtype=x.dtype)).abs().max())
    assert len(worst) > 1
    return float(torch.stack([w.double() for w in worst]).max())


def bits(net: nn.Module) -> dict[str, Tensor]:
    """All that a model consists of, to be compared later."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal keys, dtypes and bits; NaN equals NaN."""
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and torch.equal(first[k].nan_to_num(7), second[k].nan_to_num(7))
        for k in first
    )


def memory(net: nn.Module) -> set[int]:
    """The addresses of all tensors of a model."""
    tensors = [*net.parameters(), *net.buffers()]
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
