"""Weights of nn.GRU, nn.LSTM and nn.RNN that are computed, or whose memory is not their own.

cuDNN wants all weights of such a layer in one piece of memory, and a pass of torch that finds other tensors than the
last one moves them there, Parameters too. Under `fully_shard` their memory is what later passes gather into, and in a
captured CUDA graph what later replays read: weights that were moved away would keep the values of that one pass,
silently. Here such a layer takes its weights as they are, and cuDNN a copy.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import is_sharded

_LENT = "_weights_are_lent"


class _Passes(threading.local):
    """The weights of each layer that this thread is in a pass of."""

    def __init__(self) -> None:
        self.weights: weakref.WeakKeyDictionary[nn.Module, list[Any]] = weakref.WeakKeyDictionary()


_passes = _Passes()


def _get(module: nn.Module) -> list[Any]:
    own = _passes.weights.get(module)
    shared: list[Any] = module.__dict__["_flat_weights"]
    return shared if own is None else own


def _set(module: nn.Module, weights: list[Any]) -> None:
    if module in _passes.weights:
        _passes.weights[module] = weights
    else:
        module.__dict__["_flat_weights"] = weights


weights_of_threads = property(_get, _set)
"""`_flat_weights` of a layer with computed weights: torch writes them there in each pass, and reads them again. Those
of another thread, as one that evaluates under no_grad, would come without a graph or with one that is used up."""


def begin_pass(module: nn.Module) -> None:
    """Let this thread have weights of its own."""
    if isinstance(module, nn.RNNBase):
        _passes.weights[module] = list(module.__dict__["_flat_weights"])


def end_pass(module: nn.Module) -> None:
    _passes.weights.pop(module, None)


def take_weights(module: nn.Module, args: Any = None) -> None:
    """Before a pass: give the layer its present weights, if their memory is another's; else it looks for itself."""
    if isinstance(module, nn.RNNBase) and (_is_lent(module) or _is_captured(module)):
        weights = [getattr(module, name, None) for name in module._flat_weights_names]
        module._flat_weights = weights
        module._flat_weight_refs = [None if w is None else weakref.ref(w) for w in weights]


def watch_sharded(model: nn.Module) -> None:
    """Call `take_weights` before each pass of the recurrent layers of a model that are sharded."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and any(map(is_sharded, module._parameters.values())):
            module.__dict__[_LENT] = True
            if take_weights not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(take_weights)


def _is_lent(module: nn.RNNBase) -> bool:
    """Whether a pass has had other Parameters than the module was made with, as those that fully_shard gathers."""
    if _LENT not in module.__dict__:
        pairs = zip(module._flat_weights_names, module._flat_weight_refs, strict=False)
        own = ((module._parameters.get(name), ref) for name, ref in pairs)
        if all(p is None or ref is None or ref() is p for p, ref in own):
            return False
        module.__dict__[_LENT] = True
    return True


def _is_captured(module: nn.RNNBase) -> bool:
    weight = module._flat_weights[0]
    on_cuda = isinstance(weight, Tensor) and weight.is_cuda
    return on_cuda and torch.cuda.is_current_stream_capturing()
