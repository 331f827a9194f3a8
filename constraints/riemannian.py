"""The Riemannian engine: the weight stays a plain Parameter, and an optimizer moves it on its manifold.

What lies on which manifold is written on the module that owns the Parameter, never on the tensor: a Parameter loses
its attributes in deepcopy and in `.to`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from manifolds import Manifold

from .method import Method, Site
from .precision import exact_products
from .trivialization import coordinates_of
from .values import at_least_float32, code, is_near

KEY = "_riemannian_constraints"
LOOK_EVERY = 100  # steps: what a Gram matrix costs then is nothing


@dataclass(frozen=True)
class Riemannian(Method):
    """The weight is the Parameter itself, and only an optimizer of `constraints.optim` may move it.

    Name, state_dict key and forward pass are those of the plain module. `requires_grad_`, `.to`, deepcopy and pickle
    keep the constraint. A step of any other optimizer raises ValueError, for it would leave the manifold silently.
    So does a step where the Parameter or its `.data` was changed in place, as by torch.nn.init, to what is not on the
    manifold; on accelerators `.data` is looked at by every 100th step only. A half precision Parameter holds the point
    rounded; the optimizers keep it in float32.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> sorted(layer.state_dict())
    ['bias', 'weight']
    """

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16

    def hold(self, sites: Sequence[Site], manifold: Manifold, value: Tensor) -> None:
        parameter = sites[0].parameter
        rounded = value.to(parameter.dtype)
        if not torch.equal(parameter, rounded):
            with torch.no_grad():
                parameter.copy_(rounded)
            parameter.grad = None
        for site in sites:
            record(site.owner, site.attribute, manifold, site.name)

    def release(self, places: Sequence[tuple[nn.Module, str]]) -> None:
        for owner, attribute in places:
            forget(owner, attribute)


class Records:
    """The manifolds of the Riemannian parameters of one module, kept in the module's __dict__.

    It shares the module's own dict of parameters; deepcopy and pickle keep that identity, so that a copy of the
    module has a record of its own parameters.
    """

    def __init__(self, parameters: dict[str, nn.Parameter | None]) -> None:
        self.parameters = parameters
        self.manifolds: dict[str, Manifold] = {}
        self.names: dict[str, str] = {}
        self.versions: dict[str, int] = {}  # of the parameters when they were last seen on their manifold
        _enlist(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _enlist(self)

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter, Manifold]]:
        """(attribute, parameter, manifold), for each parameter that is still there."""
        for attribute, manifold in list(self.manifolds.items()):  # another thread may constrain
            parameter = self.parameters.get(attribute)
            if parameter is not None:
                yield attribute, parameter, manifold


def manifold_of(p: Tensor) -> Manifold | None:
    """The manifold that p is held on by `Riemannian`, None if it is free."""
    found = constrained().get(id(p))
    return None if found is None else found[0].manifolds[found[1]]


def name_of(p: Tensor) -> str | None:
    """The dotted name under which p was constrained, None if it is free."""
    found = constrained().get(id(p))
    return None if found is None else found[0].names[found[1]]


def constrained() -> dict[int, tuple[Records, str]]:
    """(record, attribute) of every Parameter that `Riemannian` holds, by its id; made anew, for many look-ups."""
    alive = (reference() for reference in _live.valuerefs())
    return {id(p): (records, attribute) for records in alive if records is not None for attribute, p, _ in records}


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Every Parameter of the module, one group for each manifold: what the optimizers of `constraints.optim` take.

    A group is {"params": [(dotted name, Parameter), ...], "manifold": M}, with M None for unconstrained parameters. The
    coordinates of a `Trivialization` are a group of their own, with M None and "weight_decay": 0, for decay would pull
    the weight towards its base; torch's optimizers take these groups too. Bases, which nothing trains, are left out. A
    tied Parameter comes once. Add options to a group as for any torch optimizer: `groups[0]["lr"] = 1e-4`. Raises
    ValueError where a constrained Parameter is none any more, as after torch.nn.utils.parametrize or pruning.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> [group["manifold"] for group in param_groups(layer)]
    [Stiefel, None]
    """
    for each in module.modules():
        recorded(each)
    held = {key: records.manifolds[attribute] for key, (records, attribute) in constrained().items()}
    trivial: Any = [coordinates for each in module.modules() for _, coordinates in coordinates_of(each)]
    computed, bases = {id(each.original) for each in trivial}, {id(each[0].base_point) for each in trivial}
    groups: dict[tuple[Manifold | None, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, p in module.named_parameters():
        if id(p) in bases:
            continue
        groups.setdefault((held.get(id(p)), id(p) in computed), []).append((name, p))
    return [
        {"params": named, "manifold": manifold, **({"weight_decay": 0.0} if is_computed else {})}
        for (manifold, is_computed), named in groups.items()
    ]


def record(module: nn.Module, attribute: str, manifold: Manifold, name: str) -> None:
    """Write down that this attribute of the module is a Parameter on the manifold; name is for messages."""
    records = module.__dict__.get(KEY)
    if records is None:
        records = module.__dict__[KEY] = Records(module._parameters)
    records.manifolds[attribute] = manifold
    records.names[attribute] = name
    records.versions.pop(attribute, None)
    _enlist(records)


def forget(module: nn.Module, attribute: str) -> None:
    """Undo `record`."""
    global _generation
    records: Records = module.__dict__[KEY]
    del records.manifolds[attribute], records.names[attribute]
    records.versions.pop(attribute, None)
    _generation = next(_generations)
    if not records.manifolds:
        del module.__dict__[KEY]


def recorded(module: nn.Module) -> dict[str, Manifold]:
    """The manifolds of the Riemannian parameters of this module itself, by attribute.

    Raises ValueError where one is computed from another tensor now, which nothing would keep on the manifold.
    """
    records: Records | None = module.__dict__.get(KEY)
    if records is None:
        return {}
    for attribute in records.manifolds:
        computed = attribute in module.__dict__ or parametrize.is_parametrized(module, attribute)
        if attribute not in module._parameters and computed:
            raise _lost(records, attribute)
    return {attribute: manifold for attribute, _, manifold in records}


# other threads may constrain in the meantime: a WeakSet would change under the loop over it
_live: weakref.WeakValueDictionary[int, Records] = weakref.WeakValueDictionary()
_generations = itertools.count(1)
_generation = 0  # another number whenever a constrained parameter comes or goes, so that optimizers are looked at again


@dataclass
class Looked:
    """What an optimizer held when it was last looked at, and how many steps it took since."""

    state: tuple[int, ...]
    held: list[tuple[Records, str, nn.Parameter]]
    gone: list[tuple[Tensor, Manifold, Manifold | None]]  # held once; the manifold of the group, and that of now
    steps: int = 0


_looked: weakref.WeakKeyDictionary[Optimizer, Looked] = weakref.WeakKeyDictionary()


def _enlist(records: Records) -> None:
    global _generation
    _live[id(records)] = records  # before the number, or a look in between would miss it
    number = next(_generations)
    if number == 1:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
    _generation = number


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """ValueError if a constrained parameter is about to be moved as if it were free, or from off its manifold."""
    if torch.compiler.is_compiling():  # looking is no part of the graph
        torch.compiler.disable(_before_step)(optimizer, args, kwargs)
        return
    looked = look(optimizer)
    for parameter, manifold, present in looked.gone:
        if parameter.grad is not None:
            raise _outdated(optimizer, parameter, manifold, present)
    for records, attribute, p in looked.held:
        if attribute not in records.parameters:
            raise _lost(records, attribute)
        if records.parameters[attribute] is not p:
            raise ValueError(
                f"{records.names[attribute]} of shape {tuple(p.shape)} is another Parameter now than the one that this "
                f"{type(optimizer).__name__} holds, which nothing uses. Write into the Parameter instead, by "
                f".copy_(value) under torch.no_grad(), or make a new optimizer."
            )
        captured = p.device.type == "cuda" and torch.cuda.is_current_stream_capturing()  # values cannot be looked at
        again = looked.steps % LOOK_EVERY == 0 and not captured  # a write to .data leaves the version as it is
        if again or records.versions.get(attribute) != p._version:
            _check_point(records, attribute, p)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        torch.compiler.disable(_after_step)(optimizer, args, kwargs)
        return
    looked = look(optimizer)
    looked.steps += 1
    for records, attribute, p in looked.held:
        records.versions[attribute] = p._version


def look(optimizer: Optimizer) -> Looked:
    """The constrained parameters of the optimizer, found once; ValueError if it is blind to their manifolds."""
    state = (_generation, *(len(group["params"]) for group in optimizer.param_groups))
    looked = _looked.get(optimizer)
    if looked is not None and looked.state == state:
        return looked
    # torch's optimizers keep a "manifold" in their groups and never look at it
    blind = type(optimizer).__module__.startswith("torch.optim")
    known = constrained()
    before = set() if looked is None else {id(p) for _, _, p in looked.held} | {id(p) for p, _, _ in looked.gone}
    held: list[tuple[Records, str, nn.Parameter]] = []
    gone: list[tuple[Tensor, Manifold, Manifold | None]] = []
    for group in optimizer.param_groups:
        manifold = group.get("manifold")
        for p in group["params"]:
            if id(p) not in known:
                if manifold is not None and id(p) in before:
                    gone.append((p, manifold, None))
            else:
                records, attribute = known[id(p)]
                if not blind and "manifold" in group and manifold is None:
                    raise ValueError(
                        f"{records.names[attribute]} of shape {tuple(p.shape)} is constrained to "
                        f"{records.manifolds[attribute]}, but this {type(optimizer).__name__} was made before it was. "
                        f"Make it again after constrain: {type(optimizer).__name__}(model, ...)."
                    )
                if blind or manifold is None:
                    raise ValueError(
                        f"{records.names[attribute]} of shape {tuple(p.shape)} is held on "
                        f"{records.manifolds[attribute]} by Riemannian(), and a step of {type(optimizer).__name__} "
                        f"would leave the manifold. Use constraints.optim.RiemannianAdam(model) or "
                        f"RiemannianSGD(model), or constrain it with Trivialization(), which any optimizer can train."
                    )
                present = records.manifolds[attribute]
                if present == manifold:
                    held.append((records, attribute, p))
                else:
                    gone.append((p, manifold, present))
    looked = _looked[optimizer] = Looked(state, held, gone)
    return looked


def _outdated(optimizer: Optimizer, p: Tensor, manifold: Manifold, present: Manifold | None) -> ValueError:
    now = "is not constrained any more" if present is None else f"is now constrained to {present}"
    return ValueError(
        f"a parameter of shape {tuple(p.shape)} {now}, but this {type(optimizer).__name__} was made when it was held "
        f"on {manifold}, and would move it there. Make a new optimizer for the model as it is now; to keep a free "
        f'tensor on a manifold, pass it in a group with that "manifold".'
    )


def _lost(records: Records, attribute: str) -> ValueError:
    return ValueError(
        f"{records.names[attribute]} was held on {records.manifolds[attribute]} by Riemannian(), but is no Parameter "
        f"any more: a parametrization, weight_norm or pruning computes it from another tensor, which is free. Undo "
        f"that, and unconstrain it first; or constrain it with Trivialization(), on top of which torch composes "
        f"parametrizations of one tensor, as spectral_norm."
    )


@torch.no_grad()
def _check_point(records: Records, attribute: str, p: nn.Parameter) -> None:
    manifold = records.manifolds[attribute]
    x = at_least_float32(p)
    with exact_products(p.device.type):
        on = is_near(manifold, x, p.dtype)
    if not on:
        raise off(records.names[attribute], p, manifold)


def off(name: str, p: Tensor, manifold: Manifold) -> ValueError:
    """The error for a parameter whose value was changed to one that is not on its manifold."""
    return ValueError(
        f"{name} of shape {tuple(p.shape)} was changed to a value that is not on {manifold}, where it is held. Write "
        f"a point into it, by .copy_({code(manifold)}.nearest(value)) under torch.no_grad(), or unconstrain it, set it "
        f"and constrain it again."
    )
