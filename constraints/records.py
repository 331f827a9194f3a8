"""What lies on which manifold: written on the module that owns the Parameter, never on the tensor.

A Parameter loses its attributes in deepcopy and in `.to`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from manifolds import Manifold

from .names import lists_of

KEY = "_riemannian_constraints"


class Records:
    """The manifolds of the Riemannian parameters of one module, kept in the module's __dict__.

    It shares the module's own dicts of parameters and of modules; deepcopy and pickle keep that identity, so that a
    copy of the module has a record of its own parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters, self.modules = module._parameters, module._modules
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

    def sources(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(attribute, Parameter that it is computed from), where an attribute is computed by parametrize, pruning or
        the older weight_norm and spectral_norm."""
        lists: Any = self.modules.get("parametrizations") or {}
        for attribute in list(self.manifolds):
            if self.parameters.get(attribute) is None:
                found = [self.parameters.get(attribute + end) for end in ("_orig", "_g", "_v")]
                found += lists[attribute].parameters(recurse=False) if attribute in lists else []
                yield from ((attribute, p) for p in found if p is not None)


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
    return {id(p): (records, attribute) for records in _alive() for attribute, p, _ in records}


def hidden() -> dict[int, tuple[Records, str]]:
    """(record, attribute) of every Parameter that a held tensor is computed from now, by its id."""
    return {id(p): (records, attribute) for records in _alive() for attribute, p in records.sources()}


def record(module: nn.Module, attribute: str, manifold: Manifold, name: str) -> None:
    """Write down that this attribute of the module is a Parameter on the manifold; name is for messages."""
    records = module.__dict__.get(KEY)
    if records is None:
        records = module.__dict__[KEY] = Records(module)
    records.manifolds[attribute] = manifold
    records.names[attribute] = name
    records.versions.pop(attribute, None)
    _enlist(records)


def forget(p: Tensor | None) -> None:
    """Undo `record` of this Parameter, in every module that has it."""
    global _generation
    for records in list(_alive()):
        for attribute in [attribute for attribute, each, _ in records if each is p]:
            del records.manifolds[attribute], records.names[attribute]
            records.versions.pop(attribute, None)
    _generation = next(_generations)


def recorded(module: nn.Module) -> dict[str, Manifold]:
    """The manifolds of the Riemannian parameters of this module itself, by attribute.

    Raises ValueError where one is computed from another tensor now, which nothing would keep on the manifold.
    """
    records: Records | None = module.__dict__.get(KEY)
    if records is None:
        return {}
    for attribute in records.manifolds:
        computed = attribute in module.__dict__ or attribute in lists_of(module)
        if attribute not in module._parameters and computed:
            raise lost(records, attribute)
    return {attribute: manifold for attribute, _, manifold in records}


def lost(records: Records, attribute: str) -> ValueError:
    """The error for a tensor that is computed from another one now."""
    return ValueError(
        f"{records.names[attribute]} was held on {records.manifolds[attribute]} by Riemannian(), but is no Parameter "
        f"any more: a parametrization, weight_norm or pruning computes it from another tensor, which is free. Undo "
        f"that, and unconstrain it first; or constrain it with Trivialization(), on top of which torch composes "
        f"parametrizations of one tensor, as spectral_norm."
    )


def generation() -> int:
    """Another number whenever a constrained parameter comes or goes, so that optimizers are looked at again."""
    return _generation


def when_first(call: Callable[[], object]) -> None:
    """Call this when the first record is made, also one that is read from a file."""
    _at_first.append(call)


def _alive() -> Iterator[Records]:
    return (records for reference in _live.valuerefs() if (records := reference()) is not None)


def _enlist(records: Records) -> None:
    global _generation
    _live[id(records)] = records  # before the number, or a look in between would miss it
    number = next(_generations)
    if number == 1:
        for call in _at_first:
            call()
    _generation = number


# other threads may constrain in the meantime: a WeakSet would change under the loop over it
_live: weakref.WeakValueDictionary[int, Records] = weakref.WeakValueDictionary()
_generations = itertools.count(1)
_generation = 0
_at_first: list[Callable[[], object]] = []
