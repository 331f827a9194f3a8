"""Checks that the options of solvers and line searches share."""

from __future__ import annotations


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
