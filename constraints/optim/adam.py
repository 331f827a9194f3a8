"""Adam on manifolds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from manifolds import Manifold, Stiefel
from manifolds.engine import Isometric

from ..given import kind_of_value
from .step import (
    Bucket,
    Group,
    Params,
    RiemannianOptimizer,
    check_at_least_zero,
    check_number,
    check_ways,
    decays_in,
    rate,
    travel,
)

SecondMoment = Literal["mean", "sum"]

ONE = {dtype: torch.ones((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}
ZERO = {dtype: torch.zeros_like(one) for dtype, one in ONE.items()}
"""Of one element: on CPU a number takes as long to be made one as a whole call does."""
MOST = torch.finfo(torch.float32).max
"""Larger factors of a tensor, the infinite one but, torch refuses in float32."""


class RiemannianAdam(RiemannianOptimizer):
    """m <- beta1 m + (1 - beta1) grad, v <- beta2 v + (1 - beta2) |grad|^2 / d, x <- R_x(-lr m^ / (sqrt(v^) + eps)).

    grad is the Riemannian gradient, |.| the norm of the metric, d the degrees of freedom of the point, real ones,
    m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t), R the retraction; m is carried to the new point. There is one number
    v for each factor of a product: each gate of a packed weight has its own step size. With `amsgrad`, v^ is the
    largest so far.

    A gradient that stays the same moves a point by lr sqrt(d): by lr in each of d orthonormal directions, as Adam moves
    each of d entries. So lr is that of torch.optim.Adam, for constrained tensors of all sizes and for free ones.

    params: see `RiemannianOptimizer`. lr: a float or a tensor of one element. capturable: count steps on the device,
    as a CUDA graph needs. second_moment: "sum" is the formula of the source, d = 1: a point moves by about lr, whatever
    its size. The state is the same for both: exp_avg_sq holds the mean of |grad|^2 over the steps, not divided by d.
    decoupled_weight_decay: see `RiemannianAdamW`; else decay is added to the gradient, lambda x. Neither does anything
    where all points have one norm, and it says so. foreach, fused: how torch moves unconstrained tensors; constrained
    ones are one batched update at any rate. Unconstrained tensors move as in torch.optim.Adam, whose options the others
    are, less differentiable, which is refused.
    lazy: points of constrained tensors whose gradient is exactly zero in a step stay where they are, bit for bit, and
    their moments too. Of a table with a sparse gradient, as of nn.Embedding(sparse=True), constrained or free, that is
    so in any case: the rows that it has move, as in torch.optim.SparseAdam, and no others are read.
    Raises ValueError for options out of range.
    Source: Becigneul & Ganea, Riemannian adaptive optimization methods (2019), section 3, equation (7) and figure 1.

    >>> gru = constrain(torch.nn.GRU(5, 8), "weight_hh_l0", Stiefel**3, Riemannian())
    >>> optimizer = RiemannianAdam(gru, lr=1e-2)
    >>> gru(torch.randn(3, 2, 5))[0].sum().backward()
    >>> optimizer.step()
    >>> report(gru)[0].ok
    True
    """

    _numbers = frozenset({"exp_avg_sq", "max_exp_avg_sq"})
    _takes_rows = _takes_slices = True

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        lazy: bool = False,
        decoupled_weight_decay: bool = False,
        second_moment: SecondMoment = "mean",
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "lazy": lazy,
            "decoupled_weight_decay": decoupled_weight_decay,
            "second_moment": second_moment,
        }
        super().__init__(params, options)

    def _check_options(self, group: Group) -> None:
        name = type(self).__name__
        check_at_least_zero(group, "lr", "eps", "weight_decay")
        check_betas(name, group)
        check_ways(name, group)
        if group["foreach"] and isinstance(group["lr"], Tensor) and not group["capturable"]:
            raise ValueError(f"foreach=True of {name} takes a float as lr, or capturable=True; got a tensor.")
        if group["second_moment"] not in get_args(SecondMoment):
            raise ValueError(f"second_moment of {name} is 'mean' or 'sum'; got {group['second_moment']!r}.")

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        return adam_move(bucket, group, lambda: self._descent(bucket, group))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in torch. State from before there was a choice of `second_moment` goes on with "sum", which it was."""
        super().__setstate__(state)
        wanted = self.defaults.setdefault("second_moment", "sum")
        old = [group for group in self.param_groups if "second_moment" not in group]
        for group in old:
            group["second_moment"] = "sum"
        if wanted != "sum" and any(group.get("manifold") is not None for group in old):
            warnings.warn(
                "the state that is loaded is of a RiemannianAdam without the option second_moment, which was what "
                "second_moment='sum' is now: its groups go on with that, at the lr that was saved. For 'mean', set it "
                "in optimizer.param_groups, with the lr of torch.optim.Adam; the moments serve both.",
                stacklevel=3,
            )

    def _step_free(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        adam_free(self.state, group, params, grads)


def check_betas(name: str, group: Group) -> None:
    """ValueError where one of betas is not in [0, 1), TypeError where they are not two numbers."""
    betas = group["betas"]
    if not hasattr(betas, "__len__") or len(betas) != 2:
        raise TypeError(f"betas of {name} are two numbers, as (0.9, 0.999); got {kind_of_value(betas)}.")
    for i, beta in enumerate(betas):
        check_number(f"betas[{i}]", beta)
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}] of {name} is in [0, 1); got {beta}.")


