"""Lowered float32 products are for the model, never for its geometry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constraints import Riemannian, Trivialization, constrain
from constraints.precision import exact_products
from manifolds import Stiefel, retractions


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
    """A graph with a change of settings in it would break, whether one is needed (here lowered) or not."""

    def seen(x):
        with exact_products("cpu"):
            return x @ x

    x = torch.eye(2)
    compiled = torch.compile(seen, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x).float(), x)


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()])
def test_a_weight_is_admitted_under_any_precision_of_products(method):
    torch.manual_seed(0)
    linear = nn.Linear(256, 256)
    constrain(linear, "weight", Stiefel, method)
    linear.load_state_dict(linear.state_dict())
    assert error(linear.weight) < 2e-5
