"""The text of a pattern: "axes -> blocks axes"."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache
def parse(text: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The two sides of a pattern, each a tuple of axes, each axis a tuple of names."""
    sides = text.split("->")
    parsed = []
    for side in sides:
        if re.fullmatch(r"(\s*(\(\s*\w+(\s+\w+)*\s*\)|[^\W\d]\w*))+\s*", side) is None:
            break
        tokens = re.findall(r"\(([^)]*)\)|(\w+)", side)
        parsed.append(tuple(tuple(inside.split()) if inside else (name,) for inside, name in tokens))
    rule = f'a pattern is "axes -> blocks axes", as in "(head qkv d) e -> (head qkv) d e"; got {text!r}'
    if len(sides) != 2 or len(parsed) != 2:
        raise ValueError(f"{rule}. Write names, separated by spaces, grouped by ( ), with one ->; batch axes are kept.")
    left, right = ([n for group in side for n in group] for side in parsed)
    if sorted(left) != sorted(right) or len(set(left)) != len(left):
        raise ValueError(
            f"{rule}, whose sides do not name the same axes once each: {sorted(left)} and {sorted(right)}."
        )
    return tuple(parsed)
