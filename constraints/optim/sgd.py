"""Gradient descent on manifolds."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.sgd import sgd

from .step import (
    Bucket,
    Group,
    Params,
    RiemannianOptimizer,
    check_at_least_zero,
    check_number,
    check_ways,
    rate,
    travel,
)


class RiemannianSGD(RiemannianOptimizer):
    """m <- momentum m + (1 - dampening) grad, x <- R_x(-lr m), with m = grad at the first step.

    grad is the Riemannian gradient and R the retraction; m is carried to the new point. Without momentum
    x <- R_x(-lr grad); with `nesterov` x <- R_x(-lr (grad + momentum m)).

    params: see `RiemannianOptimizer`. lr: a float or a tensor of one element. Unconstrained tensors move as in
    torch.optim.SGD, whose options these are, less differentiable, which is refused; foreach and fused are theirs alone.
    L2 decay does nothing where all points have one norm, and says so. lazy: see `RiemannianAdam`; of a constrained
    table with a sparse gradient the rows that it has move, with momentum from zero, so dampening acts from the start.
    Raises ValueError for options out of range.
    Source: Bonnabel, Stochastic gradient descent on Riemannian manifolds (2013); Absil, Mahony & Sepulchre (2008),
    section 4.1.

    >>> x = Sphere().random(3).requires_grad_()
    >>> optimizer = RiemannianSGD([{"params": [x], "manifold": Sphere}], lr=0.1, momentum=0.9)
    >>> x.sum().backward()
    >>> optimizer.step()
    >>> bool(Sphere().contains(x))
    True
    """

    _takes_sparse = _takes_rows = _takes_slices = True

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        lazy: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "lazy": lazy,
        }
        super().__init__(params, options)

    def state_dict(self) -> dict[str, Any]:
        """As in `RiemannianOptimizer`. Held parameters have state without momentum too; then all others have an empty
        entry, for torch.distributed.checkpoint asks for one of each, or of none."""
        saved = super().state_dict()
        if saved["state"]:
            for key in [key for group in saved["param_groups"] for key in group["params"]]:
                saved["state"].setdefault(key, {})
        return saved

    def _check_options(self, group: Group) -> None:
        check_at_least_zero(group, "lr", "momentum", "weight_decay")
        check_number("dampening", group["dampening"])
        check_ways("RiemannianSGD", group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs a momentum above 0 and no dampening; got momentum={group['momentum']} and "
                f"dampening={group['dampening']}."
            )

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        size, momentum = -rate(group), group["momentum"]
        engine, x = bucket.engine, bucket.x
        if momentum == 0:
            return bucket.advance(engine.lift(x, self._descent(bucket, group)), size)
        add = 1 - group["dampening"]
        if group["nesterov"] or "momentum_buffer" not in bucket.state:
            c = engine.lift(x, self._descent(bucket, group))
            old = "momentum_buffer" in bucket.state
            m = engine.recall(x, bucket.stored("momentum_buffer")) * momentum + c * add if old else c.clone()
            direction = c + momentum * m if group["nesterov"] else m
        else:
            stored = bucket.stored("momentum_buffer")
            m, _ = engine.mix(x, stored, self._descent(bucket, group), momentum, add)
            direction = m
        if direction is m:
            y, m = travel(bucket, m, size)
        else:
            y = bucket.advance(direction, size)
            m = engine.store(x, y, m)
        bucket.put("momentum_buffer", m)
        return y

    def _step_free(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        momentum = group["momentum"]
        buffers = [self.state[p].get("momentum_buffer") if momentum else None for p in params]
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=any(g.is_sparse for g in grads),
            foreach=group["foreach"],
            fused=group["fused"],
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if momentum:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer
