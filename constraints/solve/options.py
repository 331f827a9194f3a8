"""Checks that the options of solvers and line searches share."""

from __future__ import annotations

from typing import Any


def check_between(owner: object, least: float, most: float, **options: float) -> None:
    """ValueError for an option that is not strictly between least and most, NaN among them."""
    for name, value in options.items():
        if not least < value < most:
            bounds = f"larger than {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
            raise ValueError(f"{name} of {type(owner).__name__} is {bounds}; got {value}.")


def check_count(owner: object, **options: int) -> None:
    """ValueError for an option that is not a whole number of at least 1."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} of {type(owner).__name__} is a whole number, at least 1; got {value!r}.")


def check_least(owner: object, least: float, **options: float) -> None:
    """ValueError for an option below least, NaN among them."""
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"{name} of {type(owner).__name__} is at least {least:g}; got {value}.")


def check_kind(owner: object, kind: type, **options: Any) -> None:
    """TypeError for an option that is no value of this kind, such as its name, or the class itself."""
    for name, value in options.items():
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} of {type(owner).__name__} is a {kind.__name__}, such as "
                f"{kind.__subclasses__()[0].__name__}(); got {value!r:.40}."
            )


def check_function(owner: object, of: str, **options: Any) -> None:
    """TypeError for an option that is no function, such as the name of one. of: where there are some."""
    for name, value in options.items():
        if not callable(value):
            raise TypeError(f"{name} of {type(owner).__name__} is a function, {of}; got {value!r:.40}.")
