"""The way out of a value that has no nearest point, for who called nearest; who adds another leaves it out."""

from __future__ import annotations

# without a shape: a kernel sees blocks, transposed ones too, and not the tensor that was given
OTHERS = "Give others, as the method random of the same set draws them."


def without_others(error: ValueError) -> str:
    """What the error says, up to that way out."""
    return str(error).removesuffix(OTHERS).rstrip()
