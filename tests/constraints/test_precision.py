"""Lowered float32 products are for the model, never for its geometry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constraints import Riemannian, Trivialization, constrain
from constraints.precision import exact_products
from manifolds import PositiveDefinite, Stiefel, retractions


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


def test_settings_of_the_process_stay_out_of_a_graph(lowered):
    """A graph with a change of settings in it would break, whether one is needed (here lowered) or not; autocast alone
    can be left in it."""

    def seen(x):
        with exact_products("cpu"):
            return x @ x

    x = torch.eye(2)
    compiled = torch.compile(seen, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), x)


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
