"""Feasibility at any step size and after any number of steps; half precision; what is done about NaN and Inf."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.accelerator.pretend import pretended
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step import bucket, counting
from constraints.optim.step.bucket import DRIFT
from manifolds import Euclidean, Manifold, Sphere, Stiefel, retractions
from manifolds._tall import TallEngine
from manifolds.engine import Engine, engine
from manifolds.kernels import steps

LIMITS = {torch.float32: 1e-5, torch.complex64: 1e-5, torch.float64: 1e-12, torch.complex128: 1e-12}
SHAPES = (4, 16, 16), (24, 6), (5, 20), (600, 3, 3)  # the last are many and tiny: in tiles
KINDS: list[Any] = [RiemannianAdam, lambda groups, lr: RiemannianSGD(groups, lr=lr, momentum=0.9)]


def error(x: Tensor) -> float:
    gram = x.mH @ x if x.shape[-2] >= x.shape[-1] else x @ x.mH
    return float((gram - torch.eye(gram.shape[-1], dtype=x.dtype)).abs().max())


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("retraction", [retractions.cayley, retractions.exp, retractions.polar])
def test_no_drift(retraction: Any, kind: Any, lr: float, dtype: torch.dtype) -> None:
    """Random gradients, whatever the rate: max |X^H X - I| at every step is that of a few steps."""
    manifold = Stiefel(retraction=retraction)
    params = [nn.Parameter(manifold.random(*shape, dtype=dtype)) for shape in SHAPES]
    optimizer = kind([{"params": params, "manifold": manifold}], lr=lr)
    for _ in range(120):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        assert max(error(p.detach()) for p in params) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("lr", [1e-3, 1e-1])
@pytest.mark.parametrize("place", [nullcontext, pretended], ids=["processor", "accelerator"])
def test_what_is_summed_bounds_the_error_between_polishes(place: Any, lr: float, dtype: torch.dtype) -> None:
    """DRIFT eps, and 8 of a polish and of measuring, of tiny squares whose steps are no polish by themselves."""
    params = [nn.Parameter(Stiefel().random(*shape, dtype=dtype)) for shape in (*SHAPES, (50, 16, 16), (200, 4, 4))]
    optimizer = RiemannianAdam([{"params": params, "manifold": Stiefel}], lr=lr)
    with place():
        for _ in range(14):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
            assert max(error(p.detach()) for p in params) <= (DRIFT + 8) * torch.finfo(dtype).eps


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_drift_in_many_steps(lr: float, dtype: torch.dtype) -> None:
    """The same for 10^5 steps."""
    params = [nn.Parameter(Stiefel().random(*shape, dtype=dtype)) for shape in SHAPES]
    optimizer = RiemannianAdam([{"params": params, "manifold": Stiefel()}], lr=lr)
    for p in params:
        p.grad = torch.empty_like(p)
    for step in range(100_000):
        for p in params:
            p.grad.normal_()
        optimizer.step()
        if step % 10 == 0 or step < 1000:
            assert max(error(p.detach()) for p in params) <= LIMITS[dtype]


def test_no_drift_when_the_plan_never_lasts() -> None:
    """Gradients that come for other parameters at every step: each is polished all the same."""
    manifold = Stiefel(retraction=retractions.cayley)
    params = [nn.Parameter(manifold.random(24, 6)) for _ in range(3)]
    optimizer = RiemannianAdam([{"params": params, "manifold": manifold}], lr=1e-2)
    for step in range(200):
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p) if i != step % 3 else None
        optimizer.step()
    assert max(error(p.detach()) for p in params) <= 2e-6


@pytest.mark.parametrize("shape", [(48, 48), (96, 32)])
def test_a_step_keeps_its_precision(shape: tuple[int, int]) -> None:
    """Autocast and a lower precision of float32 products are off in checks and steps, and as they were after them."""
    start, g = Stiefel().random(*shape), torch.randn(shape)
    results = []
    for way in ("plain", "autocast", "medium", "high"):
        p = nn.Parameter(start.clone())
        kept = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(way if way in ("medium", "high") else kept)
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
                allowed = torch.get_float32_matmul_precision()
                optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1)
                for _ in range(3):
                    p.grad = g.clone()
                    optimizer.step()
                assert torch.is_autocast_enabled("cpu") == (way == "autocast")
                assert torch.get_float32_matmul_precision() == allowed
        finally:
            torch.set_float32_matmul_precision(kept)
        results.append(p.detach())
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_half_precision_has_a_master(kind: Any, dtype: torch.dtype, count: int) -> None:
    """The iterates are those of float32, and the weight is the rounded master: small steps are not lost."""
    manifold = Stiefel()
    weights = [nn.Parameter(manifold.random(8, 8).to(dtype)) for _ in range(count)]
    singles = [nn.Parameter(manifold.nearest(w.detach().float())) for w in weights]
    optimizer = kind([{"params": weights, "manifold": manifold}], lr=1e-4)
    reference = kind([{"params": singles, "manifold": manifold}], lr=1e-4)
    for _ in range(30):
        for w, s in zip(weights, singles, strict=True):
            w.grad = torch.randn(8, 8).to(dtype)
            s.grad = w.grad.float()
        optimizer.step()
        reference.step()
        for w, s in zip(weights, singles, strict=True):
            master = optimizer.state[w]["master"]
            assert master.dtype == torch.float32
            assert torch.equal(w.detach(), master.to(dtype))
            assert error(master) < 1e-5
            torch.testing.assert_close(master, s.detach(), rtol=0, atol=1e-6)


def test_a_master_follows_its_weight() -> None:
    """A weight that was changed between two steps is where the next one starts."""
    manifold = Stiefel()
    w = nn.Parameter(manifold.random(8, 8).bfloat16())
    optimizer = RiemannianAdam([{"params": [w], "manifold": manifold}], lr=1e-3)
    w.grad = torch.randn_like(w)
    optimizer.step()
    new = manifold.random(8, 8).bfloat16()
    with torch.no_grad():
        w.copy_(new)
    for _ in range(30):
        w.grad = torch.zeros_like(w)
        optimizer.state[w]["exp_avg"].zero_()
        optimizer.step()
    assert torch.equal(w.detach(), optimizer.state[w]["master"].bfloat16())
    assert error(optimizer.state[w]["master"]) < 1e-5
    torch.testing.assert_close(w.detach(), new, rtol=0, atol=0.02)


# Batched LU on CPU is broken in torch 2.13 after torch.set_num_threads, for n >= 256: wrong pivots, messages, hangs --

AFTER_SET_NUM_THREADS = """
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Orthogonal, Stiefel, retractions

