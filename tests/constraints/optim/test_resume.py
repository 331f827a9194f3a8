"""A run goes on bit for bit from its state: every manifold, dtype and optimizer, every way to keep the state."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from constraints import Riemannian, constrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step import bucket, options
from constraints.optim.step.optimizer import RiemannianOptimizer
from manifolds import BlockSpec, Euclidean, Orthogonal, ProductManifold, SpecialOrthogonal, Sphere, Stiefel, retractions

PATTERN = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)
HELD: dict[str, tuple[Any, tuple[int, ...], torch.dtype]] = {
    "power": (Stiefel**3, (12, 4), torch.float32),
    "mixed": (Stiefel * Euclidean**2, (12, 4), torch.float32),
    "mixed in double": (Stiefel * Euclidean**2, (12, 4), torch.float64),
    "with a sphere": (Stiefel**2 * Sphere, (12, 4), torch.float32),
    "three kinds": (Orthogonal * Sphere * Euclidean, (12, 4), torch.float32),
    "pattern": (ProductManifold((Stiefel,) * 6, PATTERN), (12, 4), torch.float32),
    "mixed pattern": (ProductManifold((Stiefel, Sphere, Euclidean) * 2, PATTERN), (12, 4), torch.float32),
    "columns": (ProductManifold((Stiefel, Euclidean), BlockSpec(rows=(4, 2), axis=1)), (4, 6), torch.float32),
    "stack": (Stiefel, (3, 4, 4), torch.float32),
    "stack of mixed": (ProductManifold((Stiefel, Euclidean), BlockSpec(rows=2, axis=-2)), (3, 8, 4), torch.float32),
    "tall": (Stiefel, (9, 4), torch.float32),
    "wide, exp": (Stiefel(retraction=retractions.exp), (4, 9), torch.float32),
    "canonical": (Stiefel(metric="canonical"), (9, 4), torch.float32),
    "many tiny": (SpecialOrthogonal, (1024, 3, 3), torch.float32),
    "unitary": (Orthogonal, (2, 4, 4), torch.complex64),
    "bfloat16": (Stiefel**3, (12, 4), torch.bfloat16),
    "mixed in bfloat16": (Stiefel * Euclidean**2, (12, 4), torch.bfloat16),
    "float16": (Stiefel * Sphere, (8, 4), torch.float16),
}
OPTIMIZERS: dict[str, Callable[[Any], RiemannianOptimizer]] = {
    "sgd": lambda net: RiemannianSGD(net, lr=0.05),
    "momentum": lambda net: RiemannianSGD(net, lr=0.05, momentum=0.9),
    "nesterov": lambda net: RiemannianSGD(net, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda net: RiemannianAdam(net, lr=0.05, eps=1e-6),  # float16 has no 1e-8
    "amsgrad": lambda net: RiemannianAdam(net, lr=0.05, eps=1e-6, amsgrad=True),
}


ALONE: dict[str, Any] = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}  # from 2.7 on


class Net(nn.Module):
    """A held weight, a free bias, and a scale that never has a gradient."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))


def build(held: str, kind: str) -> tuple[Net, RiemannianOptimizer]:
    manifold, shape, dtype = HELD[held]
    wide = dtype if dtype.is_complex else torch.promote_types(dtype, torch.float32)
    net = constrain(Net(shape, wide), "weight", manifold, Riemannian()).to(dtype)
    if "sgd" not in kind:  # torch's own optimizers resume from what they have state for
        net.unused.requires_grad_(False)
    return net, OPTIMIZERS[kind](net)


