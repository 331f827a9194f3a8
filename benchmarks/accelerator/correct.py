"""Is it right there? Manifolds, engines, exactness, gradients that are not fit to be taken."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, report
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import BlockSpec, Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel, retractions
from manifolds.testing import check_manifold

from .. import engines
from ..timing import infeasibility
from .checks import Check, Numbers, Place, require
from .pretend import pretended

SECTION = "correct"
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

MANIFOLDS: tuple[tuple[Manifold, tuple[int, ...]], ...] = (
    (Stiefel(), (2, 7, 3)),
    (Stiefel(), (3, 7)),
    (Stiefel(), (2, 5, 5)),
    (Stiefel("canonical"), (7, 3)),
    *((Stiefel(retraction=r), (7, 3)) for r in (retractions.cayley, retractions.exp, retractions.qr)),
    (Orthogonal(), (2, 4, 4)),
    (SpecialOrthogonal(), (2, 3, 3)),
    (SpecialOrthogonal(retractions.exp), (4, 4)),
    (Sphere(), (4, 5)),
    (Stiefel() ** 3, (12, 4)),
    (Stiefel() * Euclidean() ** 2, (12, 4)),
)

BOUND = 1e-5
"""What max|Q^H Q - I| may be in float32 after any number of steps, as on a processor."""


def checks() -> Iterator[Check]:
    for method in (Riemannian(), Trivialization(rebase_every=4), Trivialization()):
        for name, make in MODELS.items():
            yield Check(SECTION, f"{name}, {method}: as on a processor", partial(as_on_a_processor, make, method))
    for bits, dtypes in (("TF32 on", DTYPES[:1]), ("TF32 off", (torch.float32, torch.bfloat16, torch.complex64))):
        for maker in (engines.riemannian, engines.trivialized):
            for dtype in dtypes:
                name = f"exactness: {maker.__name__}, {_short(dtype)}, {bits}"
                yield Check(SECTION, name, partial(exactness, maker, dtype, bits == "TF32 on"))
    yield Check(SECTION, "gradients with NaN and Inf, and long ones", unfit_gradients)
    yield Check(SECTION, "the tests that need a device", the_tests)


def contracts() -> Iterator[Check]:
    """Long, and last: what they state is stated on a processor too."""
    for manifold, shape in MANIFOLDS:
        yield Check("contract", f"{manifold}, {shape}", partial(contract, manifold, shape))


# Engines on modules ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """Something with one weight to hold, and a loss."""

    def __init__(self, body: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.body = body
        self.inputs: Tensor
        self.register_buffer("inputs", inputs)

    def forward(self) -> Tensor:
        x: Any = self.inputs
        y = self.body(x, x, x)[0] if isinstance(self.body, nn.MultiheadAttention) else self.body(x)
        y = y[0] if isinstance(y, tuple) else y
        loss: Tensor = (y - torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype, device=y.device)).square().mean()
        return loss


def gru(method: Method) -> Net:
    body = constrain(nn.GRU(6, 16).double(), "weight_hh_l0", Stiefel**3, method)
    return Net(body, torch.randn(9, 4, 6, dtype=torch.float64))


def linear(method: Method) -> Net:
    return Net(constrain(nn.Linear(8, 20).double(), "weight", Stiefel, method), torch.randn(5, 8, dtype=torch.float64))


def conv(method: Method) -> Net:
    layout = BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=2)
    body = constrain(nn.Conv2d(4, 8, 3, groups=2).double(), "weight", Stiefel, method, layout=layout)
    return Net(body, torch.randn(2, 4, 8, 8, dtype=torch.float64))


def attention(method: Method) -> Net:
    body = constrain(nn.MultiheadAttention(12, 3).double(), "in_proj_weight", Stiefel**3, method)
    return Net(body, torch.randn(5, 2, 12, dtype=torch.float64))


MODELS: dict[str, Callable[[Method], Net]] = {"GRU": gru, "Linear": linear, "Conv2d": conv, "attention": attention}


def as_on_a_processor(make: Callable[[Method], Net], method: Method, place: Place) -> Numbers:
    """Twenty steps in float64 end where they end on a processor, and on the manifold.

    A base that follows by itself moves at other steps there, since nobody looks: then the processor plays a device.
    """
    torch.manual_seed(0)
    here = make(method)
    there = copy.deepcopy(here).to(place.device)
    with pretended() if method == Trivialization() else nullcontext():
        losses = [_train(here, method)]
    losses.append(_train(there, method))
    gap = abs(losses[0] - losses[1]) / losses[0]
    # Adam divides by the root of the first gradients, which magnifies their rounding where they are small
    require(gap < 1e-6, f"losses {losses[0]!r} and {losses[1]!r}")
    (held,) = report(there)
    require(held.ok, f"off by {max(held.residuals):.1e}")
    return {"relative gap of the loss": gap}


def _train(net: Net, method: Method) -> float:
    if isinstance(method, Riemannian):
        optimizer: torch.optim.Optimizer = RiemannianAdam(net, lr=1e-2)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = net()
        loss.backward()
        optimizer.step()
    return float(loss.item())


# Exactness ------------------------------------------------------------------------------------------------


def exactness(make: engines.MakeEngine, dtype: torch.dtype, tf32: bool, place: Place) -> Numbers:
    """The worst max|Q^H Q - I| over steps with random gradients, squares and tall ones, at every rate."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return {f"lr {lr:g}": _exact(make, dtype, lr, place) for lr in (1e-4, 1e-2, 1.0)}
    finally:
        torch.set_float32_matmul_precision(before)


