"""Checkpoints of constrained models: plain ones out, plain and constrained ones in, and nothing off the manifold."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manifolds.engine import engine

from .composing import Parts, admitted, composed
from .coordinates import COUNT, coordinates_of
from .finite import check_finite
from .foreign import check_parts, check_whole_weight, way_from_another
from .given import no_tensor
from .held import Held, held
from .names import check_module, kind_of, parameters_of
from .sharding import Sharing, is_sharded, like, whole
from .trivialization import Trivialization, trivialized
from .values import admit, master_dtype
from .ways import Way


def export_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the model as if nothing were constrained: plain keys in their order, each weight as it is used.

    Tensors are detached; like those of `state_dict`, they share memory with the model where they can. A plain model
    loads it with strict=True. Those of a sharded model are gathered, so that all processes call it together.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> torch.nn.Linear(4, 4).load_state_dict(export_state_dict(layer))
    <All keys matched successfully>
    """
    check_module(model, "export_state_dict")
    state, plain = model.state_dict(), {}
    for path, owner in model.named_modules(remove_duplicate=False):
        if isinstance(owner, Parts) and path:
            continue  # the tensor that they make stands for them
        prefix = path + "." if path else ""
        computed = {*dict(trivialized(owner)), *dict(composed(owner))}
        for attribute in _order(owner):
            if attribute in computed:
                for key in [key for key in state if key.startswith(f"{prefix}parametrizations.{attribute}.")]:
                    del state[key]
                plain[prefix + attribute] = getattr(owner, attribute).detach()
            elif prefix + attribute in state:
                plain[prefix + attribute] = state.pop(prefix + attribute)
    return {key: whole(t) if isinstance(t, Tensor) else t for key, t in {**plain, **state}.items()}


