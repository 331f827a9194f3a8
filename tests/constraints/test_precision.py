"""Lowered float32 products are for the model, never for its geometry."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from constraints import Riemannian, Trivialization, constrain
from manifolds import PositiveDefinite, SpectralBall, Stiefel, retractions


@pytest.fixture
def lowered():
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(kept)


def error(weight):
    x = weight.detach().double()
    gram = x.mT @ x if x.shape[0] >= x.shape[1] else x @ x.mT
    return float((gram - torch.eye(len(gram))).abs().max())


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("retraction", [retractions.polar, retractions.cayley, retractions.exp])
@pytest.mark.parametrize("shape", [(256, 512), (256, 256)])
def test_a_trivialized_weight_is_orthonormal_under_any_precision_of_products(retraction, shape):
    torch.manual_seed(0)
    linear = nn.Linear(*shape)
    constrain(linear, "weight", Stiefel(retraction=retraction))
    with torch.no_grad():
        linear.parametrizations.weight.original.normal_(std=0.02)
    assert error(linear.weight) < 2e-5


class Graphs:
    """A backend that runs graphs as they are, and keeps the names of their products and solves."""

    def __init__(self):
        self.products = set()

    def __call__(self, graph, _):
        names = {str(node.target) for node in graph.graph.nodes}
        self.products |= {name for name in names if any(part in name for part in ("mm", "matmul", "linalg", "solve"))}
        return graph.forward


SETS = [Stiefel(), Stiefel() ** 2, Stiefel(retraction=retractions.polar), PositiveDefinite(), SpectralBall()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, where any graph ends
@pytest.mark.parametrize("kind", ["weight", "map"])
@pytest.mark.parametrize("manifold", SETS, ids=str)
def test_a_graph_ends_where_products_are_lowered(manifold, kind):
    """A setting of the process cannot be left in a graph: what needs another is computed outside, and torch compiles
    anew where the setting changes."""
    torch._dynamo.reset()
    x = manifold.random(8, 8, generator=torch.Generator().manual_seed(0))
    linear = constrain(nn.Linear(8, 8), "weight", manifold, init=x)

    def seen():
        if kind == "weight":
            return 2 * linear.weight
        if isinstance(manifold, SpectralBall):
            return 2 * manifold.compose(**manifold.decompose(linear.weight))
        return 2 * manifold.retract(linear.weight, manifold.project(linear.weight, 0.1 * x))

    compiled = torch.compile(seen, backend=(graphs := Graphs()))
    trained = [p for p in linear.parameters() if p.requires_grad and p is not linear.bias]
    expected = seen()
    slopes = torch.autograd.grad(expected.square().mul(x).sum(), trained)
    kept = torch.get_float32_matmul_precision()
    try:
        for way in ("highest", "high", "highest", "medium"):
            torch.set_float32_matmul_precision(way)
            graphs.products.clear()
            found = compiled()
            assert way == "highest" or not graphs.products
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            for one, other in zip(torch.autograd.grad(found.square().mul(x).sum(), trained), slopes, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_float32_matmul_precision(kept)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_whole_graph_is_refused_where_products_are_lowered(lowered):
    torch._dynamo.reset()
    linear = constrain(nn.Linear(8, 8), "weight", Stiefel)
    compiled = torch.compile(lambda: linear.weight, backend="eager", fullgraph=True)
    has_reason = "reason" in inspect.signature(torch.compiler.disable).parameters  # from torch 2.7 on
    with pytest.raises(torch._dynamo.exc.Unsupported, match="matmul_precision\\('highest'\\)" if has_reason else None):
        compiled()
    torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(compiled(), linear.weight)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel(retraction=retractions.polar), PositiveDefinite()], ids=str)
def test_what_is_compiled_leaves_autocast_too(manifold, backend):
    """The weight in the graph, a map that the graph calls, and their derivatives."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    linear = nn.Linear(32, 32)
    constrain(linear, "weight", manifold, init="haar")
    original = linear.parametrizations.weight.original
    with torch.no_grad():
        original.add_(0.03 * torch.randn(32, 32))
    c = torch.randn(32, 32)

    def both():
        weight = linear.weight
        return weight, manifold.retract(weight, manifold.project(weight, 0.1 * c))

    def slope(weight, moved):
        return torch.autograd.grad((c * (weight + moved)).sum(), original)[0]

    expected = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.compile(both, fullgraph=True, backend=backend)()
    for one, other in zip(found, expected, strict=True):
        assert bool(manifold.contains(one.detach()))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    exact = slope(*expected)
    # aot_eager, as inductor, takes derivatives under the autocast that is around the graph, as those of free weights
    assert (slope(*found) - exact).norm() <= (1e-4 if backend == "eager" else 16 * 2.0**-8) * exact.norm()


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()])
def test_a_weight_is_admitted_under_any_precision_of_products(method):
    torch.manual_seed(0)
    linear = nn.Linear(256, 256)
    constrain(linear, "weight", Stiefel, method)
    linear.load_state_dict(linear.state_dict())
    assert error(linear.weight) < 2e-5
