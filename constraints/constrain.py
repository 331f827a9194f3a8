"""constrain and unconstrain: from a name in a module to a tensor on a manifold, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from manifolds import Layout, Manifold
from manifolds._points import NotRealError
from manifolds.compositions import Composition

from .checkpoints import unwatch_loading, watch_loading
from .composing import composed, hold_parts, initial_points, release_parts
from .coordinates import Coordinates, coordinates_of
from .eligible import check_computable, check_same, free_parameter
from .fitting import fit
from .held import Held, held
from .method import Method, Site
from .names import kind_of, match, no_module, parameters_of, tensors
from .progress import shown
from .records import Records
from .records import constrained as constrained_parameters
from .riemannian import Riemannian
from .sharding import check_not_sharded
from .ties import places_of
from .trivialization import Trivialization
from .values import Init, initial

LET_GO = (
    "What fully_shard has made of its coordinates cannot become the weight. Call unconstrain before fully_shard; or "
    "load constraints.export_state_dict(model), which all processes call together, into a plain model, and shard that."
)

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

    A tied tensor is one tensor: given under one of its names it is held at all its places, those of modules outside of
    this one too. A tensor may be given again, in the same way: it comes back after a write, as of an initializer.
    Raises ValueError or TypeError, and leaves the module as it was, where a name matches nothing, a tensor is
    constrained in another way already, the manifold, the layout and the shape do not fit, a packed tensor needs a
    layout, or there is no initial value.

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
    if not isinstance(module, nn.Module):
        raise no_module(module)
    # a tensor made in inference mode never trains, as the base would be; where the Parameters are such, nothing does
    serves = torch.is_inference_mode_enabled() and any(p.is_inference() for p in module.parameters() if not is_lazy(p))
    with torch.inference_mode(serves):
        _constrain(module, name, manifold, method, layout, init)
    return module


def _constrain(
    module: nn.Module,
    name: str | Sequence[str],
    manifold: Manifold | Composition,
    method: Method,
    layout: Layout | None,
    init: Init,
) -> None:
    shared: dict[int, list[Site]] = {}
    again: dict[int, Site] = {}
    known = constrained_parameters()
    for full, (owner, attribute) in match(module, name).items():
        if (coordinates := dict(coordinates_of(owner)).get(attribute)) is not None:
            again.setdefault(id(coordinates[0]), Site(full, owner, attribute, coordinates.original))  # type: ignore[arg-type]
            continue
        parameter = free_parameter(full, owner, attribute, method, known)
        if not isinstance(method, Riemannian) or isinstance(manifold, Composition):
            check_computable(full, owner, attribute)
        sites = shared.setdefault(id(parameter), [])
        if all((site.owner, site.attribute) != (owner, attribute) for site in sites):  # a module may have two names
            sites.append(Site(full, owner, attribute, parameter))
    if isinstance(method, Trivialization) or isinstance(manifold, Composition):  # which make new Parameters
        _add_ties(module, shared, method, known)
    values = [_once_more(site, manifold, method, layout, init) for site in again.values()]
    plan = []
    named = ((sites[0].name, sites[0].parameter.numel(), sites) for sites in shared.values())
    for sites in shown(named, len(shared)):
        try:
            chosen = fit(manifold, layout, sites[0])
            check_same(sites[0], chosen, known)
        except ValueError as error:
            raise ValueError(f"{error}{_among(name, sites[0], shared.values())}") from error
        plan.append((sites, _holding(chosen, method, sites, init)))
    for sites, hold in plan:
        hold()
        for site in sites:
            root = module if site.inside else site.owner
            watch_loading(root, site.name)
            watch_loading(site.owner, site.attribute)
    for held_already, point in values:
        if point is not None:
            held_already.start(point)


def _holding(chosen: Manifold | Composition, method: Method, sites: list[Site], init: Init) -> Callable[[], None]:
    """What holds one tensor, once everything that can fail is done."""
    who, parameter = str(sites[0]), sites[0].parameter
    try:
        if isinstance(chosen, Manifold):
            value = initial(chosen, parameter, init, who)
            return lambda: method.hold(sites, chosen, value)
        points = initial_points(chosen, parameter, init, who)
    except ValueError as error:
        if who in str(error) or type(error) not in (ValueError, NotRealError):  # a function's own
            raise
        raise ValueError(f"{who}, shape {tuple(parameter.shape)}: {error}") from error
    return lambda: hold_parts(sites, chosen, points, partial(_hold_part, method, sites[0].name))


def _hold_part(method: Method, tensor: str, parts: nn.Module, name: str, manifold: Manifold) -> None:
    """Hold a part of the tensor of this dotted name, which is called tensor.part in messages, as in `constrain`."""
    full = f"{tensor}.{name}"
    site = Site(full, parts, name, free_parameter(full, parts, name, method, {}))
    if not isinstance(method, Riemannian):
        check_computable(full, parts, name)
    fit(manifold, None, site)
    method.hold([site], manifold, initial(manifold, site.parameter, None, str(site)))
    watch_loading(parts, name)


def unconstrain(module: M, name: str | Sequence[str]) -> M:
    """Leave module.name a plain Parameter with its present value, bit for bit. Returns the module.

    name: as for `constrain`; a glob may also match tensors that are not constrained. Under both
    engines the Parameter stays the same object, where the tensor is not composed of several; make a new optimizer, for
    the old one has the momentum of the constraint, and a Riemannian one its manifold.
    A tied tensor is let go at all its places, and stays tied. Raises ValueError where no constrained tensor matches.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> type(unconstrain(layer, "weight").weight).__name__
    'Parameter'
    """
    places = set(match(module, name).values())
    constrained = list(held(module))
    named = {each.identity for each in constrained if (each.owner, each.attribute) in places}
    known = constrained_parameters()  # also under a name that they were not constrained by
    tied = [(owner, attribute) for owner, attribute in places if id(parameters_of(owner).get(attribute)) in known]
    groups: dict[int, list[Held]] = {}
    for each in constrained:
        if each.identity in named:
            groups.setdefault(each.identity, []).append(each)
    lists = [found for owner, attribute in places if (found := dict(composed(owner)).get(attribute)) is not None]
    parts = {id(found.parts): found.parts for found in lists}
    if not groups and not parts and not tied:
        names = ", ".join(each.name for each in constrained)
        have = f"Constrained are: {names}." if names else "Nothing in this module is."
        raise ValueError(f"{name!r} matches no constrained tensor of {kind_of(module)}. {have}")
    shards = [each for group in groups.values() if (each := group[0]).coordinates is not None]
    for each in shards:
        check_not_sharded(each.coordinates.original, each.name, LET_GO)  # type: ignore[union-attr]
    for one in parts.values():
        for t in one.parameters():
            check_not_sharded(t, f"a part of {one.name}", LET_GO)
    for group in groups.values():
        for owner, _ in group[0].method.release([(each.owner, each.attribute) for each in group]):
            unwatch_loading(owner)
    for place in tied:
        Riemannian().release([place])
    for one in parts.values():
        for owner, _ in release_parts(one):
            unwatch_loading(owner)
    unwatch_loading(module)
    return module


def _among(name: str | Sequence[str], site: Site, groups: Collection[Sequence[Site]]) -> str:
    """What to do about one tensor of many that a glob matches."""
    if site.name == name or (not isinstance(name, str) and site.name in name):
        return ""
    return (
        f" {name!r} matches {len(groups)} tensors, and {site.name} among them. If it was not meant, write a glob that "
        f"leaves it out, as '*.weight' leaves out biases."
    )


def _add_ties(
    module: nn.Module, shared: dict[int, list[Site]], method: Method, known: dict[int, tuple[Records, str]]
) -> None:
    """A trivialized tensor has a new Parameter: all places of a tied one move together, or they come untied. Those in
    the module come under their names, in its order, and then those elsewhere."""
    for full, (owner, attribute) in tensors(module).items():
        sites = shared.get(id(parameters_of(owner).get(attribute)), [])
        if sites and all((site.owner, site.attribute) != (owner, attribute) for site in sites):
            sites.append(Site(full, owner, attribute, free_parameter(full, owner, attribute, method, known)))
    parameters = [sites[0].parameter for sites in shared.values()]
    here = [site.owner._parameters for sites in shared.values() for site in sites]
    for owner, attribute, parameter in places_of(parameters, here) if parameters else []:
        site = shared[id(parameter)][0]
        if isinstance(owner, ParametrizationList):
            kinds = ", ".join(type(each).__name__ for each in owner)
            raise ValueError(
                f"{site}, shape {tuple(parameter.shape)}, is tied to a tensor of a module that another "
                f"parametrization, {kinds}, computes from it. Call torch.nn.utils.parametrize.remove_parametrizations "
                f"there first, or use Riemannian(), which leaves one Parameter."
            )
        checked = free_parameter(attribute, owner, attribute, method, known)
        shared[id(parameter)].append(Site(attribute, owner, attribute, checked, inside=False))


def _once_more(
    site: Site, manifold: Manifold | Composition, method: Method, layout: Layout | None, init: Init
) -> tuple[Coordinates, Tensor | None]:
    """The value that a tensor takes which is trivialized already, as by its tie; None for the one that it has.
    ValueError where it is held in another way."""
    coordinates = dict(coordinates_of(site.owner))[site.attribute]
    held: Any = coordinates[0]
    if method != Trivialization(held.rebase_every) or fit(manifold, layout, site) != held.manifold:
        raise ValueError(
            f"{site} is constrained already, to {held.manifold} by {Trivialization(held.rebase_every)}. Call "
            f"unconstrain first."
        )
    stays = False
    try:
        held.check_base()
        stays = init is None
        present = coordinates.point()
    except ValueError:  # there is no weight; what was written to its base is a value to begin with
        if stays:
            raise
        present = coordinates.stand_in()
    return coordinates, None if stays else initial(held.manifold, present, init, str(site))
