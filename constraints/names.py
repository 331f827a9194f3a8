"""Dotted names of tensors: what a name or a glob stands for in a module, and how messages call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from keyword import iskeyword

from torch import nn
from torch.nn.utils import parametrize

OLDER = {
    "_g": ("torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm"),
    "_v": ("torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm"),
    "_orig": ("torch.nn.utils.spectral_norm", "torch.nn.utils.remove_spectral_norm"),
}
"""Functions of torch before parametrize, by what they add to the name of the Parameter that they take the place of."""


def kind_of(module: nn.Module) -> str:
    """The class of a module as its author calls it."""
    return parametrize.type_before_parametrizations(module).__name__


def describe(owner: nn.Module, attribute: str) -> str:
    """How messages call a tensor, by its attribute or dotted name: `weight_hh_l0 of GRU(128, 256)`."""
    options = owner.extra_repr()
    return f"{attribute} of {kind_of(owner)}({options if len(options.splitlines()) < 2 else '...'})"


def attribute_of(described: str) -> str:
    """The attribute of a tensor that messages call so."""
    return described.partition(" of ")[0].rpartition(".")[2]


def written(attribute: str, value: str, module: str = "module") -> str:
    """Code that gives module this attribute, which may be the number of a ParameterList."""
    plain = attribute.isidentifier() and not iskeyword(attribute)
    return f"{module}.{attribute} = {value}" if plain else f"setattr({module}, {attribute!r}, {value})"


def read(attribute: str, module: str = "module") -> str:
    """Code that reads it."""
    plain = attribute.isidentifier() and not iskeyword(attribute)
    return f"{module}.{attribute}" if plain else f"getattr({module}, {attribute!r})"


def parameters_of(owner: nn.Module) -> dict[str, nn.Parameter | None]:
    """The Parameters of this module itself, by attribute; of torch.jit too, whose dict is none of Python's."""
    return dict(owner._parameters.items())


def lists_of(owner: nn.Module) -> dict[str, nn.Module]:
    """The lists of parametrizations of this module itself, by attribute: none of torch.jit, and none of a module to
    which `__getattr__` forwards."""
    modules = vars(owner).get("_modules")
    lists = modules.get("parametrizations") if isinstance(modules, dict) else None
    return lists._modules if isinstance(lists, nn.ModuleDict) else {}


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
        for attribute, parameter in parameters_of(owner).items():
            if parameter is not None:
                found[prefix + attribute] = owner, attribute
        for attribute in lists_of(owner):
            found[prefix + attribute] = owner, attribute
    return found


def match(module: nn.Module, name: str | Sequence[str]) -> dict[str, tuple[nn.Module, str]]:
    """The tensors that a dotted name, a glob over dotted names, or a list of those stands for.

    Raises ValueError where there is none, of any in a list, with the names that come near; TypeError for what is no
    module or no name.
    """
    if not isinstance(module, nn.Module):
        raise no_module(module)
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


def no_module(module: object) -> TypeError:
    """The error for what is given in place of a module."""
    return TypeError(
        f"a constraint is of a torch.nn.Module and the name of its tensor, as in constrain(model, 'layer.weight', "
        f"Stiefel); got a {type(module).__name__} for the module."
    )


def check_module(module: object, call: str) -> None:
    """TypeError for what is given to this function in place of a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{call} takes a torch.nn.Module; got a {type(module).__name__}.")


def computed_from(owner: nn.Module, parameter: str) -> tuple[str, str, str] | None:
    """(attribute, what, how it is undone) where an older function of torch computes an attribute of the owner from this
    Parameter."""
    for end, (what, undo) in OLDER.items():
        attribute = parameter.removesuffix(end)
        there = parameters_of(owner)
        if attribute != parameter and parameter in there and attribute not in there and hasattr(owner, attribute):
            if end == "_orig" and f"{attribute}_mask" in owner._buffers:
                what, undo = "pruning", "torch.nn.utils.prune.remove"
            return attribute, what, f"{undo}(module, {attribute!r})"
    return None


def _missing(module: nn.Module, name: str, names: list[str]) -> str:
    path, _, attribute = name.rpartition(".")
    owner = dict(module.named_modules()).get(path)
    kind = kind_of(module)
    near = get_close_matches(name, names, n=5, cutoff=0.5) or get_close_matches(attribute, names, n=5, cutoff=0.3)
    listed = f" Near names: {', '.join(near or names[:5])}." if names else f" {kind} has no parameters."
    if owner is not None and attribute in owner._buffers:
        return f"{describe(owner, attribute)} is a buffer; a constraint needs a Parameter.{listed}"
    if owner is not None and attribute in parameters_of(owner):
        return f"{describe(owner, attribute)} is None: this module was made without it.{listed}"
    inside = dict(module.named_modules()).get(name)
    if inside is not None:
        return f"{name!r} is a module of {kind}; name one of its tensors, as in {name}.weight.{listed}"
    older = [] if owner is None else [computed_from(owner, attribute + end) for end in OLDER]
    for found in filter(None, older):
        who = describe(owner, attribute)  # type: ignore[arg-type]
        return f"{who} is computed by {found[1]}; a constraint needs a Parameter. Call {found[2]} first."
    return f"{kind} has no parameter that matches {name!r}.{listed}"
