"""Dotted names of tensors: what a name or a glob stands for in a module, and how messages call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize


def describe(owner: nn.Module, attribute: str) -> str:
    """How messages call a tensor, by its attribute or dotted name: `weight_hh_l0 of GRU(128, 256)`."""
    kind = parametrize.type_before_parametrizations(owner)
    return f"{attribute} of {kind.__name__}({owner.extra_repr()})"


def owners(module: nn.Module, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """(dotted prefix, module) of every submodule but those that parametrizations are made of; once, or every_name.

    The parts that a tensor is composed of are under its name: `layer.weight.u`.
    """
    for path, owner in module.named_modules(remove_duplicate=not every_name):
        if getattr(owner, "holds_parts", False) and path:
            head, _, tail = path.rpartition("parametrizations.")
            path = head + tail.removesuffix(".0")
        if "parametrizations" not in path.split("."):
            yield (path + "." if path else ""), owner


def tensors(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every Parameter and every parametrized tensor of the module by its dotted name, each as (owner, attribute)."""
    found = {}
    for prefix, owner in owners(module, every_name=True):
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                found[prefix + attribute] = owner, attribute
        if parametrize.is_parametrized(owner):
            for attribute in owner.parametrizations:  # type: ignore[union-attr]
                found[prefix + attribute] = owner, attribute
    return found


def match(module: nn.Module, name: str | Sequence[str]) -> dict[str, tuple[nn.Module, str]]:
    """The tensors that a dotted name, a glob over dotted names, or a list of those stands for.

    Raises ValueError where there is none, of any in a list, with the names that come near; TypeError for what is no
    module or no name.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"a constraint is of a torch.nn.Module and the name of its tensor, as in constrain(model, 'layer.weight', "
            f"Stiefel); got a {type(module).__name__} for the module."
        )
    if isinstance(name, (list, tuple)) and name:
        return {full: place for each in name for full, place in match(module, each).items()}
    if not isinstance(name, str):
        raise TypeError(f"a name is 'layer.weight', a glob, or a list of those; got {name!r}.")
    found = tensors(module)
    if name in found:
        return {name: found[name]}
    chosen = {full: place for full, place in found.items() if fnmatchcase(full, name)}
    if not chosen:
        raise ValueError(_missing(module, name, list(found)))
    return chosen


def _missing(module: nn.Module, name: str, names: list[str]) -> str:
    path, _, attribute = name.rpartition(".")
    owner = dict(module.named_modules()).get(path)
    kind = parametrize.type_before_parametrizations(module).__name__
    near = get_close_matches(name, names, n=5, cutoff=0.5) or get_close_matches(attribute, names, n=5, cutoff=0.3)
    listed = f" Near names: {', '.join(near or names[:5])}." if names else f" {kind} has no parameters."
    if owner is not None and attribute in owner._buffers:
        return f"{describe(owner, attribute)} is a buffer; a constraint needs a Parameter.{listed}"
    if owner is not None and attribute in owner._parameters:
        return f"{describe(owner, attribute)} is None: this module was made without it.{listed}"
    inside = dict(module.named_modules()).get(name)
    if inside is not None:
        return f"{name!r} is a module of {kind}; name one of its tensors, as in {name}.weight.{listed}"
    if owner is not None and hasattr(owner, f"{attribute}_g") and hasattr(owner, f"{attribute}_v"):
        return (
            f"{describe(owner, attribute)} is computed by torch.nn.utils.weight_norm; a constraint needs a Parameter. "
            f"Call torch.nn.utils.remove_weight_norm first."
        )
    return f"{kind} has no parameter that matches {name!r}.{listed}"