def adam_move(bucket: Bucket, group: Group, gradient: Callable[[], Tensor]) -> Tensor:
    """Where Adam moves the points of the bucket. gradient gives the Euclidean one, which nobody keeps then."""
    (beta1, beta2), lr = group["betas"], rate(group)
    many = _size(bucket) if group["second_moment"] == "mean" else 1.0
    engine, x, step = bucket.engine, bucket.x, bucket.count_step()
    stored, v = bucket.stored("exp_avg"), bucket.stored("exp_avg_sq")
    m, square = engine.mix(x, stored, gradient(), beta1, 1 - beta1)
    v.lerp_(square, 1 - beta2)
    bucket.put("exp_avg_sq", v)
    if group["amsgrad"]:
        largest = bucket.stored("max_exp_avg_sq")
        v = torch.maximum(largest, v, out=largest)
        bucket.put("max_exp_avg_sq", v)
    # v is d times that of the formula, which costs nothing: lr / (sqrt(v / d) + eps) = lr d' / (sqrt(v) + eps d')
    root = (1 - beta2**step) ** 0.5
    scale, eps = lr * -many / (1 - beta1**step), group["eps"] * many * root
    if bucket.looks and v.numel() == 1 and isinstance(scale, float):  # a number in place of five calls of torch
        size: float | Tensor = _quotient(scale * root, v.item(), eps, torch.finfo(v.dtype).tiny)
    else:
        # a larger eps would be made a tensor of another dtype first
        few = bucket.looks and isinstance(eps, float) and eps <= MOST
        size = v.sqrt().add_(ONE[v.dtype], alpha=eps) if few else v.sqrt().add_(eps)
        none = size < torch.finfo(v.dtype).tiny if group["eps"] < 1e-30 else None
        if few and isinstance(scale, float) and abs(scale) <= MOST:
            size = torch.addcdiv(ZERO[v.dtype], ONE[v.dtype], size, value=scale * root)
        elif isinstance(scale, float):
            size = size.reciprocal_().mul_(scale * root)
        else:
            size = size.reciprocal_().mul_(root).mul_(scale)
        if none is not None:
            size = size.masked_fill_(none, 0.0)
    if group["decoupled_weight_decay"] and decays_in(bucket, group):
        y = bucket.advance(decayed(bucket, m, size, lr * -group["weight_decay"]), 1.0)
        m = engine.store(x, y, m)
    else:
        y, m = travel(bucket, m, size, _bound(group, many * _stretch(bucket.factor)))
    bucket.put("exp_avg", m)
    return y


def decayed(bucket: Bucket, c: Tensor, size: float | Tensor, pull: float | Tensor) -> Tensor:
    """size c + pull P_x(x), in coordinates: a step, and with it decoupled decay, x - lr lambda x to first order. On a
    set whose metric has no frame, grad(|x|^2 / 2) in place of P_x(x), which is the same in the ambient metric."""
    if isinstance(size, Tensor) and size.dim():
        size = bucket.per_point(size)
    x, engine = bucket.x, bucket.engine
    return size * c + pull * (
        engine.frame(x, bucket.factor.project(x, x)) if isinstance(engine, Isometric) else engine.lift(x, x)
    )


def adam_free(state: Any, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
    """The step of torch.optim.Adam, or AdamW, on unconstrained parameters."""
    amsgrad, fused = group["amsgrad"], group["fused"]
    capturable = group["capturable"] and not any(p.is_cpu for p in params)  # nothing is captured there
    for p in params:
        entry = state[p]
        if not entry:
            entry["step"] = torch.zeros((), dtype=torch.float32, device=p.device if capturable or fused else "cpu")
            entry["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            entry["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if amsgrad and "max_exp_avg_sq" not in entry:
            entry["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    states = [state[p] for p in params]
    beta1, beta2 = group["betas"]
    step = adamw if group["decoupled_weight_decay"] else adam  # an option of one of them in later versions only
    step(
        params,
        grads,
        [entry["exp_avg"] for entry in states],
        [entry["exp_avg_sq"] for entry in states],
        [entry["max_exp_avg_sq"] for entry in states] if amsgrad else [],
        [entry["step"] for entry in states],
        foreach=group["foreach"],
        capturable=capturable,
        fused=fused,
        has_complex=any(p.is_complex() for p in params),
        amsgrad=amsgrad,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _size(bucket: Bucket) -> float:
    """sqrt(d) of one point."""
    return _root_degrees(bucket.factor, bucket.kind.point, bucket.dtype.is_complex)


@lru_cache(maxsize=4096)
def _root_degrees(factor: Manifold, point: tuple[int, ...], is_complex: bool) -> float:
    """sqrt(d); 1 where a point cannot move, whose gradient is zero."""
    return math.sqrt(max(factor.dim_of_complex(point) if is_complex else factor.dim(point), 1))


@lru_cache(maxsize=4096)
def _stretch(factor: Manifold) -> float:
    """By how much an entry-wise norm may exceed that of the metric: the canonical one counts half of rotations."""
    return math.sqrt(2) if isinstance(factor, Stiefel) and factor.metric == "canonical" else 1.0


def _quotient(scale: float, v: float, eps: float, tiny: float) -> float:
    """scale / (sqrt(v) + eps); 0 where there is no gradient and no eps, NaN where v is none of a square."""
    size = math.sqrt(v) + eps if v >= 0 else math.nan
    return 0.0 if size < tiny else scale / size


def _bound(group: Group, by: float) -> float | None:
    """A bound of by lr |m^| / sqrt(v^), from Cauchy-Schwarz on the sums that m and v are; None if there is none."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    if beta1**2 >= beta2 or isinstance(lr, Tensor):
        return None
    return float(lr * by * (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2)))
