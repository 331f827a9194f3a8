"""What every optimizer of `constraints.optim` must satisfy, for the author of a new one.

from constraints.optim.testing import check_optimizer

check_optimizer(RiemannianAdam, torch.optim.Adam, [{}, {"amsgrad": True}])
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manifolds import BlockSpec, Euclidean, Manifold, Orthogonal, ProductManifold, Sphere, Stiefel, tolerance

__all__ = ["OptimizerError", "check_optimizer"]

Make = Callable[..., Optimizer]
Options = dict[str, Any]

STEPS = 200
SAME = 1e-12
"""What 200 steps of equal formulas in another order may differ by in float64, in parts of entries of size 1."""
HELD: tuple[tuple[Manifold, tuple[int, ...]], ...] = (
    (Stiefel(), (6, 6)),
    (Stiefel(), (7, 3)),
    (Stiefel(), (3, 7)),
    (Orthogonal(), (4, 5, 5)),
    (Sphere(), (5, 4)),
    (Stiefel**2 * Euclidean, (9, 3)),
)


class OptimizerError(AssertionError):
    """What an optimizer breaks, one line each: the statement, its options, what was measured."""


def check_optimizer(kind: Make, like: Make | None = None, options: Sequence[Options] = ({},), *, seed: int = 0) -> None:
    """States what all rules have in common, for each of these options, and reports all that fails.

    kind: the class, called as kind(params, **options). like: its counterpart of torch.optim, called with the same
    options; None if there is none, and nothing is compared then. Stated is:

    - free tensors, and entries held as Euclidean, move as by `like`, over 200 steps in float64, to 1e-12 and 1e-11;
    - points stay on their manifolds to rounding in float32, and complex ones too;
    - a block of a packed weight moves as the same block held alone, whatever the layout;
    - from its state, saved and loaded with weights_only, a run goes on bit for bit;
    - lr=0 moves nothing; lr=-1, a gradient with NaN, a sparse one and a value off its manifold are a ValueError, and
      change nothing.

    Raises OptimizerError.

    >>> check_optimizer(RiemannianSGD, torch.optim.SGD, [{"lr": 0.01, "momentum": 0.9}])
    """
    __tracebackhide__ = True  # pytest then ends at the call, with the report
    broken = []
    for each in options:
        for statement, measure in STATEMENTS.items():
            try:
                shown = list(measure(kind, like, each, seed))
            except Exception as error:
                shown = [f"raised {type(error).__name__}: {error}".split("\n")[0]]
            broken += [f"  {statement}, with {each}: {what}" for what in shown[:2]]
    if broken:
        name = getattr(kind, "__name__", repr(kind))
        raise OptimizerError("\n".join([f"{name} breaks what every optimizer keeps:", *broken]))


def _free(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    yield from _compared(lambda params: kind(params, **options), like, options, seed, SAME)


def _entries(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    def make(params: list[nn.Parameter]) -> Optimizer:
        return kind([{"params": params, "manifold": Euclidean()}], **options)

    yield from _compared(make, like, options, seed, 10 * SAME)


def _compared(make: Make, like: Make | None, options: Options, seed: int, allowed: float) -> Iterator[str]:
    if like is None:
        return
    ours, theirs = ([nn.Parameter(_drawn(shape, seed)) for shape in ((4, 3), (5,), ())] for _ in range(2))
    for params, optimizer in ((ours, make(ours)), (theirs, like(theirs, **options))):
        for step in range(STEPS):
            _give(params, seed + step)
            if step % 3 == 0:  # one has none now and then, and the first one late
                params[-1].grad = None
            optimizer.step()
    error = max(float((p - q).abs().max()) for p, q in zip(_values(ours), _values(theirs), strict=True))
    if not error <= allowed:
        yield f"off by {error:.2g} after {STEPS} steps"


def _stays(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    for dtype in (torch.float32, torch.complex64):
        for manifold, shape in HELD:
            p = _point(manifold, shape, seed, dtype)
            before, optimizer = p.detach().clone(), _held(kind, [p], manifold, options)
            for step in range(20):
                _give([p], seed + step)
                optimizer.step()
            residual = float(manifold.residual(p.detach()).max())
            if not residual <= tolerance(dtype):
                yield f"residual {residual:.2g} on {manifold}, {dtype}"
            if torch.equal(p.detach(), before):
                yield f"nothing moves on {manifold}, {dtype}"


def _layouts(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    pattern = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=2)
    rows, columns = BlockSpec(rows=4, axis=0), BlockSpec(rows=4, axis=1)
    for layout, shape in ((rows, (20, 3)), (columns, (5, 12)), (pattern, (20, 3))):
        manifold = ProductManifold((Stiefel(), Sphere(), Stiefel(), Euclidean()), layout)
        whole = _point(manifold, shape, seed, torch.float64)
        apart = [nn.Parameter(block.clone()) for block in manifold.unpack(whole.detach())]
        together = _held(kind, [whole], manifold, options)
        alone = [_held(kind, [p], f, options) for p, f in zip(apart, manifold.factors, strict=True)]
        for step in range(10):
            _give([whole], seed + step)
            assert whole.grad is not None
            for p, g in zip(apart, manifold.unpack(whole.grad), strict=True):
                p.grad = g.clone()
            together.step()
            for optimizer in alone:
                optimizer.step()
        blocks = manifold.unpack(whole.detach())
        error = max(float((p - b).abs().max()) for p, b in zip(_values(apart), blocks, strict=True))
        if not error <= SAME:
            yield f"off by {error:.2g} after 10 steps of {manifold}"


def _resumes(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    for manifold, shape in (*HELD, (None, (3, 2))):
        p = _point(manifold, shape, seed, torch.float32)
        optimizer = _held(kind, [p], manifold, options)
        for step in range(3):
            _give([p], seed + step)
            optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        q = nn.Parameter(p.detach().clone())
        resumed = _held(kind, [q], manifold, options)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for step in range(3, 6):
            for x, each in ((p, optimizer), (q, resumed)):
                _give([x], seed + step)
                each.step()
        if not torch.equal(p, q):
            yield f"another run goes on from the state on {manifold}"


def _refuses(kind: Make, like: Make | None, options: Options, seed: int) -> Iterator[str]:
    stiefel = Stiefel()
    for what in ("lr=0", "lr=-1", "NaN", "sparse", "off"):
        p = _point(stiefel, (5, 4), seed, torch.float32)
        lr = {"lr=0": {"lr": 0.0}, "lr=-1": {"lr": -1.0}}.get(what, {})
        before = p.detach().clone()
        try:
            optimizer = _held(kind, [p], stiefel, {**options, **lr})
            _give([p], seed)
            optimizer.step()
            before = p.detach().clone()
            _give([p], seed + 1)
            assert p.grad is not None
            if what == "NaN":
                p.grad[0, 0] = torch.nan
            if what == "sparse":
                p.grad = p.grad.to_sparse()
            if what == "off":
                before = p.data.mul_(2).clone()
            state = copy.deepcopy(optimizer.state_dict()["state"])
            optimizer.step()
        except ValueError:
            if what in ("NaN", "sparse") and not _equal(state, optimizer.state_dict()["state"]):
                yield f"{what}: the state has changed"
        else:
            if what != "lr=0":
                yield f"{what}: no ValueError"
        if not torch.equal(p.detach(), before):
            yield f"{what}: the point has moved"


STATEMENTS: dict[str, Callable[[Make, Make | None, Options, int], Iterator[str]]] = {
    "free tensors move as in torch.optim": _free,
    "entries held as Euclidean move as in torch.optim": _entries,
    "points stay on their manifolds": _stays,
    "blocks move as if held alone": _layouts,
    "a run goes on from its state": _resumes,
    "what cannot be moved is refused": _refuses,
}


def _drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu")


def _point(manifold: Manifold | None, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> nn.Parameter:
    if manifold is None:
        return nn.Parameter(_drawn(shape, seed, dtype))
    return nn.Parameter(
        manifold.random(shape, generator=torch.Generator().manual_seed(seed + 1000), dtype=dtype, device="cpu")
    )


def _held(kind: Make, params: list[nn.Parameter], manifold: Manifold | None, options: Options) -> Optimizer:
    return kind([{"params": params, "manifold": manifold}], **options)


def _give(params: Sequence[nn.Parameter], seed: int) -> None:
    for p in params:
        p.grad = _drawn(tuple(p.shape), seed + 1, p.dtype)


def _values(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.detach() for p in params]


def _equal(state: Any, other: Any) -> bool:
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(_equal(state[key], other[key]) for key in state)
    return torch.equal(state, other) if isinstance(state, Tensor) else bool(state == other)
