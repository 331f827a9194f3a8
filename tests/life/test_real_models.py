"""A GPT and a ResNet of other people: a line for each kind of weight, 200 steps, a fresh process, the plain model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from constraints import export_state_dict, report
from constraints.optim import RiemannianAdam

from .models import METHODS, RECIPES, Recipe, error

STEPS = 200


def optimizer_for(net: Any, method: str) -> torch.optim.Optimizer:
    if method == "Trivialization":
        return torch.optim.Adam(net.parameters(), lr=1e-2)
    return RiemannianAdam(net, lr=1e-2)


def loss_of(recipe: Recipe, net: Any, step: int) -> torch.Tensor:
    x, labels = recipe.batch(step)
    return functional.cross_entropy(net(x).flatten(0, -2), labels.flatten())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECIPES)
def test_200_steps_a_fresh_process_and_the_plain_model(name: str, method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    plain = recipe.make()
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    net = recipe.constrain(plain, METHODS[method])
    count = len(list(recipe.blocks(net)))
    assert sum(len(row.residuals) for row in report(net)) == count
    before = [block.detach().clone() for block in recipe.blocks(net)]
    optimizer = optimizer_for(net, method)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(recipe, net, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert error(recipe.blocks(net)) < 1e-5
    assert sum(losses[-10:]) < {"GPT": 0.7, "ResNet": 0.2}[name] * sum(losses[:10])
    for block, start in zip(recipe.blocks(net), before, strict=True):
        assert (block - start).norm() > 0.1

    net.eval()
    x, _ = recipe.batch(1000)
    output = net(x).detach()
    exported = export_state_dict(net)
    assert {key: value.shape for key, value in exported.items()} == shapes
    torch.save(net.state_dict(), tmp_path / "constrained.pt")
    torch.save(exported, tmp_path / "plain.pt")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", "life.models", name, method, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=100)
    loaded, as_plain, off = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert off < 1e-5
    torch.testing.assert_close(loaded, output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_plain, output, rtol=1e-5, atol=1e-5)
