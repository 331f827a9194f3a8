"""What is looked at before a step changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from manifolds.kernels.tiny import total_norm

from ...watch import off
from .bucket import Bucket
from .checks import Group, name_in
from .following import check_moments
from .limits import is_fit, limit
from .plan import Plan, State
from .rows import Leaf
from .work import Part

FIND = "Look for the cause in the loss, or skip this step"


def check_before(groups: Sequence[Group], plan: Plan) -> None:
    """Refuse points that were moved off their manifold, and gradients that are not finite."""
    for bucket in plan.buckets:
        if (leaf := bucket.off()) is not None:
            member = plan.members[leaf.member]
            raise off(name_in(groups, member.named), member.named, member.manifold)
    for bucket in plan.buckets:
        if (leaf := _not_finite(bucket)) is not None:
            what = f"NaN or Inf, or a norm whose square overflows in {bucket.dtype}"
            refuse_gradient(groups, plan.members[leaf.member].named, what, FIND)


def check_free(groups: Sequence[Group], free: Sequence[Part], state: State) -> None:
    """ValueError where the moments of a free parameter are of another dtype than it has now, as after `model.to`, which
    torch would find when others have moved."""
    for _, group, params in free:
        key = "momentum_buffer" if group.get("fused") and "dampening" in group else "exp_avg"
        for p in params:
            if (entry := state.get(p)) and (m := entry.get(key)) is not None and m.dtype is not p.dtype:
                check_moments(groups, p, entry)


def refuse_gradient(groups: Sequence[Group], p: Tensor, what: str, way: str) -> NoReturn:
    raise ValueError(
        f"the gradient of {name_in(groups, p)}, shape {tuple(p.shape)}, has {what}. Nothing was changed. {way}."
    )


def _not_finite(bucket: Bucket) -> Leaf | None:
    """A leaf with a gradient whose norm is NaN or Inf, or overflows as the optimizer squares it; on CPU."""
    # the norm of all of them may overflow where none of theirs does, so it can only acquit
    if bucket.ok is not None or total_norm(bucket.g) <= bucket.share * limit(bucket.dtype):
        return None
    rows = bucket.g.reshape(bucket.shape)
    leaves = ((leaf, rows[leaf.start : leaf.stop]) for leaf in bucket.leaves)
    return next((leaf for leaf, g in leaves if not bool(is_fit(g, bucket.share).all())), None)
