"""The precision that geometry needs: that of its tensors, whatever autocast and the settings of products say."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

MAPS = (
    *("compose", "decompose", "distance", "exp", "geodesic", "gradient", "inner", "log", "mean", "nearest"),
    *("norm", "project", "random", "random_points", "random_tangent", "residual", "retract", "transport"),
)
"""Methods that compute points, vectors and lengths. `contains` has its tolerance by the dtype, and only calls them."""

HALF = (torch.bfloat16, torch.float16)

P = ParamSpec("P")
R = TypeVar("R")
AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))
_AS_IT_IS = nullcontext()

# Called as they are, these take a sixth of the time of the properties torch.backends...fp32_precision. Before torch 2.9
# there is one setting of all.
_get: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
_set: Callable[[str, str, str], object] | None = getattr(torch._C, "_set_fp32_precision_setter", None)
_BACKENDS = ("cuda", "mkldnn")
_EXACT = ("none", "ieee")


class _FullProducts:
    """Full float32 products while anybody is inside, in whatever thread: the setting is one of the process. The last
    one out puts back what the first one found."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.RLock(), 0
        self.of_all: str | None = None
        self.of_each: list[str] = []

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self._enter()

    def __exit__(self, *error: object) -> None:
        with self.lock:
            if self.inside == 1:
                self._leave()
            self.inside = max(self.inside - 1, 0)

    def _enter(self) -> None:
        """By the way by which the setting was made, for torch takes the other one for a contradiction."""
        self.of_all, self.of_each = _setting_of_all(), []
        if self.of_all not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        elif _get is not None and _set is not None:
            self.of_each = [_get(backend, "matmul") for backend in _BACKENDS]
            for backend, kept in zip(_BACKENDS, self.of_each, strict=True):
                if kept not in _EXACT:
                    _set(backend, "matmul", "ieee")

    def _leave(self) -> None:
        if self.of_all not in (None, "highest"):
            if _setting_of_all() == "highest":  # and nobody has changed it
                torch.set_float32_matmul_precision(str(self.of_all))
        elif _get is not None and _set is not None:
            for backend, kept in zip(_BACKENDS, self.of_each, strict=True):
                if kept not in _EXACT and _get(backend, "matmul") == "ieee":
                    _set(backend, "matmul", "none")  # as torch.backends.fp32_precision says, where that was it
                    if _get(backend, "matmul") != kept:
                        _set(backend, "matmul", kept)

    def after_fork(self) -> None:
        """The threads that were inside are not in the child."""
        self.lock = threading.RLock()
        if self.inside:
            self._leave()
            self.inside = 0


