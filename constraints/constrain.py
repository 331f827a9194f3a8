"""constrain and unconstrain: from a name in a module to a tensor on a manifold, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from manifolds import BlockSpec, Layout, Manifold, ProductManifold
from manifolds.compositions import ComposedProduct, Composition

from .checkpoints import unwatch_loading, watch_loading
from .composing import composed, hold_parts, initial_points, release_parts
from .held import Held, held
from .method import Method, Site
from .names import describe, match, owners, tensors
from .packing import check_packing, packing_of
from .progress import shown
from .records import Records, constrained
from .riemannian import Riemannian
from .ties import check_outside
from .trivialization import Trivialization, trivialized
from .values import Init, check_whole, initial

M = TypeVar("M", bound=nn.Module)


def constrain(
    module: M,
    name: str | Sequence[str],
    manifold: Manifold | Composition | type[Manifold] | type[Composition],
    method: Method = Trivialization(),  # noqa: B008 (a frozen value)
    *,
    layout: Layout | None = None,
    init: Init = None,
) -> M:
    """Hold module.name on a manifold, from now to `unconstrain`. Returns the module.

    name: dotted, a glob over dotted names, "encoder.*.self_attn.in_proj_weight", or a list of those.
    manifold: its class or an instance. Axes before those of one point are batch axes: a stack (E, n, p) under Stiefel
    is E matrices. A composition, as `LowRank(8)`, makes the tensor of several points, each of which is held; they are
    new Parameters, `parametrizations.<name>.0.<part>`, so an optimizer is made afterwards.
    method: `Trivialization()`, which any optimizer trains, or `Riemannian()`, which leaves a plain Parameter. To change
    the value later: under the first write `module.weight = value`, under the second copy into it under torch.no_grad().
    A change in place of a trivialized weight, as by torch.nn.init or on its `.data`, is a ValueError at its next use
    (on accelerators, one on `.data` is not seen, and nowhere is `module.weight.data = value`): it would do nothing.
    layout: where the blocks of a packed tensor lie: one copy of a plain manifold for each block, or the layout of a
    product, in place of equal blocks stacked on axis 0.
    init: None keeps a value on the manifold and else takes the nearest point; "haar" (random, uniform on compact
    manifolds), "identity", "torus" (rotations by uniform angles in pairs of axes), a tensor or a function of the
    present value that returns one, each within 1e-3 of the manifold.

    A Parameter that `Riemannian` holds may be given again, with the same manifold, to bring it back after a write.
    Raises ValueError or TypeError, and leaves the module as it was, where a name matches nothing, a tensor is
    constrained in another way already or shared with one that is not constrained too, the manifold, the layout and the
    shape do not fit, a packed tensor needs a layout, or there is no initial value.

    >>> gru = constrain(torch.nn.GRU(5, 8), "weight_hh_l0", Stiefel**3)
    >>> conv = torch.nn.Conv2d(4, 8, 3)
    >>> conv = constrain(conv, "weight", Stiefel, layout=BlockSpec.pattern("o i h w -> (o i) h w"), init="haar")
    """
    if not isinstance(method, Method):
        raise TypeError(f"method of constrain is Trivialization() or Riemannian(); got {method!r}.")
    if isinstance(manifold, type) and issubclass(manifold, Manifold | Composition):
        manifold = manifold()
    if not isinstance(manifold, Manifold | Composition):
        raise TypeError(f"constrain needs a manifold, as in Stiefel or Stiefel**3; got {manifold!r}.")
    shared: dict[int, list[Site]] = {}
    known = constrained()
    for full, (owner, attribute) in match(module, name).items():
        parameter = _free_parameter(full, owner, attribute, method, known)
        sites = shared.setdefault(id(parameter), [])
        if all((site.owner, site.attribute) != (owner, attribute) for site in sites):  # a module may have two names
            sites.append(Site(full, owner, attribute, parameter))
    _check_ties(module, shared, method)
    plan = []
    named = ((sites[0].name, sites[0].parameter.numel(), sites) for sites in shared.values())
    for sites in shown(named, len(shared)):
        try:
            chosen = _fit(manifold, layout, sites[0])
            _check_same(sites[0], chosen, known)
        except ValueError as error:
            raise ValueError(f"{error}{_among(name, sites[0], shared.values())}") from error
        plan.append((sites, _holding(chosen, method, sites, init)))
    for sites, hold in plan:
        hold()
        for site in sites:
            watch_loading(module, site.name)
    return module


def _holding(chosen: Manifold | Composition, method: Method, sites: list[Site], init: Init) -> Callable[[], None]:
    """What holds one tensor, once everything that can fail is done."""
    if isinstance(chosen, Manifold):
        value = initial(chosen, sites[0].parameter, init, str(sites[0]))
        return lambda: method.hold(sites, chosen, value)
    points = initial_points(chosen, sites[0].parameter, init, str(sites[0]))
    return lambda: hold_parts(sites, chosen, points, lambda parts, name, m: constrain(parts, name, m, method))


def unconstrain(module: M, name: str | Sequence[str]) -> M:
    """Leave module.name a plain Parameter with its present value, bit for bit. Returns the module.

    name: as for `constrain`; a glob may also match tensors that are not constrained. Under both
    engines the Parameter stays the same object; make a new optimizer, for the old one has the momentum of the
    constraint, and a Riemannian one its manifold.
    Raises ValueError where no constrained tensor matches, or where a tensor is shared under names that do not match.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> type(unconstrain(layer, "weight").weight).__name__
    'Parameter'
    """
    places = set(match(module, name).values())
    constrained = list(held(module))
    groups: dict[int, list[Held]] = {}
    for each in constrained:
        if (each.owner, each.attribute) in places:
            groups.setdefault(each.identity, []).append(each)
    plain = _composed_groups(module, places)
    if not groups and not plain:
        names = ", ".join(each.name for each in constrained)
        have = f"Constrained are: {names}." if names else "Nothing in this module is."
        raise ValueError(f"{name!r} matches no constrained tensor of {type(module).__name__}. {have}")
    for each in constrained:
        group = groups.get(each.identity, [each])
        if each not in group:
            raise ValueError(
                f"{group[0].name} shares its tensor with {each.name}; give both names, "
                f"{[group[0].name, each.name]}, so that they stay tied."
            )
    for group in groups.values():
        group[0].method.release([(each.owner, each.attribute) for each in group])
    for places_of_one in plain:
        release_parts(places_of_one)
    unwatch_loading(module)
    return module


def _composed_groups(module: nn.Module, places: set[tuple[nn.Module, str]]) -> list[list[tuple[nn.Module, str]]]:
    """The places of composed tensors, those that share one together. ValueError where only some of these are given."""
    found: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for prefix, owner in owners(module):
        for attribute, each in composed(owner):
            found.setdefault(id(each.parts), []).append((prefix + attribute, owner, attribute))
    groups = [group for group in found.values() if any((owner, attribute) in places for _, owner, attribute in group)]
    for group in groups:
        if any((owner, attribute) not in places for _, owner, attribute in group):
            raise ValueError(
                f"{[name for name, _, _ in group]} share one tensor; give all names, so that they stay tied."
            )
    return [[(owner, attribute) for _, owner, attribute in group] for group in groups]


def _free_parameter(
    full: str, owner: nn.Module, attribute: str, method: Method, known: dict[int, tuple[Records, str]]
) -> nn.Parameter:
    """The Parameter at owner.attribute, of this dotted name, if it can be constrained; known are those that are."""
    who = describe(owner, full)
    if attribute in dict(trivialized(owner)):
        raise ValueError(f"{who} is constrained already, by Trivialization(). Call unconstrain first.")
    if attribute in dict(composed(owner)):
        raise ValueError(
            f"{who} is composed already, by {dict(composed(owner))[attribute].parts}. Call unconstrain first."
        )
    if parametrize.is_parametrized(owner, attribute):
        kinds = ", ".join(type(p).__name__ for p in owner.get_submodule(f"parametrizations.{attribute}").children())
        raise ValueError(
            f"{who} is under another parametrization, {kinds}; a constraint needs a plain Parameter. Call "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {attribute!r}) first."
        )
    parameter = owner._parameters[attribute]
    assert parameter is not None
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
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.sparse and isinstance(method, Trivialization):
        raise ValueError(
            f"{who}, shape {tuple(parameter.shape)}, has gradients of sparse layout, and none goes through the map "
            f"from coordinates. Make the module with sparse=False, or set module.sparse = False."
        )
    if parameter.dtype not in method.dtypes():
        dtypes = ", ".join(str(d).removeprefix("torch.") for d in method.dtypes())
        raise ValueError(
            f"{who} has dtype {str(parameter.dtype).removeprefix('torch.')}, shape {tuple(parameter.shape)}; "
            f"{method} holds {dtypes}. Convert the module with .float()."
        )
    return parameter


def _check_same(site: Site, manifold: Manifold | Composition, known: dict[int, tuple[Records, str]]) -> None:
    """ValueError where `Riemannian` holds the Parameter on another manifold."""
    records, place = known.get(id(site.parameter), (None, ""))
    if records is not None and records.manifolds[place] != manifold:
        raise ValueError(
            f"{site} is constrained already, to {records.manifolds[place]} by Riemannian(). Call unconstrain first."
        )


def _among(name: str | Sequence[str], site: Site, groups: Collection[Sequence[Site]]) -> str:
    """What to do about one tensor of many that a glob matches."""
    if site.name == name or (not isinstance(name, str) and site.name in name):
        return ""
    return (
        f" {name!r} matches {len(groups)} tensors, and {site.name} among them. If it was not meant, write a glob that "
        f"leaves it out, as '*.weight' leaves out biases."
    )


def _check_ties(module: nn.Module, shared: dict[int, list[Site]], method: Method) -> None:
    """A trivialized tensor has a new Parameter: all names of a tied one must move together, or they come untied."""
    if not isinstance(method, Trivialization):
        return
    for full, (owner, attribute) in tensors(module).items():
        sites = shared.get(id(owner._parameters.get(attribute)))
        if sites is not None and all((site.owner, site.attribute) != (owner, attribute) for site in sites):
            names = _names_of(module, sites[0].parameter)
            raise ValueError(
                f"{sites[0]} is tied to {full}, and Trivialization would untie them. Give all its names, {names}, "
                f"or a glob that matches them, or use Riemannian(), which leaves one Parameter."
            )
    check_outside(shared.values())


def _names_of(module: nn.Module, parameter: nn.Parameter) -> list[str]:
    """One name for each place where a Parameter is."""
    places: dict[tuple[nn.Module, str], str] = {}
    for full, (owner, attribute) in tensors(module).items():
        if owner._parameters.get(attribute) is parameter:
            places.setdefault((owner, attribute), full)
    return list(places.values())


def _fit(manifold: Manifold | Composition, layout: Layout | None, site: Site) -> Manifold | Composition:
    """The manifold that holds this tensor, once layout, packing and shape agree."""
    shape = tuple(site.parameter.shape)
    packing = packing_of(site.owner, site.attribute)
    if layout is None and packing is not None:
        check_packing(packing, manifold, shape, str(site))
    try:
        chosen = manifold if layout is None else _with_layout(manifold, layout, shape)
        _check_axis(chosen, shape)
        chosen.dim(shape)
    except ValueError as error:
        raise ValueError(f"{site}, shape {shape}: {error}") from error
    return chosen


def _with_layout(manifold: Manifold | Composition, layout: Layout, shape: tuple[int, ...]) -> Manifold | Composition:
    if not isinstance(layout, Layout):
        raise TypeError(f"layout of constrain is a BlockSpec or a BlockSpec.pattern(...); got {layout!r}.")
    if isinstance(manifold, ProductManifold | ComposedProduct):
        if not manifold.stacked:
            raise ValueError(f"{manifold} has a layout of its own; got {layout} too. Drop one of them.")
        return replace(manifold, layout=layout)
    if layout == BlockSpec(rows=1, axis=0):
        return manifold
    ndim = layout.ndim(manifold.ndim)
    if len(shape) < ndim:
        raise ValueError(
            f"{layout} cuts points of {ndim} axes, and the tensor has {len(shape)}. Write a layout of axes that it "
            f"has, or reshape the tensor in its module."
        )
    count = len(layout.shapes(shape[len(shape) - ndim :]))
    return (
        ProductManifold((manifold,) * count, layout)
        if isinstance(manifold, Manifold)
        else ComposedProduct((manifold,) * count, layout)
    )


def _check_axis(manifold: Manifold | Composition, shape: tuple[int, ...]) -> None:
    """An axis counted from the first one means nothing where batch axes come before the packed point."""
    if not isinstance(manifold, ProductManifold | ComposedProduct) or len(shape) <= manifold.ndim:
        return
    layout = manifold.layout
    if isinstance(layout, BlockSpec) and layout.axis >= 0:
        axis, wanted = layout.axis - manifold.ndim, layout.axis - len(shape)
        ways = f"layout=BlockSpec(rows={layout.rows}, axis={axis}) to cut each of the batch"
        if wanted != axis:
            ways = (
                f"layout=BlockSpec(rows={layout.rows}, axis={wanted}) to cut axis {layout.axis} of the tensor, {ways}"
            )
        raise ValueError(
            f"{layout} counts its axis from the first one, but the tensor has more axes than a point of {manifold}, "
            f"which has {manifold.ndim}: it is ambiguous. Pass {ways}, or a BlockSpec.pattern that names every axis."
        )
