"""What every method keeps, whatever it computes: types, inputs, and the independence of batch items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..base import GeodesicManifold, NearestPointManifold
from ._case import Case, Finding, holds, theorem, within

# Arguments in the letters of the contract: x, y points, w a point near x, z near M; a ambient, u, v tangent at x; c, d
# coordinates at x.
POINTS = {
    "project": "xa",
    "gradient": "xa",
    "retract": "xv",
    "transport": "xyv",
}
NUMBERS = {"residual": "z", "inner": "xuv", "norm": "xv"}
ENGINE_POINTS = {"coordinates": "xa", "lift": "xa", "move": "xc", "carry": "xyc", "polish": "x"}
ENGINE_NUMBERS = {"coordinate_inner": "xcd"}
GEODESIC_POINTS = {"exp": "xv", "log": "xw"}
GEODESIC_NUMBERS = {"distance": "xw"}
VECTORS = "auvcd"


def _calls(case: Case) -> dict[str, str]:
    geodesic = isinstance(case.manifold, GeodesicManifold)
    nearest = {"nearest": "z"} if isinstance(case.manifold, NearestPointManifold) else {}
    more = GEODESIC_POINTS | GEODESIC_NUMBERS if geodesic else {}
    return {**nearest, **POINTS, **NUMBERS, **ENGINE_POINTS, **ENGINE_NUMBERS, **more}


def _method(case: Case, name: str) -> Callable[..., Tensor]:
    of = case.engine if name in ENGINE_POINTS | ENGINE_NUMBERS else case.manifold
    method: Callable[..., Tensor] = getattr(of, name)
    return method


def _argument(case: Case, letter: str) -> Tensor:
    if letter in "xy":
        return (case.x if letter == "x" else case.y).clone()
    if letter == "w":
        return case.manifold.retract(case.x.clone(), 0.5 * case.tangent(2))
    if letter in "az":
        return case.ambient(2) if letter == "a" else case.x + 0.1 * case.ambient(2)
    return case.tangent("uv".index(letter) + 2) if letter in "uv" else case.coordinates("cd".index(letter) + 2)


def _arguments(case: Case, name: str) -> tuple[Tensor, ...]:
    return tuple(_argument(case, letter) for letter in _calls(case)[name])


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, 0 where both are the same infinity, as residuals off an open set."""
    return torch.where(a == b, 0, a - b).abs()


def _wrong(case: Case, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    got, due = (value.dtype, value.device.type, tuple(value.shape)), (dtype, case.device.type, shape)
    return "" if got == due else f"gives {got} in place of {due}"


@theorem("random: dtype, device, shape", "random(*shape, dtype, device) is what was asked for", ground=False)
def _(case: Case) -> Iterator[Finding]:
    wrong = _wrong(case, case.x, case.dtype, case.shape)
    yield holds(not wrong, wrong)
    generator = torch.Generator(torch.empty(0).device).manual_seed(case.seed)
    default = case.manifold.random(*case.shape, generator=generator).dtype
    yield holds(default == torch.get_default_dtype(), f"without dtype it gives {default}")


@theorem(
    "calls: dtype, device, shape",
    "points and vectors like x; numbers real, one per point",
    needs=("random: dtype, device, shape",),
    ground=False,
)
def _(case: Case) -> Iterator[Finding]:
    numbers = case.shape[: len(case.shape) - case.manifold.ndim]
    for name in _calls(case):
        value = _method(case, name)(*_arguments(case, name))
        if name in NUMBERS | ENGINE_NUMBERS | GEODESIC_NUMBERS:
            wrong = _wrong(case, value, case.dtype.to_real(), numbers)
        else:
            wrong = _wrong(case, value, case.dtype, case.shape)
        yield holds(not wrong, f"{name} {wrong}")


@theorem(
    "calls: inputs untouched",
    "no method writes to its arguments",
    needs=("calls: dtype, device, shape",),
    ground=False,
)
def _(case: Case) -> Iterator[Finding]:
    for name in _calls(case):
        before, given = _arguments(case, name), _arguments(case, name)
        _method(case, name)(*given)
        same = all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        yield holds(same, f"{name} changes an argument")


@theorem("batch: equals loop", "method(x)[i, j] = method(x[i, j]) for every method")
def _(case: Case) -> Iterator[Finding]:
    batch = case.at(2, 3)
    for name in _calls(batch):
        method, arguments = _method(case, name), _arguments(batch, name)
        together = method(*arguments)
        for i, j in itertools.product(range(2), range(3)):
            alone = method(*(t[i, j] for t in arguments))
            if together[i, j].shape != alone.shape:
                yield holds(False, f"{name} gives {tuple(together.shape)} for batch (2, 3)")
            else:
                yield within(_gap(together[i, j], alone), batch.rounding, name)


@theorem("batch: items do not mix", "x[0, 0] has no influence on method(x)[i, j] for any other i, j")
def _(case: Case) -> Iterator[Finding]:
    batch = case.at(2, 3)
    for name in _calls(batch):
        method, arguments = _method(case, name), _arguments(batch, name)
        others = tuple(t.clone() for t in arguments)
        for letter, t in zip(_calls(batch)[name], others, strict=True):
            t[0, 0] = t[1, 2] * (3 if letter in VECTORS else 1)
        change = _gap(method(*others), method(*arguments))
        change[0, 0] = 0
        yield within(change, batch.rounding, name)


@theorem("batch: views", "method(a view) = method(its contiguous copy)")
def _(case: Case) -> Iterator[Finding]:
    batch = case.at(2)
    for name in _calls(batch):
        method, arguments = _method(case, name), _arguments(batch, name)
        views = [t.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0) for t in arguments]
        yield within(_gap(method(*views), method(*arguments)), batch.rounding, name)
