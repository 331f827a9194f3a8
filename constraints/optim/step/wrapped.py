"""What Retracted asks of a group of its optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from ...records import constrained
from ...values import master_dtype
from .checks import Group, check_group, name_in, warn_of_decay
from .frames import Frames
from .proxy import unasked_decay


def check_held(optimizer: Optimizer, group: Group, frames: Frames) -> None:
    """ValueError or TypeError where a group, which is one of the optimizer's, cannot be moved by it on its manifold."""
    kind, groups = type(optimizer).__name__, optimizer.param_groups
    group.setdefault("manifold", None)
    known = constrained()
    for p in group["params"]:
        if group["manifold"] is None and id(p) in known:
            records, attribute = known[id(p)]
            raise ValueError(
                f"{name_in(groups, p)} of shape {tuple(p.shape)} is constrained to {records.manifolds[attribute]}, but "
                f"came without a manifold. Write Retracted({kind}(param_groups(model))), whose groups carry their "
                f"manifold."
            )
    check_group("Retracted", group, groups)
    if group["manifold"] is None:
        return
    for p in group["params"]:
        check_precision(groups, p, kind)
    if group.get("differentiable"):
        raise ValueError(f"Retracted takes no {kind} with differentiable=True: a step on a manifold has no graph.")
    frames.check_metric(groups, group)
    if "weight_decay" in group:
        warn_of_decay(group, unasked_decay(optimizer))


def check_precision(groups: Sequence[Group], p: Tensor, kind: str) -> None:
    """ValueError for half precision, of which nobody keeps a master here."""
    if p.dtype != master_dtype(p.dtype):
        raise ValueError(
            f"{name_in(groups, p)} has dtype {p.dtype}, in which {kind} loses most of its step. Keep the model in "
            f"float32, and compute under torch.autocast; or take RiemannianAdam, which keeps a float32 master."
        )
