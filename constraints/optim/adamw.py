"""Adam with decoupled weight decay, on manifolds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .adam import RiemannianAdam, SecondMoment
from .step import Params


class RiemannianAdamW(RiemannianAdam):
    """x <- R_x(-lr (m^ / (sqrt(v^) + eps) + lambda P_x(x))), m^ and v^ as in `RiemannianAdam`.

    On unconstrained tensors and on Euclidean factors that is x - lr lambda x - lr m^ / (sqrt(v^) + eps), the step of
    torch.optim.AdamW, whose options these are. Elsewhere it is that to first order: P_x(x) is the Riemannian gradient
    of half the squared norm in the ambient metric, and on `Hyperboloid` that in its own is taken. Where all points have
    one norm this is 0, as on Stiefel and the sphere, and a weight_decay that is not the default says so. Coordinates of
    a trivialization, which decay would pull to their base, come from `param_groups` without any.

    weight_decay: lambda. The other options: see `RiemannianAdam`.
    Source: Loshchilov & Hutter, Decoupled weight decay regularization (2019), algorithm 2.

    >>> gru = constrain(torch.nn.GRU(5, 8), "weight_hh_l0", Stiefel**3, Riemannian())
    >>> optimizer = RiemannianAdamW(gru, lr=1e-3)
    >>> gru(torch.randn(3, 2, 5))[0].sum().backward()
    >>> optimizer.step()
    >>> report(gru)[0].ok
    True
    """

    _decay = 1e-2

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        lazy: bool = False,
        second_moment: SecondMoment = "mean",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            lazy=lazy,
            decoupled_weight_decay=True,
            second_moment=second_moment,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in torch: whatever is loaded, decay is decoupled."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