def _exact(make: engines.MakeEngine, dtype: torch.dtype, lr: float, place: Place) -> float:
    torch.manual_seed(0)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    shapes = [(2, 16, 16), (2, 32, 8), (64, 64), (place.size(512), 64), (300, 3, 3)]
    start = [Stiefel().random(*shape, dtype=wide).to(place.device, dtype) for shape in shapes]
    engine, worst = make(start, lr), 0.0
    for step in range(place.steps(60)):
        engine.optimizer.zero_grad()
        points = engine.points()
        torch.autograd.backward(points, [torch.randn_like(x) for x in points])
        engine.optimizer.step()
        if step % 20 == 0:
            error = infeasibility(engine.kept())
            worst = error if math.isnan(error) else max(worst, error)
    # a trivialized bfloat16 weight is a rounding of its point, which is judged
    require(worst <= BOUND, f"max|Q^H Q - I| = {worst:.1e} at lr {lr:g}")
    return worst


def unfit_gradients(place: Place) -> Numbers:
    """Where looking would stall, a factor with such a gradient stays bit for bit, its neighbours move, all counted."""
    for kind in (RiemannianAdam, RiemannianSGD):
        p = nn.Parameter(Stiefel().random(4, 9, 5).to(place.device))
        optimizer = kind([{"params": [p], "manifold": Stiefel}], lr=0.1)
        before = p.detach().clone()
        g = torch.randn(4, 9, 5)
        g[1, 0, 0], g[2, 3, 3], g[3] = math.nan, math.inf, 1e30 * g[3]
        p.grad = g.to(place.device)
        optimizer.step()
        stayed = [bool((p[i] == before[i]).all()) for i in range(4)]
        require(stayed == [False, True, True, True], f"{kind.__name__}: which factors stayed: {stayed}")
        require(optimizer.skipped == 3, f"{kind.__name__} counts {optimizer.skipped} skipped factors, not 3")
        require(bool(Stiefel().contains(p.detach()).all()), f"{kind.__name__} left the manifold")
    return {}


# Contract and tests ---------------------------------------------------------------------------------------


def contract(manifold: Manifold, shape: tuple[int, ...], place: Place) -> Numbers:
    check_manifold(manifold, shape, device=place.device, dtype=DTYPES[:1] if place.pretended else DTYPES)
    return {}


def the_tests(place: Place) -> Numbers:
    """Those of the suite that are skipped without a device; warnings of another torch are not ours."""
    tests = ["tests/life/test_precision_and_place.py", "tests/life/test_distributed.py"]
    if place.pretended:
        tests = ["tests/manifolds/test_iterations.py"]
    root = Path(__file__).parent.parent.parent
    options = ["-q", "-x", "-W", "default", "-p", "no:cacheprovider", "-o", "required_plugins=", "--timeout=100"]
    which = ["-k", "cuda or data_parallel or replicate or empty"]
    command = [sys.executable, "-m", "pytest", *options, *which, *tests]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=150, check=False)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
    require(done.returncode == 0, " ".join(done.stdout.strip().splitlines()[-12:])[-600:] or last[0])
    return {"said": last[0]}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def quietly(check: Check) -> Check:
    """The same check, whose warnings are not shown."""

    def run(place: Place) -> Numbers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check.run(place)

    return Check(check.section, check.name, run)
