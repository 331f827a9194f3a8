"""The precision that geometry needs: that of its tensors, whatever autocast and the settings of products say."""

from __future__ import annotations

import functools
import inspect
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
        self.lock, self.inside, self.kept = threading.Lock(), 0, ["highest"]

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self._enter()
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self._leave()

    def _enter(self) -> None:
        if _get is None or _set is None:
            self.kept = [torch.get_float32_matmul_precision()]
            torch.set_float32_matmul_precision("highest")
            return
        self.kept = [_get(backend, "matmul") for backend in _BACKENDS]
        for backend, kept in zip(_BACKENDS, self.kept, strict=True):
            if kept not in _EXACT:
                _set(backend, "matmul", "ieee")

    def _leave(self) -> None:
        if _get is None or _set is None:
            torch.set_float32_matmul_precision(self.kept[0])
            return
        for backend, kept in zip(_BACKENDS, self.kept, strict=True):
            if kept not in _EXACT:
                _set(backend, "matmul", "none")  # as torch.backends.fp32_precision says, where that was it
                if _get(backend, "matmul") != kept:
                    _set(backend, "matmul", kept)


_full = _FullProducts()


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
    """A map of points with `exact_products`, in float32 where tensors in half precision come. What is made of these
    alone is rounded to their dtype at the end, but under autocast.

    Products in bfloat16 would leave a point off its set by 3e-3, and nothing would say so.
    """
    draws = method.__name__ == "random"

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        is_compiling = torch.compiler.is_dynamo_compiling()
        if is_compiling or torch._C._is_any_autocast_enabled():  # a tenth of asking each
            for device in AUTOCAST:
                if torch.is_autocast_enabled(device):
                    with torch.autocast(device, enabled=False):
                        wide: Any = {name: _wide(value) for name, value in options.items()}
                        return exact(*map(_wide, args), **wide)
        if draws:
            asked: Any = options.get("dtype") or torch.get_default_dtype()
            if asked in HALF:
                wide = {**options, "dtype": torch.float32}
                drawn: R = _rounded(exact(*args, **wide), asked)
                return drawn
        for value in (*args, *options.values()) if options else args:
            if getattr(value, "dtype", None) in HALF:
                dtypes = {value.dtype for value in (*args, *options.values()) if isinstance(value, Tensor)}
                wide = {name: _wide(value) for name, value in options.items()}
                made: R = _rounded(exact(*map(_wide, args), **wide), functools.reduce(torch.promote_types, dtypes))
                return made
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


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _rounded(made: Any, dtype: torch.dtype) -> Any:
    """What was made, a tensor or several by name, in this dtype if that is a half one."""
    if isinstance(made, dict):
        return {name: _rounded(value, dtype) for name, value in made.items()}
    if dtype in HALF and isinstance(made, Tensor) and made.dtype == torch.float32:
        return made.to(dtype)
    return made


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