def load_checked(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
    """model.load_state_dict(state_dict, strict), or its error and the model as it was, every tensor of it.

    What a checkpoint has for constrained tensors, load_state_dict checks before it loads anything: shapes, NaN, points
    off their manifold. But of all other tensors torch has loaded those that fit when it raises RuntimeError for keys
    that are missing or unexpected, or for shapes. Here a copy of the model, for which there must be memory, tries it
    first. Returns what load_state_dict does. Raises what load_state_dict raises.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> load_checked(layer, layer.state_dict())
    <All keys matched successfully>
    """
    copy.deepcopy(model).load_state_dict(state_dict, strict=strict)
    return model.load_state_dict(state_dict, strict=strict)


def watch_loading(module: nn.Module, name: str) -> None:
    """Let load_state_dict of the module, or of any module on the way to its tensor of this name, check constraints."""
    on_the_way: nn.Module | None = module
    for step in name.split("."):
        if on_the_way is None:  # a part is inside of a tensor, as weight.gain
            return
        if not _watching(on_the_way):
            on_the_way.register_load_state_dict_pre_hook(_prepare)
        on_the_way = dict(on_the_way._modules.items()).get(step)


def unwatch_loading(module: nn.Module) -> None:
    """Undo `watch_loading` where nothing is constrained any more."""
    for each in module.modules():
        if not any(True for _ in held(each)):
            for key in _watching(each):
                del each._load_state_dict_pre_hooks[key]


def _watching(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks.items()
    return [key for key, hook in hooks if getattr(hook, "hook", None) is _prepare]


def _order(owner: nn.Module) -> Iterator[str]:
    """The attributes of the owner that state_dict lists, in the order of the plain module."""
    names = list(parameters_of(owner))
    lists: list[tuple[str, Any]] = [*coordinates_of(owner), *composed(owner)]
    for attribute, each in lists:
        order = each.order
        later = [name for name in names if name in order[order.index(attribute) + 1 :]]
        names = [name for name in names if name not in later] + [attribute, *later]
    return iter([*names, *dict(owner._buffers.items())])


@torch.no_grad()
def _prepare(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    """Before anything is loaded: turn plain weights into what the engine keeps. ValueError for what is off."""
    _check_alike(module, state, prefix)
    assign = bool(metadata.get("assign_to_params_buffers"))
    dtypes: list[tuple[Any, torch.dtype]] = _decompose(module, state, prefix, assign)
    found: list[tuple[Held, str]] = []
    for path, owner in module.named_modules(remove_duplicate=False):
        found += [(each, prefix + path + "." * bool(path)) for each in held_by(owner)]
    likes = [_like(each, where, state) if assign else each.like for each, where in found]
    new = [_entries(each, where, state, now) for (each, where), now in zip(found, likes, strict=True)]
    for drop, add in new:
        for key in drop:
            del state[key]
        state.update(add)
    made = [(each.coordinates, now.dtype) for (each, _), now in zip(found, likes, strict=True)]
    dtypes += [(coordinates[0], dtype) for coordinates, dtype in made if coordinates is not None]
    for computing, dtype in dtypes:
        computing.dtype = dtype


def _is_number(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _like(each: Held, where: str, state: dict[str, Any]) -> Tensor:
    """A tensor of the dtype and the device that the weight has after load_state_dict(assign=True), which takes those of
    the checkpoint, as for a model on the meta device."""
    now, inside = each.like, f"{where}parametrizations.{each.attribute}."
    for key in (where + each.attribute, inside + "original"):
        t = state.get(key)
        if isinstance(t, Tensor) and not is_sharded(t) and t.is_complex() == now.is_complex() and _is_number(t):
            # the coordinates of a half precision weight are in float32
            rounds = key.startswith(inside) and t.dtype == master_dtype(now.dtype)
            dtype = now.dtype if rounds else t.dtype
            # parts are never rounded
            dtype = master_dtype(dtype) if isinstance(each.owner, Parts) else dtype
            return torch.empty(now.shape, dtype=dtype, device=t.device)
    return now


def _check_alike(module: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """ValueError where the processes of a sharded model have different keys for what is constrained, so that some would
    gather and others not."""
    sharded = [p for p in module.parameters() if is_sharded(p)]
    if not sharded:
        return
    there = []
    for path, owner in module.named_modules(remove_duplicate=False):
        where = prefix + path + "." * bool(path)
        for attribute in [*(each.attribute for each in held_by(owner)), *dict(composed(owner))]:
            inside = f"{where}parametrizations.{attribute}."
            there += [key in state for key in (where + attribute, inside + "original", inside + "0.base_point")]
    if not Sharing(sharded).agree(there):
        raise ValueError(
            f"the processes have different keys for the constrained tensors of {kind_of(module)}, as where "
            f"broadcast_from_rank0 meets those of a plain model. Give all of them the same state dict, with "
            f"StateDictOptions(full_state_dict=True), or load it before fully_shard."
        )


def _decompose(module: nn.Module, state: dict[str, Any], prefix: str, assign: bool) -> list[tuple[Any, torch.dtype]]:
    """Turn what the checkpoint has for composed tensors into their parts, and say which dtypes these tensors have then.
    ValueError where there are none."""
    add: dict[str, Any] = {}
    dtypes: list[tuple[Any, torch.dtype]] = []
    drop: list[str] = []
    for path, owner in module.named_modules(remove_duplicate=False):
        where = prefix + path + "." * bool(path)
        for attribute, each in composed(owner):
            names = each.parts.composition.parts(each.parts.shape)
            check_parts(state, f"{where}parametrizations.{attribute}.", names, where + attribute)
            if (plain := where + attribute) in state:
                _check_tensor(plain, state[plain])
                value, now = whole(state[plain]), each.parts.like()
                if assign and value.is_complex() == now.is_complex() and _is_number(value):
                    now = torch.empty(now.shape, dtype=value.dtype, device=value.device)
                    dtypes.append((each.parts, value.dtype))
                points = admitted(each.parts.composition, value, now, f"{plain} of the checkpoint")
                kept = each.parts._parameters
                for name, point in points.items():
                    sharded = point if kept.get(name) is None else like(point, kept[name])  # type: ignore[arg-type]
                    add[f"{where}parametrizations.{attribute}.0.{name}"] = sharded
                drop.append(plain)
            elif assign:
                inside = f"{where}parametrizations.{attribute}.0."
                held_parts = {one.attribute for one in held_by(each.parts)}  # which are looked at by themselves
                for key, t in state.items():
                    if key.startswith(inside) and isinstance(t, Tensor) and _is_number(t):
                        if key.removeprefix(inside) not in held_parts and "." not in key.removeprefix(inside):
                            add[key] = t.to(master_dtype(t.dtype))
                        if t.dtype not in (torch.float32, each.parts.dtype) and not t.is_complex():
                            dtypes.append((each.parts, t.dtype))
    for plain in drop:
        del state[plain]
    state.update(add)
    return dtypes


def held_by(owner: nn.Module) -> list[Held]:
    """The constrained tensors of this module itself."""
    return [each for each in held(owner) if each.owner is owner]


def _entries(each: Held, where: str, state: dict[str, Any], now: Tensor) -> tuple[list[str], dict[str, Tensor]]:
    """(keys to drop, entries to add) for one constrained tensor, like `now` once it is loaded, after checking what the
    checkpoint has for it."""
    plain, inside = where + each.attribute, f"{where}parametrizations.{each.attribute}."
    original, base = inside + "original", inside + "0.base_point"
    target: Any = each.owner._parameters[each.attribute] if each.coordinates is None else each.coordinates.original
    if plain in state:
        value = _point(each, plain, state[plain], now)
        if isinstance(each.method, Trivialization):
            return [plain], {original: like(torch.zeros_like(value), target), base: like(value, target)}
        # a half precision weight is a point rounded; the nearest point may be rounded to another one
        if value.dtype != now.dtype:
            return [], {plain: like(state[plain], target)} if is_sharded(target) else {}
        return [], {plain: like(value, target)}
    if original in state and base in state:
        at, c = _point(each, base, state[base], now), whole(state[original])
        check_finite(c, f"{original} of the checkpoint")
        if c.shape != at.shape:
            raise ValueError(f"{original} of the checkpoint needs shape {tuple(at.shape)}; got {tuple(c.shape)}.")
        if c.is_complex() and not at.is_complex():
            raise ValueError(f"{original} of the checkpoint needs dtype {at.dtype}; got {c.dtype}. Convert it first.")
        if isinstance(each.method, Trivialization):
            return [], {base: like(at, target), original: like(c.to(at), target)}
        of, count = engine(each.manifold), [key for key in (inside + COUNT,) if key in state]
        return [original, base, *count], {plain: like(of.move(at, of.coordinates(at, c.to(at))), target)}
    found = [key for key in state if key.startswith(inside)]
    if found:
        check_whole_weight(state, inside, plain, each.manifold)
        lack = [key for key in (original, base) if key not in state]
        raise ValueError(
            f"the checkpoint has {', '.join(found)} without {' and '.join(lack)}: Trivialization() keeps both. Where "
            f"another parametrization wrote it, as torch's orthogonal or geotorch, {way_from_another(each.attribute)}; "
            f"else save the model again, or constraints.export_state_dict(model)."
        )
    return [], {}


def _check_tensor(key: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(str(no_tensor(f"{key} of the checkpoint", value)))


def _point(each: Held, key: str, value: Any, now: Tensor) -> Tensor:
    _check_tensor(key, value)
    entry, means = f"state[{key!r}]", "For a mean of models take constraints.AveragedModel."
    way = Way(
        f"Load it before constrain, or project it: {entry} = {{nearest}}({entry}). {means}",
        f"Put a point in its place, as {entry} = {{random}}. {means}",
    )
    if key.endswith(".base_point"):  # the coordinates beside it would be those of another point
        again = "Save the model again; a mean of state dicts is no model, take constraints.AveragedModel."
        way = Way(again, again)
    return admit(each.manifold, whole(value), now, f"{key} of the checkpoint", way)
