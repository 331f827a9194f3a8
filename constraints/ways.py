"""Ways out of a value that is not on its manifold, as code that works where it is to be written."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manifolds import Manifold, NearestPointManifold, Orthogonal, ProductManifold, SpecialOrthogonal
from manifolds.engine import engine
from manifolds.kernels.precision import exact_products

from .names import written

NEAR = 1e-3  # a given value with a residual up to this is taken for a rounded point, and rounded back


class Way(NamedTuple):
    """What to write in place of a value: where it has a nearest point, and where it has none, or several. In the texts
    {nearest} stands for the function that takes the nearest point, {random} for a random one, as code."""

    nearest: str
    other: str


INIT = Way(
    "Pass init={nearest}(value) to take the nearest point.",
    "Pass init='haar' for a random point, init='identity' where that is one, or a tensor, or a function that returns "
    "one, on {manifold}.",
)
FUNCTION = Way(
    "Let the function return {nearest}(value).", "Let the function return a point, as {random}, or pass init='haar'."
)


def assigned(attribute: str) -> Way:
    """To module.attribute."""
    return Way(
        "Assign {nearest}(value) to take the nearest point.", f"Assign a point, as {written(attribute, '{random}')}."
    )


def code(manifold: Manifold) -> str:
    """The manifold as it is written before a method call."""
    text = repr(manifold)
    if isinstance(manifold, ProductManifold):
        return text if len(manifold) == 1 or not manifold.stacked else f"({text})"
    return text if text.endswith(")") else f"{text}()"


def random_code(manifold: Manifold, x: Tensor) -> str:
    """Code that gives a random point of the shape and dtype of x."""
    text = f"{code(manifold)}.random{tuple(x.shape)}"
    return text if x.dtype == torch.get_default_dtype() else f"{text[:-1].rstrip(',')}, dtype={x.dtype})"


def point_code(manifold: Manifold, x: Tensor, value: str = "value") -> str:
    """Code that gives a point in place of x, which is written so: the nearest one, or a random one where there is none,
    or several, as of a reflection where a rotation is asked for. Of shards x is not looked at."""
    return f"{code(manifold)}.nearest({value})" if has_nearest(manifold, x) else random_code(manifold, x)


def has_nearest(manifold: Manifold, x: Tensor) -> bool:
    """Whether there is one point nearest to x."""
    if not isinstance(manifold, NearestPointManifold):
        return False
    if hasattr(x, "placements"):  # a DTensor, which other processes would have to be asked for
        return True
    x = x.detach()
    if not bool(x.isfinite().all()):
        return False
    x = x if x.is_complex() else x.to(torch.promote_types(x.dtype, torch.float32))
    try:
        with exact_products(x.device.type):
            manifold.nearest(x)
    except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return False
    return True


@torch.no_grad()
def which_off(manifold: Manifold, x: Tensor, within: float) -> str:
    """(2 of 6 points, the first in block 1 at index 0): those of x that are further off than this, where it has
    several; of shards, which other processes would have to be asked for, nothing."""
    if hasattr(x, "placements"):
        return ""
    x = x.detach() if x.is_complex() else x.detach().to(torch.promote_types(x.dtype, torch.float32))
    with exact_products(x.device.type):
        # NaN is not <=
        off = [~(factor.residual(block) <= within) for factor, block in blocks_of(manifold, x)]
    count, points = sum(int(each.sum()) for each in off), sum(each.numel() for each in off)
    if not count or points == 1:
        return ""
    block = next(i for i, each in enumerate(off) if bool(each.any()))
    index = off[block].nonzero()[0].tolist()
    place = f" in block {block}" * isinstance(manifold, ProductManifold)
    place += f" at index {index[0] if len(index) == 1 else tuple(index)}" * bool(index)
    return f" ({count} of {points} points, the first{place})"


def blocks_of(manifold: Manifold, x: Tensor) -> list[tuple[Manifold, Tensor]]:
    """Each factor with its block of x."""
    if isinstance(manifold, ProductManifold):
        return list(zip(manifold.factors, manifold.unpack(x), strict=True))
    return [(manifold, x)]


def off_text(manifold: Manifold, x: Tensor, who: str, way: Way, within: float) -> str:
    """What to say of a value that is further off the manifold than rounding, which is within this."""
    worst = float(manifold.residual(x).max())
    said = f"{who} is not on {manifold}{which_off(manifold, x, within)}: the value of shape {tuple(x.shape)} has "
    said += f"residual {worst:.1e}, and "
    negative, count = reflections(manifold, x)
    if has_nearest(manifold, x):
        said += f"at most {NEAR:.0e} is taken for rounding. {way.nearest}"
    elif isinstance(manifold, NearestPointManifold):
        few = (
            "no rotation is nearest to a reflection (a column of other sign makes it one)"
            if reflections(manifold, x, NEAR)[0]
            else "no point is nearest"
        )
        said += f"{few}. {way.other}"
    else:
        without = next(f for f, _ in engine(manifold).split(x) if not isinstance(f, NearestPointManifold))
        said += f"{without} has no nearest point to take instead. {way.other}"
    said = filled(said, manifold, x)
    return said + (f" {negative} of {count} matrices have determinant -1: Orthogonal admits them." if negative else "")


def filled(text: str, manifold: Manifold, x: Tensor) -> str:
    """The text of a way, as code for values like x."""
    for name, code_of in (
        ("{nearest}", f"{code(manifold)}.nearest"),
        ("{random}", random_code(manifold, x)),
        ("{manifold}", str(manifold)),
    ):
        text = text.replace(name, code_of)
    return text


def reflections(manifold: Manifold, x: Tensor, within: float = math.inf) -> tuple[int, int]:
    """How many matrices are to be real rotations but have determinant -1, orthogonal within this; and of how many."""
    negative = count = 0
    for factor, points in engine(manifold).split(x):
        if isinstance(factor, SpecialOrthogonal) and not points.is_complex():
            on = (Orthogonal().residual(points) <= within).flatten().tolist()
            signs = determinant_signs(points)
            negative += sum(sign == -1.0 and orthogonal for sign, orthogonal in zip(signs, on, strict=True))
            count += len(signs)
    return negative, count


def determinant_signs(x: Tensor) -> list[float]:
    """The sign of the determinant of each real square matrix of a batch."""
    # matrix by matrix: torch's batched LU on CPU is not to be trusted for large ones
    return [float(torch.linalg.slogdet(matrix.double())[0]) for matrix in x.reshape(-1, *x.shape[-2:])]