def groups(x, manifold):
    return [{"params": [torch.nn.Parameter(x.clone())], "manifold": manifold}]

def step(optimizer, g):
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = g.clone()
    optimizer.step()
    return p.detach()

r = retractions
kinds = [lambda g: RiemannianAdam(g, lr=1e-3), lambda g: RiemannianAdam(g, lr=1), lambda g: RiemannianSGD(g, 0.1, 0.9)]
for batch, n, p in ((3, 256, 256), (2, 400, 400), (3, 272, 256)):
    manifolds = [Stiefel(), Stiefel("canonical", r.cayley), Stiefel(retraction=r.qr), Stiefel(retraction=r.exp)]
    for manifold in manifolds if n > p else [Stiefel()] if p == 400 else [Stiefel(), Orthogonal(), manifolds[-1]]:
        x = torch.linalg.qr(torch.randn(batch, n, p)).Q
        for kind in kinds:
            whole, apart = kind(groups(x, manifold)), [kind(groups(m, manifold)) for m in (x[0], x[-1])]
            for _ in range(1 + (p == 256)):
                g = torch.randn(batch, n, p) / n
                y = step(whole, g)
                error = float((y[[0, -1]] - torch.stack([step(apart[i], g[-i]) for i in (0, 1)])).abs().max())
                assert error < 2e-5, (manifold, batch, n, p, error)
                assert float(manifold.residual(y).max()) < 1e-5, (manifold, batch, n, p)
