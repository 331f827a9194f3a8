"""Adam on manifolds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.adam import adam

from .bucket import Bucket
from .checks import Group, check_at_least_zero
from .optimizer import Params, RiemannianOptimizer, rate


class RiemannianAdam(RiemannianOptimizer):
    """m <- beta1 m + (1 - beta1) grad, v <- beta2 v + (1 - beta2) |grad|^2, x <- R_x(-lr m^ / (sqrt(v^) + eps)).

    grad is the Riemannian gradient, |.| the norm of the metric, m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t), R the
    retraction; m is carried to the new point. There is one number v for each factor of a product: each gate of a
    packed weight has its own step size. With `amsgrad`, v^ is the largest so far.

    params: see `RiemannianOptimizer`. lr: a float or a tensor of one element. capturable: count steps on the device,
    as a CUDA graph needs. Unconstrained tensors move as in torch.optim.Adam, whose options these are; L2 decay does
    nothing where all points have one norm, and says so.
    Raises ValueError for options out of range.
    Source: Becigneul & Ganea, Riemannian adaptive optimization methods (2019), section 3.

    >>> gru = constrain(torch.nn.GRU(5, 8), "weight_hh_l0", Stiefel**3, Riemannian())
    >>> optimizer = RiemannianAdam(gru, lr=1e-2)
    >>> gru(torch.randn(3, 2, 5))[0].sum().backward()
    >>> optimizer.step()
    >>> report(gru)[0].ok
    True
    """

    _numbers = frozenset({"exp_avg_sq", "max_exp_avg_sq"})

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
        capturable: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, options)

    def _check_options(self, group: Group) -> None:
        check_at_least_zero(group, "lr", "eps", "weight_decay")
        for i, beta in enumerate(group["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] of RiemannianAdam is in [0, 1); got {beta}.")

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        (beta1, beta2), lr = group["betas"], rate(group)
        factor, x, step = bucket.factor, bucket.x, bucket.count_step()
        stored, v = bucket.stored("exp_avg"), bucket.stored("exp_avg_sq")
        m, square = factor.mix(x, stored, self._descent(bucket, group), beta1, 1 - beta1)
        v.lerp_(square, 1 - beta2)
        bucket.put("exp_avg_sq", v)
        if group["amsgrad"]:
            largest = bucket.stored("max_exp_avg_sq")
            v = torch.maximum(largest, v, out=largest)
            bucket.put("max_exp_avg_sq", v)
        root = (1 - beta2**step) ** 0.5
        scale, eps = -lr / (1 - beta1**step), group["eps"] * root
        if bucket.looks and v.numel() == 1 and isinstance(scale, float):  # a number in place of five calls of torch
            size: float | Tensor = _quotient(scale * root, v.item(), eps, torch.finfo(v.dtype).tiny)
        else:
            size = v.sqrt().add_(eps)
            none = size < torch.finfo(v.dtype).tiny if group["eps"] < 1e-30 else None
            size.reciprocal_()
            size = size.mul_(scale * root) if isinstance(scale, float) else size.mul_(root).mul_(scale)
            if none is not None:
                size = size.masked_fill_(none, 0.0)
        y = bucket.advance(m, size, _bound(group))
        bucket.put("exp_avg", factor.store(x, y, m))
        return y

    def _step_free(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        capturable, amsgrad = group["capturable"], group["amsgrad"]
        for p in params:
            entry = self.state[p]
            if not entry:
                entry["step"] = torch.zeros((), dtype=torch.float32, device=p.device if capturable else "cpu")
                entry["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                entry["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if amsgrad and "max_exp_avg_sq" not in entry:
                entry["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            [entry["exp_avg"] for entry in states],
            [entry["exp_avg_sq"] for entry in states],
            [entry["max_exp_avg_sq"] for entry in states] if amsgrad else [],
            [entry["step"] for entry in states],
            capturable=capturable,
            has_complex=any(p.is_complex() for p in params),
            amsgrad=amsgrad,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def _quotient(scale: float, v: float, eps: float, tiny: float) -> float:
    """scale / (sqrt(v) + eps); 0 where there is no gradient and no eps, NaN where v is none of a square."""
    size = math.sqrt(v) + eps if v >= 0 else math.nan
    return 0.0 if size < tiny else scale / size


def _bound(group: Group) -> float | None:
    """A bound of lr |m^| / sqrt(v^), from Cauchy-Schwarz on the sums that m and v are; None if there is none."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    if beta1**2 >= beta2 or isinstance(lr, Tensor):
        return None
    return float(lr * (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2)))