def run(net: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in (net.weight, net.bias):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, tensor by tensor."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def file(net: Net, optimizer: Any, new: Any, at: Path) -> tuple[Net, Any]:
    stream = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    again, other = new()
    again.load_state_dict(saved["net"])
    other.load_state_dict(saved["optimizer"])
    return again, other


def distributed(flat: bool, on_disk: bool) -> Any:
    """get_state_dict and set_state_dict of torch; on disk, DCP reads into the state of the optimizer that goes on."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def way(net: Net, optimizer: Any, new: Any, at: Path) -> tuple[Net, Any]:
        state, inner = copy.deepcopy(get_state_dict(net, optimizer, options=options))
        again, other = new()
        if on_disk:
            dcp.save({"net": state, "optimizer": inner}, checkpoint_id=at, **ALONE)
            state, inner = get_state_dict(again, other, options=options)
            dcp.load({"net": state, "optimizer": inner}, checkpoint_id=at, **ALONE)
        set_state_dict(again, other, model_state_dict=state, optim_state_dict=inner, options=options)
        return again, other

    return way


WAYS: dict[str, Any] = {
    "file": file,
    "deepcopy": lambda net, optimizer, new, at: copy.deepcopy((net, optimizer)),
    "pickle": lambda net, optimizer, new, at: pickle.loads(pickle.dumps((net, optimizer))),
    "nested": distributed(flat=False, on_disk=False),
    "flat": distributed(flat=True, on_disk=False),
    "nested on disk": distributed(flat=False, on_disk=True),
    "flat on disk": distributed(flat=True, on_disk=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("held", HELD)
def test_a_run_goes_on_bit_for_bit(held: str, kind: str, tmp_path: Path) -> None:
    """n steps, keep, m steps are n + m steps, also where nothing was trained yet; state is tensors only."""
    straight, whole = build(held, kind)
    run(straight, whole, 0, 7)
    for cut in (0, 3):
        for name, way in WAYS.items():
            net, optimizer = build(held, kind)
            run(net, optimizer, 0, cut)
            before = copy.deepcopy(net.state_dict())
            again, other = way(net, optimizer, lambda: build(held, kind), tmp_path / f"{name} {cut}")
            assert same(net.state_dict(), before), f"{name}: keeping the state moves nothing"
            assert same(again.state_dict(), before), name
            assert all(isinstance(v, Tensor) for entry in other.state.values() for v in entry.values())
            assert same(other.state_dict(), optimizer.state_dict()), name
            run(net, optimizer, cut, cut + 4)
            run(again, other, cut, cut + 4)
            assert same(again.state_dict(), net.state_dict()), name
            assert same(other.state_dict(), optimizer.state_dict()), name
        if cut:  # torch takes a step of length zero to find out which state a fresh optimizer has, and counts it
            assert same(net.state_dict(), straight.state_dict())
            assert same(optimizer.state_dict(), whole.state_dict())


# A step of length zero, as torch takes to find out which state there is ---------------------------------------------


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("looks", [True, False], ids=["looks", "does not look"])
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("held", HELD)
def test_a_step_of_length_zero_moves_nothing(
    held: str, kind: str, tensor: bool, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first and in the middle of a run, on a CPU and, as on an accelerator, without a look at values."""
    if not looks and held == "many tiny":
        pytest.skip("matrices are in tiles on a CPU only")
    if not looks:
        for module in (bucket, options):
            monkeypatch.setattr(module, "can_look", lambda device: False)
    for steps in (0, 3):
        net, moving = build(held, kind)
        run(net, moving, 0, steps)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        lr: Any = torch.tensor(0.0) if tensor else 0.0
        for group in moving.param_groups:
            group["lr"] = lr
        run(net, moving, steps, steps + 3)
        assert same(dict(net.state_dict()), before)
        for group in moving.param_groups:
            group["lr"] = 0.05
        run(net, moving, 7, 8)
        assert not torch.equal(net.weight, before["weight"])
        factor, _, dtype = HELD[held]
        manifold = factor() if isinstance(factor, type) else factor
        wide = net.weight.detach().to(dtype if dtype.is_complex else torch.promote_types(dtype, torch.float32))
        assert bool((manifold.residual(wide) <= 128 * torch.finfo(dtype).eps).all())