print("right")
"""


def test_steps_of_large_batches_are_right_after_set_num_threads() -> None:
    """A batch moves as its first and last matrix alone, short and long steps, whatever the way they are computed; in
    a process of its own, for the number of threads belongs to the process."""
    root = Path(__file__).parents[3]
    # threads that spin while they wait for each other take the processor from those that they wait for
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", AFTER_SET_NUM_THREADS], capture_output=True, text=True, cwd=root, timeout=110, env=env
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


# NaN and Inf ---------------------------------------------------------------------------------------------


def mixed(kind: Any) -> tuple[Any, list[nn.Parameter]]:
    product = Stiefel * Euclidean**2
    groups: list[dict[str, Any]] = [
        {"params": [("free", nn.Parameter(torch.randn(3)))]},
        {"params": [(f"w{i}", nn.Parameter(Stiefel().random(4, 4))) for i in range(3)], "manifold": Stiefel},
        {"params": [("mixed", nn.Parameter(product.random(12, 4)))], "manifold": product},
        {"params": [("half", nn.Parameter(Sphere().random(5).bfloat16()))], "manifold": Sphere},
    ]
    params = [p for group in groups for _, p in group["params"]]
    return kind(groups, lr=0.1), params


def everything(optimizer: Any, params: list[nn.Parameter]) -> Any:
    return copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()["state"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("which", "name"), [(2, "w1"), (4, "mixed"), (5, "half")])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_gradient_is_an_error_before_anything_is_changed(
    kind: Any, bad: float, which: int, name: str, first: bool
) -> None:
    """On CPU: a ValueError that names the parameter; no weight, moment or count differs afterwards."""
    optimizer, params = mixed(kind)

    def give() -> None:
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype)

    if not first:
        give()
        optimizer.step()
    before = everything(optimizer, params)
    give()
    assert params[which].grad is not None
    params[which].grad.view(-1)[-1] = bad
    with pytest.raises(ValueError, match=rf"gradient of {name}, shape .* NaN or Inf"):
        optimizer.step()
    torch.testing.assert_close(everything(optimizer, params), before, rtol=0, atol=0)
    give()
    optimizer.step()
    assert not any(torch.equal(p.detach(), x) for p, x in zip(params, before[0], strict=True))


def test_a_norm_that_overflows_for_all_points_together_is_no_bad_gradient() -> None:
    """Gradients are taken whose norms are finite and whose joint norm is not."""
    p = nn.Parameter(Sphere().random(400, 4))
    p.grad = torch.full((400, 4), 2e18)
    assert not torch.isfinite(p.grad.norm())
    RiemannianSGD([{"params": [p], "manifold": Sphere()}], lr=0.0).step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Sphere(), (4, 5)),
        (Stiefel(), (6, 3)),
        (Stiefel(), (3, 6)),
        (Stiefel(), (40, 40)),
        (Stiefel(), (600, 3, 3)),
        (Stiefel(retraction=retractions.qr), (6, 3)),
        (Stiefel(retraction=retractions.cayley), (6, 3)),
        (Stiefel(retraction=retractions.exp), (6, 3)),
        (Stiefel(retraction=retractions.exp), (6, 6)),
    ],
    ids=str,
)
def test_huge_gradients_are_refused_or_taken_and_never_leave_the_manifold(
    kind: Any, manifold: Manifold, shape: tuple[int, ...]
) -> None:
    """Up to the largest number there is: after two steps the points are on the manifold, or where they were."""
    for size in (1e5, 1e15, 1e18, 1e25, 3e38):
        p = nn.Parameter(manifold.random(*shape))
        optimizer = kind([{"params": [p], "manifold": manifold}], lr=0.1)
        for _ in range(2):
            p.grad = torch.randn(shape).clamp(-1, 1) * size
            before = p.detach().clone()
            try:
                optimizer.step()
            except ValueError as error:
                assert "overflows" in str(error) or "so long" in str(error)  # noqa: PT017
                assert torch.equal(p.detach(), before)
            assert manifold.residual(p.detach()).max() < 2e-5


def test_a_step_that_is_too_long_for_one_parameter_moves_none() -> None:
    """The first of two moves; nothing is written until the second has been computed."""
    factor = Stiefel(retraction=retractions.exp)
    p, q = nn.Parameter(Stiefel().random(5, 5)), nn.Parameter(factor.random(6, 3))
    p.grad, q.grad = torch.randn(5, 5), torch.randn(6, 3) * 1e15
    before = [x.detach().clone() for x in (p, q)]
    optimizer = RiemannianSGD([{"params": [p], "manifold": Stiefel()}, {"params": [q], "manifold": factor}], lr=0.1)
    with pytest.raises(ValueError, match=r"parameter 0 of group 1, shape \(6, 3\), is so long"):
        optimizer.step()
    assert [torch.equal(x, y) for x, y in zip((p, q), before, strict=True)] == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_refused_step_leaves_does_not_keep_the_next_from_moving(kind: Any) -> None:
    """A group without a rate stays in the refused step, and only there."""
    factor, shape = Stiefel(retraction=retractions.exp), (6, 3)
    p, q = nn.Parameter(Stiefel().random(5, 5)), nn.Parameter(factor.random(*shape))
    optimizer = kind([{"params": [p], "manifold": Stiefel()}, {"params": [q], "manifold": factor}], lr=0.1)
    for rates in ((0.1, 0.2), (0.1, 0.2), (0.0, 1e25), (0.1, 0.2)):  # never equal, so that the plan stays
        before = p.detach().clone()
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        p.grad, q.grad = torch.randn(5, 5), torch.randn(shape)
        if rates[1] > 1:
            with pytest.raises(ValueError, match="so long"):
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(p.detach(), before) == (rates[0] == 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel(retraction=retractions.qr), Sphere(), Euclidean()], ids=str)
def test_where_looking_would_stall_a_bad_factor_is_left(kind: Any, manifold: Manifold, monkeypatch: Any) -> None:
    """As on an accelerator: factors with a bad gradient and their moments stay bit for bit, and are counted; the
    others move as if they were alone."""
    shape = {2: (6, 5, 3), 1: (6, 4), 0: (6,)}[manifold.ndim]
    start = manifold.random(*shape)
    good, bad = [0, 1, 3, 5], [2, 4]
    p, q = nn.Parameter(start.clone()), nn.Parameter(start[good].clone())
    optimizer = kind([{"params": [p], "manifold": manifold}], lr=0.1)
    reference = kind([{"params": [q], "manifold": manifold}], lr=0.1)
    monkeypatch.setattr(bucket, "can_look", lambda device: False)
    for step in range(4):
        p.grad = torch.randn(shape)
        q.grad = p.grad[good].clone()
        if step in (1, 2):
            p.grad[2:5:2].view(2, -1)[:, -1] = torch.tensor([torch.nan, torch.inf])
        before = everything(optimizer, [p])
        optimizer.step()
        reference.step()
        torch.testing.assert_close(p.detach()[good], q.detach(), rtol=0, atol=1e-6)
        if step in (1, 2):
            assert torch.equal(p.detach()[bad], before[0][0][bad])
            for key, moment in optimizer.state[p].items():
                assert key in bucket.COUNTS or torch.equal(moment[bad], before[1][0][key][bad])
        else:
            assert not torch.equal(p.detach()[bad], before[0][0][bad])
    assert optimizer.skipped == 4
    assert copy.deepcopy(optimizer).skipped == 4
    assert reference.skipped == 0
    assert bool(manifold.contains(p.detach()).all())


def orthogonalized(x: Tensor, v: Tensor) -> Tensor:
    """A retraction that reads no value; those of the library do, on CPU."""
    return torch.linalg.qr(x + v).Q


BLIND = Stiefel(retraction=orthogonalized)


class Looks(TorchDispatchMode):
    """Counts how often a value is read from a tensor, for which an accelerator has to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [lambda groups: RiemannianAdam(groups, capturable=True), RiemannianSGD])
