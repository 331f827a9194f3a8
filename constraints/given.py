"""What is given where a tensor is taken."""

from __future__ import annotations

from typing import Any

AS_TENSOR = "torch.as_tensor makes a tensor of an array."


def kind_of_value(value: Any) -> str:
    """A value of a few letters as it is written, else what it is."""
    if isinstance(value, (tuple, list)) and not all(isinstance(each, (int, str)) for each in value):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (str, int, float, tuple, list, type)) or value is None:
        return f"{value!r:.40}"
    is_array = type(value).__module__.partition(".")[0] == "numpy"
    shape = f" of shape {tuple(value.shape)}" if isinstance(getattr(value, "shape", None), tuple) else ""
    return f"a {'numpy array' if is_array else type(value).__name__}{shape}"


def no_tensor(who: str, value: Any, way: str = AS_TENSOR) -> TypeError:
    """The error for what is given in place of a tensor that messages call so."""
    return TypeError(f"{who} is a tensor; got {kind_of_value(value)}. {way}")


def no_assigned(who: str, value: Any) -> TypeError:
    """The same for what is assigned to a weight."""
    return no_tensor(who, value, "To free it, call unconstrain." if value is None else AS_TENSOR)
