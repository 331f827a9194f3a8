"""Which Parameters can be held: plain dense ones with a value, that nothing else holds or computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from manifolds import Manifold
from manifolds.compositions import Composition

from .composing import composed
from .method import Method, Site
from .names import computed_from, describe, lists_of, read, written
from .records import Records
from .riemannian import Riemannian
from .values import check_whole


def free_parameter(
    full: str, owner: nn.Module, attribute: str, method: Method, known: dict[int, tuple[Records, str]]
) -> nn.Parameter:
    """The Parameter at owner.attribute, of this dotted name, if it can be constrained; known are those that are."""
    who = describe(owner, full)
    if attribute in dict(composed(owner)):
        composition = dict(composed(owner))[attribute].parts.composition
        draws = "; for a new start alone, call its reset_parameters()" * hasattr(owner, "reset_parameters")
        raise ValueError(f"{who} is composed already, by {composition}. Call unconstrain first{draws}.")
    if attribute in lists_of(owner):
        kinds = ", ".join(type(p).__name__ for p in lists_of(owner)[attribute].children())
        raise ValueError(
            f"{who} is under another parametrization, {kinds}; a constraint needs a plain Parameter. Call "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {attribute!r}) first."
        )
    if isinstance(owner, torch.jit.ScriptModule):
        raise ValueError(
            f"{attribute} of a module of torch.jit cannot be held. Constrain the module that it was made of; for "
            f"torch.jit make it of that module again, after unconstrain."
        )
    parameter = owner._parameters[attribute]
    assert parameter is not None
    if (source := computed_from(owner, attribute)) is not None:
        raise ValueError(
            f"{who} is no weight: torch computes {source[0]} from it, by {source[1]}, and that would not be on the "
            f"manifold. Call {source[2]} first, and constrain {source[0]}."
        )
    if id(parameter) in known and not isinstance(method, Riemannian):
        records, place = known[id(parameter)]
        raise ValueError(
            f"{who} is constrained already, to {records.manifolds[place]} by Riemannian(). Call unconstrain first."
        )
    if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
        raise ValueError(f"{who} has no value yet. Run the lazy module once, or load its weights, and constrain then.")
    check_whole(parameter, who)
    if parameter.layout != torch.strided:
        raise ValueError(f"{who} is a tensor of layout {parameter.layout}; a constraint needs a dense one.")
    if parameter.dtype not in method.dtypes():
        dtypes = ", ".join(str(d).removeprefix("torch.") for d in method.dtypes())
        to = "complex64" if parameter.is_complex() else "float32"
        raise ValueError(
            f"{who} has dtype {str(parameter.dtype).removeprefix('torch.')}, shape {tuple(parameter.shape)}; "
            f"{method} holds {dtypes}. Put another in its place, "
            f"{written(attribute, f'torch.nn.Parameter({read(attribute)}.to(torch.{to}))')}."
        )
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.max_norm is not None:
        raise ValueError(
            f"{who}, shape {tuple(parameter.shape)}, is rescaled in place by each pass, as max_norm says. Set "
            f"module.max_norm = None first; the norms of rows are what Oblique(axis=-1) or Sphere(radius) hold."
        )
    return parameter


def check_computable(full: str, owner: nn.Module, attribute: str) -> None:
    """ValueError for a name that torch's parametrize cannot have, as it keeps them in a ModuleDict, or a class."""
    if hasattr(nn.ModuleDict, attribute):
        raise ValueError(
            f"{describe(owner, full)} has a name that torch.nn.utils.parametrize cannot hold, for its ModuleDict has a "
            f"method of it. Give the Parameter another name, or hold it on a manifold with Riemannian()."
        )
    kind: Any = type(owner)
    if not lists_of(owner) and any("__init_subclass__" in vars(each) for each in kind.__mro__[:-1]):
        try:
            type(f"Parametrized{kind.__name__}", (kind,), {})  # what torch does, after it has taken the Parameter away
        except Exception as error:
            raise ValueError(
                f"{describe(owner, full)} is of a class that refuses to have another derived from it, as "
                f"torch.nn.utils.parametrize does. Hold it on a manifold with Riemannian()."
            ) from error


def check_same(site: Site, manifold: Manifold | Composition, known: dict[int, tuple[Records, str]]) -> None:
    """ValueError where `Riemannian` holds the Parameter on another manifold."""
    records, place = known.get(id(site.parameter), (None, ""))
    if records is not None and records.manifolds[place] != manifold:
        raise ValueError(
            f"{site} is constrained already, to {records.manifolds[place]} by Riemannian(). Call unconstrain first."
        )
