"""Muon on manifolds: steepest descent in the spectral norm, factor by factor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifolds import Euclidean, Grassmann, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Stiefel
from manifolds.engine import engine
from manifolds.kernels.msign import msign, msign_of_skew
from manifolds.retractions import polar

from ..records import name_of
from .adam import adam_free, adam_move, check_betas, decayed
from .spectral import match_rms_adamw, spel
from .step import Bucket, Group, Params, RiemannianOptimizer, check_at_least_zero, decays_in, rate
from .step.checks import name_in

ORTHONORMAL = (Stiefel, Orthogonal, SpecialOrthogonal)
NEAREST = engine(Stiefel())
"""Whose retraction is the polar factor of X + V, of any V."""


class RiemannianMuon(RiemannianOptimizer):
    """m <- momentum m + (1 - momentum) grad, and x goes against the direction of m that is steepest for its size.

    Size is the largest singular value, of each factor: of each gate, head or expert of a packed weight, not of the
    stack. With eta = lr scale(n, p), and grad + momentum (m - grad) in the place of m if `nesterov`:

    - square points of Stiefel, Orthogonal, SpecialOrthogonal: M = skew(X^H G), kept in the Lie algebra, and
      X <- X move(-eta msign(M)), by the retraction of the manifold;
    - tall ones, of Grassmann too, and wide ones by their transposes: X <- msign(X - eta A), A = direction(X, M) with M
      the momentum of projected gradients. `spectral.spel` is A = msign(M), `spectral.dual` the steepest tangent vector;
    - matrices held as Euclidean(ndim=2): Muon, X <- X - lr weight_decay X - eta msign(M);
    - all else, unconstrained tensors included: `RiemannianAdamW` at the rate lr, with `betas` and `eps`.

    Here msign(M) = W V^H for M = W S V^H. It is exact on CPU; elsewhere it is made of products, right to rounding for
    singular values above 1e-3 of their bound, see `spectral.msign_by_products`. The point is exact all the same.

    params: see `RiemannianOptimizer`. scale: `spectral.match_rms_adamw`, so that lr is that of AdamW for the whole
    model; `spectral.original` is the default of torch.optim.Muon, `spectral.unit` no scale. msign: a function of the
    matrices on Euclidean factors; `spectral.Quintic()` is that of torch.optim.Muon. direction, scale and msign are
    values, which a state dict names and does not hold. weight_decay is decoupled; it does nothing where all points have
    one norm, and says so if it is not the default. Warns where a module has free matrices and none is held as one, and
    where a matrix is held as its entries, on Euclidean().
    Raises ValueError for options out of range, TypeError for a direction, scale or msign that is no function.
    Source: Jordan, Muon (2024); Bernstein, Modular manifolds (2025), for square points; Yang & Lai, Manifold
    constrained steepest descent (2026), arXiv 2601.21487.

    >>> gru = constrain(torch.nn.GRU(5, 8), "weight_hh_l0", Stiefel**3, Riemannian())
    >>> optimizer = RiemannianMuon(gru, lr=1e-3)
    >>> gru(torch.randn(3, 2, 5))[0].sum().backward()
    >>> optimizer.step()
    >>> report(gru)[0].ok
    True
    """

    _numbers = frozenset({"exp_avg_sq"})
    _values = ("direction", "scale", "msign")
    _mixed = True
    _decay = 0.1

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        direction: Callable[[Tensor, Tensor], Tensor] = spel,
        scale: Callable[[int, int], float] = match_rms_adamw,
        msign: Callable[[Tensor], Tensor] = msign,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "direction": direction,
            "scale": scale,
            "msign": msign,
            "betas": betas,
            "eps": eps,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, options)
        groups = self.param_groups if isinstance(params, nn.Module) else []
        of_entries = [group for group in self.param_groups if _is_of_entries(group["manifold"])]
        names = [name_in(self.param_groups, p) for group in of_entries for p in _matrices(group) if name_of(p)]
        if names:
            kinds = dict.fromkeys(_of_matrices(group["manifold"]) for group in of_entries if _matrices(group))
            ways = " or ".join(f"constrain(model, names, {kind})" for kind in kinds)
            warnings.warn(
                f"RiemannianMuon moves matrices by AdamW, entry by entry: {', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}, held on Euclidean. Before you make the "
                f"optimizer, unconstrain them, and write {ways} for those that Muon shall move; free ones go by AdamW.",
                stacklevel=2,
            )
        elif any(map(_has_free_matrices, groups)) and not any(map(_has_matrices, groups)):
            warnings.warn(
                "RiemannianMuon moves nothing by Muon here, and the free matrices by AdamW: Riemannian() holds none as "
                "a matrix. Before you make the optimizer, write constrain(model, names, Euclidean(ndim=2), "
                "Riemannian()) for those that Muon shall move, with Euclidean(ndim=2)**k where k matrices are packed, "
                "as 3 in a GRU; or use RiemannianAdamW.",
                stacklevel=2,
            )

    def _check_options(self, group: Group) -> None:
        check_at_least_zero(group, "lr", "weight_decay", "momentum", "eps")
        check_betas("RiemannianMuon", group)
        if not group["momentum"] < 1:
            raise ValueError(f"momentum of RiemannianMuon is in [0, 1); got {group['momentum']}.")
        for name in self._values:
            if not callable(group[name]):
                raise TypeError(
                    f"{name} of RiemannianMuon is a function; got {group[name]!r}. Pass one of "
                    f"constraints.optim.spectral."
                )

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        rest = _adamw(group)
        if not is_spectral(bucket.factor):
            return adam_move(bucket, rest, lambda: self._descent(bucket, rest))
        g = self._descent(bucket, rest)
        factor, own, x, momentum = bucket.factor, bucket.engine, bucket.x, group["momentum"]
        bucket.count_step()
        square = x.shape[-2] == x.shape[-1] and isinstance(factor, ORTHONORMAL)
        # the pairing with a direction is that of the Euclidean gradient, whatever the metric
        c = own.lift(x, g) if square else factor.project(x, g)
        m = own.recall(x, bucket.stored("momentum_buffer")).lerp_(c, 1 - momentum)
        steepest = torch.lerp(c, m, momentum) if group["nesterov"] else m
        y = self._reached(bucket, group, steepest, square)
        bucket.put("momentum_buffer", own.store(x, y, m))
        return y

    def _reached(self, bucket: Bucket, group: Group, m: Tensor, square: bool) -> Tensor:
        """Where the points go, of which m is the momentum."""
        factor, x = bucket.factor, bucket.x
        n, p = x.shape[-2:]
        size = rate(group) * -group["scale"](n, p)
        if isinstance(factor, Euclidean):
            a = group["msign"](m)
            if decays_in(bucket, group):
                return bucket.advance(decayed(bucket, a, size, rate(group) * -group["weight_decay"]), 1.0)
            return bucket.advance(a, size)
        if square:
            return bucket.advance(msign_of_skew(m, traceless=isinstance(factor, SpecialOrthogonal)), size)
        # of horizontal vectors none is steeper than msign, which is one
        direction = spel if isinstance(factor, Grassmann) else group["direction"]
        a = direction(x, m) if n > p else direction(x.mH, m.mH).mH
        if getattr(factor, "retraction", None) is polar:
            return bucket.advance(a, size)
        return bucket.settle(NEAREST.advance(x, a, size))

    def _step_free(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        adam_free(self.state, _adamw(group), params, grads)


def is_spectral(factor: Manifold) -> bool:
    """Whether the points are matrices that go along singular directions."""
    return isinstance(factor, (*ORTHONORMAL, Grassmann)) or (isinstance(factor, Euclidean) and factor.ndim == 2)


def _has_matrices(group: Group) -> bool:
    """Whether anything in the group is moved by Muon."""
    factors = [group["manifold"]]
    while factors:
        factor = factors.pop()
        if isinstance(factor, ProductManifold):
            factors.extend(factor.factors)
        elif is_spectral(factor):
            return True
    return False


def _has_free_matrices(group: Group) -> bool:
    """Whether the group has what torch.optim.Muon would move."""
    return group["manifold"] is None and bool(_matrices(group))


def _matrices(group: Group) -> list[Tensor]:
    return [p for p in group["params"] if p.ndim == 2 and p.requires_grad]


def _is_of_entries(manifold: Manifold | None) -> bool:
    """Whether points are single numbers, which move as what is free does."""
    factors = manifold.factors if isinstance(manifold, ProductManifold) else (manifold,)
    return all(factor == Euclidean() for factor in factors)


def _of_matrices(manifold: Manifold) -> str:
    """What makes matrices of these entries, as arguments of constrain."""
    if not isinstance(manifold, ProductManifold):
        return "Euclidean(ndim=2), Riemannian()"
    layout = "" if manifold.stacked else f", layout={manifold.layout!r}"
    return f"Euclidean(ndim=2)**{len(manifold)}, Riemannian(){layout}"


def _adamw(group: Group) -> Group:
    """The options of RiemannianAdamW for what has no singular directions."""
    others: dict[str, Any] = {"amsgrad": False, "foreach": None, "fused": None}
    return {**group, **others, "decoupled_weight_decay": True, "second_moment": "mean"}