@pytest.mark.parametrize("manifold", [BLIND**2, BLIND * Euclidean, Sphere()], ids=str)
def test_a_step_can_be_captured(kind: Any, manifold: Manifold, monkeypatch: Any) -> None:
    """Where looking would stall, no step after the first reads a value; and it polishes, for its replays must."""
    params = [nn.Parameter(manifold.random(10, 3)) for _ in range(2)]
    optimizer = kind([{"params": params, "manifold": manifold}])
    monkeypatch.setattr(bucket, "can_look", lambda device: False)
    monkeypatch.setattr(steps, "may_look", lambda x: False)
    polished: list[Any] = []
    monkeypatch.setattr(TallEngine, "polish", lambda self, x: polished.append(x) or x)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        with Looks() as looks:
            optimizer.step()
    assert looks.count == 0
    assert len(polished) == (0 if manifold == Sphere() else 3)


def test_capturable_changes_no_iterate() -> None:
    """Steps counted on the device are the same steps."""
    params = [nn.Parameter(Stiefel().random(4, 4, dtype=torch.float64))]
    params.append(nn.Parameter(params[0].detach().clone()))
    optimizers = [
        RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1, capturable=i == 1)
        for i, p in enumerate(params)
    ]
    for _ in range(10):
        g = torch.randn(4, 4, dtype=torch.float64)
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = g
            optimizer.step()
    # the device counts in float32
    torch.testing.assert_close(params[0].detach(), params[1].detach(), rtol=0, atol=1e-5)


