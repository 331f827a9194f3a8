"""Keys of a checkpoint that another constraint wrote than the one they meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

TRIVIAL = ("original", "0.base_point")


def check_parts(state: Mapping[str, Any], inside: str, parts: Collection[str], who: str) -> None:
    """ValueError where the checkpoint has for a composed tensor what are none of its parts."""
    found = _names(state, inside)
    if found <= set(parts):
        return
    if not found >= set(TRIVIAL) and any(name.startswith("original") for name in found):
        raise ValueError(
            f"the checkpoint has {_listed(found)} of another parametrization for {who}, as of torch or geotorch, which "
            f"is composed of the parts {_listed(parts)} here: {way_from_another(who.rpartition('.')[2])}."
        )
    came = "what Trivialization() keeps of one point" if found >= set(TRIVIAL) else f"the parts {_listed(found)}"
    raise ValueError(_text(came, f"is composed of the parts {_listed(parts)}", who))


def check_whole_weight(state: Mapping[str, Any], inside: str, who: str, manifold: object) -> None:
    """ValueError where the checkpoint has the parts of a composition for a tensor that is one point."""
    found = _names(state, inside)
    if found and not any(name.startswith("original") or name == "0.base_point" for name in found):
        text = _text(f"the parts {_listed(found)} of a composition", f"is a point of {manifold}", who)
        raise ValueError(
            f"{text} Where its weight is no point of {manifold}, as with a gain, the nearest one is another."
        )


def way_from_another(attribute: str) -> str:
    """What to do with the checkpoint of a tensor that another parametrization computes, in the middle of a sentence."""
    return (
        f"load it into a model under that, call torch.nn.utils.parametrize.remove_parametrizations(module, "
        f"{attribute!r}) there, and load its state_dict here"
    )


def _names(state: Mapping[str, Any], inside: str) -> set[str]:
    """What is under this prefix: parts by their names, without what is composed on top."""
    tails = {key.removeprefix(inside) for key in state if key.startswith(inside)}
    parts = {tail[2:].removeprefix("parametrizations.").partition(".")[0] for tail in tails if _is_part(tail)}
    return parts | {tail for tail in tails if tail.startswith("original") or tail == "0.base_point"}


def _is_part(tail: str) -> bool:
    return tail.startswith("0.") and tail != "0.base_point"


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _text(came: str, here: str, who: str) -> str:
    return (
        f"the checkpoint has {came} for {who}, which {here} here. Load it into a model that is constrained as the one "
        f"that was saved, and load constraints.export_state_dict of that model here."
    )
