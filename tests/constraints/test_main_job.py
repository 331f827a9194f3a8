"""The main job: every packed block on its manifold at every step, trained by either engine.

The modules' outputs are checked against the textbook equations, written out here with the blocks by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, report, unconstrain
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Euclidean, NearestPointManifold, Orthogonal, Stiefel

METHODS = [Trivialization(), Riemannian()]
H, D = 8, 5


def optimizer(model: nn.Module, method: Method, lr: float) -> Any:
    return RiemannianAdam(model, lr=lr) if method == Riemannian() else torch.optim.Adam(model.parameters(), lr=lr)


def gram_error(q: Tensor) -> float:
    """max |Q^T Q - I|, or max |Q Q^T - I| for n < p, in float64."""
    q = q.detach().double()
    gram = q.mT @ q if q.shape[-2] >= q.shape[-1] else q @ q.mT
    return float((gram - torch.eye(gram.shape[-1], dtype=gram.dtype)).abs().max())


# The textbook -------------------------------------------------------------------------------------------------


def rnn_step(w: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """h' = tanh(W x + b + U h + c)."""
    (h,) = state
    return (torch.tanh(x @ w["W_h"].T + w["b_h"] + h @ w["U_h"].T + w["c_h"]),)


def gru_step(w: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """r, z = sigmoid(W x + b + U h + c); n = tanh(W x + b + r (U h + c)); h' = (1 - z) n + z h."""
    (h,) = state
    r = torch.sigmoid(x @ w["W_r"].T + w["b_r"] + h @ w["U_r"].T + w["c_r"])
    z = torch.sigmoid(x @ w["W_z"].T + w["b_z"] + h @ w["U_z"].T + w["c_z"])
    n = torch.tanh(x @ w["W_n"].T + w["b_n"] + r * (h @ w["U_n"].T + w["c_n"]))
    return ((1 - z) * n + z * h,)


def lstm_step(w: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """i, f, o = sigmoid(...), g = tanh(...); c' = f c + i g; h' = o tanh(c')."""
    h, c = state
    i, f, g, o = (x @ w[f"W_{k}"].T + w[f"b_{k}"] + h @ w[f"U_{k}"].T + w[f"c_{k}"] for k in "ifgo")
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[type, tuple[Callable[..., tuple[Tensor, ...]], str, int]] = {
    nn.RNN: (rnn_step, "h", 1),
    nn.GRU: (gru_step, "rzn", 1),
    nn.LSTM: (lstm_step, "ifgo", 2),
}


def recurrent_by_hand(module: Any, kind: type, x: Tensor) -> Tensor:
    """Both directions of both layers, time step by time step, from the module's own weights cut into gates."""
    step, gates, states = STEPS[kind]
    for layer in range(module.num_layers):
        halves = []
        for suffix in ("", "_reverse"):
            w = {}
            for letter, part in (("W", "weight_ih"), ("U", "weight_hh"), ("b", "bias_ih"), ("c", "bias_hh")):
                rows = getattr(module, f"{part}_l{layer}{suffix}").split(module.hidden_size)
                w |= {f"{letter}_{gate}": block for gate, block in zip(gates, rows, strict=True)}
            state = (x.new_zeros(x.shape[1], module.hidden_size),) * states
            outputs = {}
            for t in range(len(x)) if suffix == "" else reversed(range(len(x))):
                state = step(w, x[t], state)
                outputs[t] = state[0]
            halves.append(torch.stack([outputs[t] for t in range(len(x))]))
        x = torch.cat(halves, -1)
    return x


def attention_by_hand(module: Any, x: Tensor) -> Tensor:
    """Each head: softmax(Q K^T / sqrt(d)) V, with Q = X W_q^T + b_q and so on; then the output projection."""
    width = x.shape[-1]
    (wq, wk, wv), (bq, bk, bv) = module.in_proj_weight.split(width), module.in_proj_bias.split(width)
    heads = []
    for rows in torch.arange(width).split(width // module.num_heads):
        q, k, v = (
            (x @ w[rows].T + b[rows]).transpose(0, 1) for w, b in ((wq, bq), (wk, bk), (wv, bv))
        )  # (batch, time, d)
        attention = torch.softmax(q @ k.mT / math.sqrt(len(rows)), -1)
        heads.append((attention @ v).transpose(0, 1))
    return torch.cat(heads, -1) @ module.out_proj.weight.T + module.out_proj.bias


# The modules --------------------------------------------------------------------------------------------------


class Bare(nn.Module):
    """A module of one's own: x -> x U with a bare Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(D, H))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.u


@dataclass
class Case:
    make: Callable[[], nn.Module]
    name: str
    manifold: Any
    blocks: int
    call: Callable[[Any, Tensor], Tensor]
    by_hand: Callable[[Any, Tensor], Tensor]
    width: int = D


def recurrent(kind: type, gates: int) -> Case:
    return Case(
        lambda: kind(D, H, num_layers=2, bidirectional=True),
        "weight_hh*",
        Stiefel**gates if gates > 1 else Stiefel,
        gates,
        lambda m, x: m(x)[0],
        lambda m, x: recurrent_by_hand(m, kind, x),
    )


CASES = {
    "GRU": recurrent(nn.GRU, 3),
    "LSTM": recurrent(nn.LSTM, 4),
    "RNN": recurrent(nn.RNN, 1),
    "MultiheadAttention": Case(
        lambda: nn.MultiheadAttention(H, 2),
        "in_proj_weight",
        Stiefel**3,
        3,
        lambda m, x: m(x, x, x, need_weights=False)[0],
        attention_by_hand,
        H,
    ),
    "Linear": Case(
        lambda: nn.Linear(D, H), "weight", Stiefel, 1, lambda m, x: m(x), lambda m, x: x @ m.weight.T + m.bias
    ),
    "a Parameter of one's own": Case(Bare, "u", Stiefel, 1, lambda m, x: m(x), lambda m, x: x @ m.u),
}


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_blocks_stay_orthonormal_while_the_module_learns(name: str, method: Method) -> None:
    case = CASES[name]
    module: Any = constrain(case.make(), case.name, case.manifold, method)
    weights = [row.name for row in report(module)]
    assert len(weights) == (4 if case.name == "weight_hh*" else 1)
    x = torch.randn(6, 4, case.width)
    target = torch.randn_like(case.call(module, x))
    trainer = optimizer(module, method, lr=1e-2)
    losses = []
    for _ in range(300):
        trainer.zero_grad()
        loss = (case.call(module, x) - target).square().mean()
        loss.backward()
        trainer.step()
        losses.append(loss.item())
        for weight in weights:
            blocks = getattr(module, weight).detach().chunk(case.blocks)
            assert max(gram_error(block) for block in blocks) < 1e-5
    assert losses[-1] < 0.9 * losses[0]
    every = [block for weight in weights for block in getattr(module, weight).detach().chunk(case.blocks)]
    apart = [(a - b).norm() for i, a in enumerate(every) for b in every[:i]]
    assert all(distance > 0.1 for distance in apart)
    torch.testing.assert_close(case.call(module, x), case.by_hand(module, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_textbook_is_that_of_the_plain_module(name: str) -> None:
    """The oracle itself: on an unconstrained module, in float64."""
    case = CASES[name]
    module, x = case.make().double(), torch.randn(6, 4, case.width, dtype=torch.float64)
    torch.testing.assert_close(case.call(module, x), case.by_hand(module, x), rtol=1e-12, atol=1e-12)


def test_the_example_of_the_design_runs() -> None:
    gru = torch.nn.GRU(12, 16)
    constrain(gru, "weight_hh_l0", Stiefel**3)
    unconstrain(gru, "weight_hh_l0")
    constrain(gru, "weight_hh_l0", Stiefel**3, Riemannian())
    opt = RiemannianAdam(gru, lr=1e-3)
    gru(torch.randn(3, 2, 12))[0].sum().backward()
    opt.step()
    assert max(gram_error(gate) for gate in gru.weight_hh_l0.chunk(3)) < 1e-5


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_first_gate_alone(method: Method) -> None:
    """Stiefel * Euclidean**2 holds the reset gate and leaves the others free, from their old values on."""
    gru = nn.GRU(D, H)
    free = gru.weight_hh_l0.detach().clone()
    constrain(gru, "weight_hh_l0", Stiefel * Euclidean**2, method)
    assert torch.equal(gru.weight_hh_l0[H:], free[H:])
    trainer = optimizer(gru, method, lr=1e-2)
    x, target = torch.randn(6, 4, D), torch.randn(6, 4, H)
    for _ in range(50):
        trainer.zero_grad()
        (gru(x)[0] - target).square().mean().backward()
        trainer.step()
    first, *others = gru.weight_hh_l0.detach().chunk(3)
    assert gram_error(first) < 1e-5
    assert all(gram_error(gate) > 0.1 for gate in others)
    assert all((gate - old).norm() > 0.1 for gate, old in zip(others, free[H:].chunk(2), strict=True))


# A manifold that the library does not know ------------------------------------------------------------------------


@dataclass(frozen=True)
class Oblique(NearestPointManifold):
    """Matrices (..., n, p) whose columns are unit vectors, with the metric of the ambient space."""

    ndim = 2

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """A - X diag(X^T A)."""
        return a - x * (x * a).sum(-2, keepdim=True)

    def nearest(self, x: Tensor) -> Tensor:
        """Each column over its length."""
        return x / x.norm(dim=-2, keepdim=True)

    def dim(self, shape: Any) -> int:
        """(n - 1) p for each matrix."""
        *batch, n, p = shape
        return math.prod(batch) * (n - 1) * p


def column_error(x: Tensor) -> float:
    return float((x.detach().double().norm(dim=-2) - 1).abs().max())


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("product", [False, True])
def test_a_new_manifold_works_everywhere(method: Method, momentum: bool, product: bool) -> None:
    """Both engines, both optimizers, alone and in a product."""
    linear = nn.Linear(D, 2 * D)
    constrain(linear, "weight", Oblique * Orthogonal if product else Oblique, method)
    blocks = linear.weight.detach().split([D, D]) if product else (linear.weight.detach(),)
    assert column_error(blocks[0]) < 1e-5
    kind = RiemannianAdam if momentum else RiemannianSGD
    plain = torch.optim.Adam if momentum else torch.optim.SGD
    lr = 1e-2 if momentum else 0.1
    trainer = kind(linear, lr=lr) if method == Riemannian() else plain(linear.parameters(), lr=lr)
    x, target = torch.randn(16, D), torch.randn(16, linear.weight.shape[0])
    losses = []
    for _ in range(100):
        trainer.zero_grad()
        loss = (linear(x) - target).square().mean()
        loss.backward()
        trainer.step()
        losses.append(loss.item())
        blocks = linear.weight.detach().split([D, D]) if product else (linear.weight.detach(),)
        assert column_error(blocks[0]) < 1e-5
        assert not product or gram_error(blocks[1]) < 1e-5
    assert losses[-1] < 0.95 * losses[0]