def test_a_captured_step_that_counts_on_the_host_is_an_error(monkeypatch: Any) -> None:
    """A RuntimeError that names the option; nothing moves."""
    p = nn.Parameter(Stiefel().random(4, 4))
    optimizer, before = RiemannianAdam([{"params": [p], "manifold": Stiefel()}]), p.detach().clone()
    for module in (bucket, counting):
        monkeypatch.setattr(module, "can_look", lambda device: False)
        monkeypatch.setattr(module, "being_captured", lambda device: True)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="capturable=True"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


def test_a_sparse_gradient_is_an_error() -> None:
    """A ValueError that names the parameter; nothing changes."""
    embedding = nn.Embedding(6, 3, sparse=True)
    with torch.no_grad():
        embedding.weight.copy_(Stiefel().random(6, 3))
    groups = [{"params": list(embedding.named_parameters()), "manifold": Stiefel}]
    optimizer = RiemannianSGD(groups, lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(ValueError, match=r"gradient of weight, .* sparse"):
        optimizer.step()
    assert torch.equal(embedding.weight.detach(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_was_replaced_is_the_state(kind: Any) -> None:
    """A tensor of the state of one optimizer, replaced by that of another, makes it go on as the other would."""
    factor, x = Stiefel(), Stiefel().random(6, 3)
    ps = [nn.Parameter(x.clone()) for _ in range(2)]
    one, other = (kind([{"params": [p], "manifold": factor}], lr=0.1) for p in ps)
    for _ in range(3):
        ps[1].grad = torch.randn(6, 3)
        other.step()
    ps[0].grad = torch.randn(6, 3)
    one.step()
    with torch.no_grad():
        ps[0].copy_(ps[1])
    for key, value in other.state[ps[1]].items():
        one.state[ps[0]][key] = value.clone()
    ps[0].grad = ps[1].grad = torch.randn(6, 3)
    one.step()
    other.step()
    torch.testing.assert_close(ps[0], ps[1], rtol=0, atol=1e-6)
    for key, value in other.state[ps[1]].items():
        if key != "drift":
            torch.testing.assert_close(one.state_dict()["state"][0][key], value, rtol=1e-5, atol=1e-6)


def test_a_group_that_changes_its_manifold_moves_on_the_new_one() -> None:
    p = nn.Parameter(torch.eye(4)[:3].clone())
    optimizer = RiemannianSGD([{"params": [p], "manifold": Stiefel()}], lr=0.1)
    for manifold in (Stiefel(), Sphere()):
        optimizer.param_groups[0]["manifold"] = manifold
        p.grad = torch.ones(3, 4)
        optimizer.step()
        assert manifold.residual(p.detach()).max() < 1e-5
    assert Stiefel().residual(p.detach()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_point_written_by_others_is_polished_at_once(kind: Any, dtype: torch.dtype) -> None:
    """It is near the manifold only; after a step the point, or its master, is on it to rounding."""
    p = nn.Parameter(Stiefel().random(5, 5).to(dtype))
    optimizer = kind([{"params": [p], "manifold": Stiefel()}], lr=0.01)
    for step in range(4):
        p.grad = torch.randn(5, 5).to(dtype)
        if step == 2:
            with torch.no_grad():
                p.copy_(p * 1.0002 if dtype == torch.float32 else Stiefel().random(5, 5))
        optimizer.step()
        point = optimizer.state[p].get("master", p.detach())
        assert Stiefel().residual(point) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_step_moves_no_free_parameter(kind: Any) -> None:
    p, free = nn.Parameter(Stiefel(retraction=retractions.exp).random(6, 3)), nn.Parameter(torch.zeros(3))
    groups = [{"params": [p], "manifold": Stiefel(retraction=retractions.exp)}, {"params": [free]}]
    optimizer = kind(groups, lr=1e25)
    p.grad, free.grad = torch.randn(6, 3), torch.randn(3)
    with pytest.raises(ValueError, match="so long"):
        optimizer.step()
    assert torch.equal(free, torch.zeros(3))


def test_a_gradient_whose_square_overflows_leaves_the_moments_as_they_were() -> None:
    """|X^T G - G^T X|^2 may be sixteen times |G|^2."""
    p = nn.Parameter(Stiefel().random(5, 5))
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1)
    p.grad = torch.randn(5, 5)
    optimizer.step()
    p.grad *= 1.7e19 / p.grad.norm()
    with pytest.raises(ValueError, match="overflows"):
        optimizer.step()
    p.grad = torch.randn(5, 5)
    optimizer.step()
    assert bool(torch.isfinite(optimizer.state[p]["exp_avg_sq"]).all())


def nowhere(x: Tensor, v: Tensor) -> Tensor:
    return x + v * torch.nan


@pytest.mark.parametrize("kind", KINDS)
def test_a_retraction_that_gives_no_point_moves_nothing(kind: Any) -> None:
    """One of the user's own may return NaN where ours raise an error."""
    factor = Stiefel(retraction=nowhere)
    p = nn.Parameter(factor.random(6, 3))
    before, p.grad = p.detach().clone(), torch.randn(6, 3)
    with pytest.raises(ValueError, match="so long"):
        kind([{"params": [p], "manifold": factor}], lr=0.1).step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("shape", [(6, 3), (5, 5), (3, 3), (2, 6, 3), (2, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-300, 2e-38])
def test_no_gradient_is_no_step_whatever_eps(shape: Any, dtype: torch.dtype, eps: float) -> None:
    p = nn.Parameter(Stiefel().random(*shape, dtype=dtype))
    before, optimizer = p.detach().clone(), RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1, eps=eps)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-6)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert not torch.equal(p.detach(), before)
    assert bool(Stiefel().contains(p.detach()).all())


@pytest.mark.parametrize("shape", [(20, 4), (4, 20), (5, 5), (600, 3, 3)])
@pytest.mark.parametrize("retraction", [retractions.polar, retractions.cayley, retractions.qr])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("length", [30.0, 3e2, 1e3, 1e4, 5e4, 2e5, 1e6, 1e7, 1e10, 1e20, 1e39])
def test_a_long_step_stays_on_the_manifold_or_is_refused(
    shape: Any, retraction: Any, length: float, dtype: torch.dtype, capturable: bool
) -> None:
    manifold = Stiefel(retraction=retraction)
    p = nn.Parameter(manifold.random(*shape, dtype=dtype))
    options = {"betas": (0.0, 0.0), "eps": 0.0, "capturable": True} if capturable else {}
    kind: Any = RiemannianAdam if capturable else RiemannianSGD
    before, optimizer = p.detach().clone(), kind([{"params": [p], "manifold": manifold}], lr=length, **options)
    g = torch.zeros_like(p)
    g[..., 0, 1] = 1.0  # of rank one: the step has eigenvalues from 1 to its length
    p.grad = g
    refused = False
    try:
        optimizer.step()
    except ValueError:
        refused = True
    assert refused == torch.equal(p.detach(), before)
    assert bool(manifold.contains(p.detach()).all())
    assert not (refused and length <= 100)


@dataclass(frozen=True)
class Written(Stiefel):
    """As a user writes it: the momentum is carried after the step, to where it led."""

    def store(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return self.transport(x, y, c)

    def recall(self, x: Tensor, stored: Tensor) -> Tensor:
        return stored

    def mix(self, x: Tensor, stored: Tensor, g: Tensor, keep: float, add: float) -> tuple[Tensor, Tensor]:
        return Engine.mix(engine(self), x, stored, g, keep, add)


def fragile(x: Tensor, v: Tensor) -> Tensor:
    return torch.where(torch.linalg.vector_norm(v) > 1, torch.nan, retractions.polar(x, v))


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_after_a_step_that_was_refused(kind: Any) -> None:
    manifold = Written(retraction=fragile)
    p = nn.Parameter(manifold.random(20, 4))
    optimizer = kind([{"params": [p], "manifold": manifold}], lr=0.01)
    p.grad = torch.randn(20, 4)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e4
    with pytest.raises(ValueError, match="so long"):
        optimizer.step()
    assert all(bool(value.isfinite().all()) for value in optimizer.state[p].values())
    optimizer.param_groups[0]["lr"] = 1e-9
    optimizer.step()
    assert bool(manifold.contains(p.detach()).all())


def test_a_write_before_a_state_is_loaded_is_polished() -> None:
    p = nn.Parameter(Stiefel().random(20, 20))
    optimizer = RiemannianSGD([{"params": [p], "manifold": Stiefel()}], lr=0.01)
    p.grad = torch.randn(20, 20)
    optimizer.step()
    with torch.no_grad():
        p.mul_(1 + 3e-4)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert bool(Stiefel().contains(p.detach()).all())


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_is_reset_in_place_is_that_of_a_new_optimizer(kind: Any) -> None:
    start = Stiefel().random(6, 3)
    params = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [kind([{"params": [p], "manifold": Stiefel()}], lr=0.01) for p in params]
    for _ in range(20):
        params[0].grad = torch.randn(6, 3)
        optimizers[0].step()
    with torch.no_grad():
        params[0].copy_(start)
        for value in optimizers[0].state[params[0]].values():
            value.zero_()
    g = torch.randn(6, 3)
    for p, optimizer in zip(params, optimizers, strict=True):
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), params[1].detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("options", [{"lr": 1e39}, {"lr": 1e300}, {"eps": 1e39}, {"eps": 1e300}], ids=str)
def test_numbers_beyond_float32_are_taken_or_refused(count: int, options: dict[str, float]) -> None:
    """As steps too long, or so short that nobody moves; for one point, where sizes are floats, as for several."""
    params = [nn.Parameter(Stiefel().random(4, 2)) for _ in range(count)]
    before = [p.detach().clone() for p in params]
    optimizer = RiemannianAdam([{"params": params, "manifold": Stiefel()}], **options)
    for p in params:
        p.grad = torch.randn_like(p)
    if "lr" in options:
        with pytest.raises(ValueError, match="so long"):
            optimizer.step()
    else:
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=0, atol=8 * torch.finfo(torch.float32).eps)
