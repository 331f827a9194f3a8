"""The precision that geometry needs: that of its tensors, whatever autocast and the settings of products say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

MAPS = (
    *("compose", "contains", "decompose", "distance", "exp", "geodesic", "gradient", "inner", "log", "mean", "nearest"),
    *("norm", "project", "random", "random_points", "random_tangent", "residual", "retract", "transport"),
)
"""Methods that compute points, vectors and lengths."""

EXACT = ("none", "ieee")
"""Values of fp32_precision."""

P = ParamSpec("P")
R = TypeVar("R")
AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))
_AS_IT_IS = nullcontext()
# a sixth of the time of the property torch.backends...fp32_precision; none before torch 2.9
_setting: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)


def is_lowered() -> bool:
    """Whether `torch.set_float32_matmul_precision`, or a setting of one backend, allows TF32 or bfloat16 inside of
    float32."""
    if _setting is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _setting("cuda", "matmul") not in EXACT or _setting("mkldnn", "matmul") not in EXACT


# A constant of the graph: another setting is another graph, for which torch watches. As
# `torch.compiler.assume_constant_result` does it, which would import the compiler here.
vars(is_lowered)["_dynamo_marked_constant"] = True


def exact_products(*devices: str) -> AbstractContextManager[None]:
    """Matrix products on these types of device in the full precision of their factors.

    Without autocast, and without the TF32 or bfloat16 that `torch.set_float32_matmul_precision` allows inside of
    float32: an orthogonality error of 1e-6 would become one of 1e-3 to 1e-1, and nothing would say so. In a graph
    autocast alone can be left; the other setting is of the process, for which there is `outside_where_lowered`.
    """
    if torch.compiler.is_compiling():
        for device in devices:
            if torch.is_autocast_enabled(device):
                return torch.autocast(device, enabled=False)
        return _AS_IT_IS
    if all(map(_is_exact, devices)):
        return _AS_IT_IS
    return _exact(devices)


def outside_where_lowered(method: Callable[P, R]) -> Callable[P, R]:
    """A method that in `torch.compile` is part of the graph, but where products are lowered: there the graph ends, and
    it runs as it is, within `exact_products` of its own."""

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling() and is_lowered():
            return _outside(method, *args, **options)
        return method(*args, **options)

    return exact


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass in the precision of its tensors, also where `loss.backward()` is called under autocast."""

    @functools.wraps(backward)
    def exact(ctx: Any, grad: Tensor | None, *rest: Any) -> Any:
        device = "cpu" if grad is None else grad.device.type
        # before torch 2.9 a graph cannot hold the question
        has = device in AUTOCAST if torch.compiler.is_compiling() else _has_autocast(device)
        if not has or not torch.is_autocast_enabled(device):
            return backward(ctx, grad, *rest)
        with torch.autocast(device, enabled=False):
            return backward(ctx, grad, *rest)

    return exact


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """A map of points with `exact_products`, whose tensors in half precision come as float32 under autocast.

    Products in bfloat16 would leave a point off its set by 3e-3, and nothing would say so.
    """

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        is_compiling = torch.compiler.is_compiling()
        if is_compiling or torch._C._is_any_autocast_enabled():  # a tenth of asking each
            for device in AUTOCAST:
                if torch.is_autocast_enabled(device):
                    with torch.autocast(device, enabled=False):
                        wide: Any = {name: _wide(value) for name, value in options.items()}
                        return exact(*map(_wide, args), **wide)
        if not is_lowered():
            return method(*args, **options)
        if is_compiling:
            return _outside(exact, *args, **options)
        with exact_products("cpu", "cuda"):
            return method(*args, **options)

    return exact


def maps_in_full_precision(kind: type) -> None:
    """`in_full_precision` for the maps that this class, of manifolds or compositions, writes itself."""
    for name in MAPS:
        if inspect.isfunction(method := vars(kind).get(name)):
            setattr(kind, name, in_full_precision(method))


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def _outside(function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    from .outside import run

    found: R = run(function, *args, **options)
    return found


def _is_exact(device: str) -> bool:
    backend = _backend(device)  # only of devices that have autocast
    return backend is not None and backend.fp32_precision in EXACT and not torch.is_autocast_enabled(device)


@contextmanager
def _exact(devices: tuple[str, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for device in devices:
            if _is_autocast(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(_full_float32(device))
        yield


@contextmanager
def _full_float32(device: str) -> Iterator[None]:
    backend = _backend(device)
    if backend is None:
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    kept = backend.fp32_precision
    if kept in EXACT:
        yield
        return
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = kept


def _is_autocast(device: str) -> bool:
    return _has_autocast(device) and torch.is_autocast_enabled(device)


_has_autocast = functools.cache(torch.amp.is_autocast_available)


@functools.cache
def _backend(device: str) -> Any:
    """The settings of products on this device; None where there are none of its own, as before torch 2.9."""
    backend = getattr({"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device), "matmul", None)
    return backend if hasattr(backend, "fp32_precision") else None
