"""What is looked at before a step changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from ...watch import off
from .checks import Group, name_in
from .plan import Plan

FIND = "Look for the cause in the loss, or skip this step"


def check_before(groups: Sequence[Group], plan: Plan) -> None:
    """Refuse points that were moved off their manifold, and gradients that are not finite."""
    for bucket in plan.buckets:
        if (leaf := bucket.off()) is not None:
            member = plan.members[leaf.member]
            raise off(name_in(groups, member.named), member.named, member.manifold)
    for bucket in plan.buckets:
        if (leaf := bucket.not_finite()) is not None:
            what = f"NaN or Inf, or a norm whose square overflows in {bucket.dtype}"
            refuse_gradient(groups, plan.members[leaf.member].named, what, FIND)


def refuse_gradient(groups: Sequence[Group], p: Tensor, what: str, way: str) -> NoReturn:
    raise ValueError(
        f"the gradient of {name_in(groups, p)}, shape {tuple(p.shape)}, has {what}. Nothing was changed. {way}."
    )