def _setting_of_all() -> str | None:
    """None where there is none, but one for each backend."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


_full = _FullProducts()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_full.after_fork)


def is_lowered() -> bool:
    """Whether `torch.set_float32_matmul_precision`, or a setting of `torch.backends`, allows TF32 or bfloat16 inside of
    float32; or would, were not somebody within `exact_products`."""
    if _full.inside:
        return True
    if _get is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _get("cuda", "matmul") not in _EXACT or _get("mkldnn", "matmul") not in _EXACT


# A constant of the graph: another setting is another graph, for which torch watches, but for one of the CPU alone. As
# `torch.compiler.assume_constant_result` does it, which would import the compiler here.
vars(is_lowered)["_dynamo_marked_constant"] = True


def exact_products(*devices: str) -> AbstractContextManager[None]:
    """Matrix products on these types of device in the full precision of their factors.

    Without autocast, and without the TF32 or bfloat16 that `torch.set_float32_matmul_precision` allows inside of
    float32: an orthogonality error of 1e-6 would become one of 1e-3 to 1e-1, and nothing would say so. In a graph
    autocast alone can be left; the other setting is of the process, for which there is `outside_where_lowered`.
    """
    if torch.compiler.is_dynamo_compiling():
        for device in devices:
            if torch.is_autocast_enabled(device):
                return torch.autocast(device, enabled=False)
        return _AS_IT_IS
    cast = [device for device in devices if _has_autocast(device) and torch.is_autocast_enabled(device)]
    if not is_lowered():
        return _exact(cast) if cast else _AS_IT_IS
    return _exact(cast, _full)


def outside_where_lowered(method: Callable[P, R]) -> Callable[P, R]:
    """A method that in `torch.compile` is part of the graph, but where products are lowered: there the graph ends, and
    it runs as it is, within `exact_products` of its own."""

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling() and is_lowered():
            return _outside(method, *args, **options)
        return method(*args, **options)

    return exact


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass in the precision of its tensors, also where `loss.backward()` is called under autocast."""

    @functools.wraps(backward)
    def exact(ctx: Any, grad: Tensor | None, *rest: Any) -> Any:
        device = "cpu" if grad is None else grad.device.type
        # before torch 2.9 a graph cannot hold the question
        has = device in AUTOCAST if torch.compiler.is_dynamo_compiling() else _has_autocast(device)
        if not has or not torch.is_autocast_enabled(device):
            return backward(ctx, grad, *rest)
        with torch.autocast(device, enabled=False):
            return backward(ctx, grad, *rest)

    return exact


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """A map of points with `exact_products`, in float32 where tensors in half precision come.

    What is made is rounded to the dtype of the first of them, the point, if that is a half one; but under autocast.
    Products in bfloat16 would leave a point off its set by 3e-3, and nothing would say so.
    """
    draws = method.__name__ == "random" and "dtype" in inspect.signature(method).parameters

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        is_compiling = torch.compiler.is_dynamo_compiling()
        if is_compiling or torch._C._is_any_autocast_enabled():  # a tenth of asking each
            for device in AUTOCAST:
                if torch.is_autocast_enabled(device):
                    with torch.autocast(device, enabled=False):
                        return _in_float32(exact, args, options)
        if draws:
            asked: Any = options.get("dtype") or torch.get_default_dtype()
            if asked in HALF:
                return _rounded(exact(*args, **{**options, "dtype": torch.float32}), asked)  # type: ignore
        for value in (*args, *options.values()) if options else args:
            if isinstance(value, Tensor) and value.dtype in HALF:
                point = next(each for each in (*args, *options.values()) if isinstance(each, Tensor))
                return _rounded(_in_float32(exact, args, options), point.dtype)
        if not is_lowered():
            return method(*args, **options)
        if is_compiling:
            return _outside(exact, *args, **options)
        with _full:
            return method(*args, **options)

    return exact


def maps_in_full_precision(kind: type) -> None:
    """`in_full_precision` for the maps that this class, of manifolds or compositions, writes itself."""
    for name in MAPS:
        if inspect.isfunction(method := vars(kind).get(name)):
            setattr(kind, name, in_full_precision(method))


_given = threading.local()


def as_given(dtype: torch.dtype) -> torch.dtype:
    """The half precision in which the caller of this map gave its points, by which they are rounded; or this dtype."""
    is_open = dtype == torch.float32 and not torch.compiler.is_dynamo_compiling()
    return getattr(_given, "dtype", dtype) if is_open else dtype


def _in_float32(function: Callable[..., R], args: tuple[Any, ...], options: dict[str, Any]) -> R:
    wide, named = list(map(_wide, args)), {name: _wide(value) for name, value in options.items()}
    halves = [each.dtype for each in (*args, *options.values()) if isinstance(each, Tensor) and each.dtype in HALF]
    if torch.compiler.is_dynamo_compiling() or not halves or hasattr(_given, "dtype"):
        return function(*wide, **named)
    _given.dtype = max(halves, key=lambda dtype: torch.finfo(dtype).eps)
    try:
        return function(*wide, **named)
    finally:
        del _given.dtype


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _rounded(made: R, dtype: torch.dtype) -> R:
    """What was made, a tensor or several by name, in this dtype if that is a half one."""
    rounded: Any = made
    if isinstance(made, dict):
        rounded = {name: _rounded(value, dtype) for name, value in made.items()}
    elif dtype in HALF and isinstance(made, Tensor) and made.dtype == torch.float32:
        rounded = made.to(dtype)
    return rounded  # type: ignore[no-any-return]


def _outside(function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    from .outside import run

    found: R = run(function, *args, **options)
    return found


@contextmanager
def _exact(cast: list[str], *also: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in (*(torch.autocast(device, enabled=False) for device in cast), *also):
            stack.enter_context(each)
        yield


_has_autocast = functools.cache(torch.amp.is_autocast_available)
