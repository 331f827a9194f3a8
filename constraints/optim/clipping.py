"""Clipping by the norm of what an optimizer moves along: of Riemannian gradients, not of `.grad`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from manifolds import Manifold
from manifolds.engine import engine
from manifolds.kernels.precision import exact_products

from ..riemannian import param_groups
from ..sharding import is_sharded, local, whole
from ..summing import Parts
from ..values import master_dtype
from .step import Group
from .step.cuts import cut_of, filled, mesh_axes
from .step.pieces import gradient_of


@torch.no_grad()
def clip_riemannian_grad_norm_(
    params: nn.Module | Optimizer | Iterable[Group], max_norm: float, *, error_if_nonfinite: bool = False
) -> Float[Tensor, ""]:
    """N = sqrt(sum of |grad|^2 over all points and all free tensors), and every .grad times min(1, max_norm / N).

    grad is the Riemannian gradient, in the metric of its manifold, factor by factor; of a free tensor it is .grad. So
    N is how steep the loss is along the manifolds, and a step of RiemannianSGD is at most lr max_norm long.
    torch.nn.utils.clip_grad_norm_ sees .grad, with the part that is normal to the manifold and that no step follows:
    its norm is larger, on Stiefel without bound, and it clips what need not be.

    Of sharded parameters it is that of all processes, which call it together; they may lie on several meshes.

    params: a module, an optimizer of `constraints.optim`, or parameter groups with their "manifold". Gives N, as it
    was, in the widest precision of the gradients, float32 at least, without waiting for an accelerator. Raises
    RuntimeError, if error_if_nonfinite, where N is not finite, and changes nothing then; ValueError for a max_norm
    below 0, TypeError for tensors without groups, which carry no manifold.
    Source: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks (2013), algorithm 1.

    >>> linear = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> linear(torch.ones(1, 4)).square().sum().backward()
    >>> ambient = torch.nn.utils.get_total_norm([p.grad for p in linear.parameters()])
    >>> bool(clip_riemannian_grad_norm_(linear, 0.1) < ambient)
    True
    >>> round(float(clip_riemannian_grad_norm_(linear, 1.0)), 4)
    0.1
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm is at least 0; got {max_norm}.")
    held = [(p, manifold) for p, manifold in _pairs(params) if p.grad is not None]
    if not held:
        return torch.tensor(0.0)
    place = held[0][0].device
    squares = torch.stack([_square(p, manifold).to(place, torch.float64) for p, manifold in held])
    total = squares.sum().sqrt()
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(
            "the norm of the gradients is not finite, so they cannot be clipped by it. Pass error_if_nonfinite=False "
            "to multiply them by it all the same."
        )
    by = (max_norm / total.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    for p, _ in held:
        assert p.grad is not None
        g, wide = local(p.grad), master_dtype(p.grad.dtype)
        scale = by.to(g.device, wide.to_real())
        if wide == g.dtype:
            g.mul_(scale)
        else:  # float16 has no number as small as the factor may be
            g.copy_(g.to(wide) * scale)
    widest = max((master_dtype(p.dtype).to_real() for p, _ in held), key=lambda dtype: dtype.itemsize)
    return total.to(widest)


def _pairs(params: nn.Module | Optimizer | Iterable[Group]) -> list[tuple[Tensor, Manifold | None]]:
    groups: Iterable[Any]
    if isinstance(params, nn.Module):
        groups = param_groups(params)
    elif isinstance(params, Optimizer):
        groups = params.param_groups
    else:
        groups = [params] if isinstance(params, Tensor) else list(params)
    found: list[tuple[Tensor, Manifold | None]] = []
    for group in groups:
        if not isinstance(group, dict):
            raise TypeError(
                f"clipping takes a module, an optimizer or parameter groups, which say what is held; got "
                f"{type(group).__name__}. Pass the module, or param_groups(module)."
            )
        manifold = group.get("manifold")
        manifold = manifold() if isinstance(manifold, type) else manifold
        members = group["params"]
        each = [members] if isinstance(members, Tensor) else members
        found += [(p[1] if isinstance(p, tuple) else p, manifold) for p in each]
    return found


def _square(p: Tensor, manifold: Manifold | None) -> Tensor:
    """|grad|^2, in the precision that geometry needs; of a sharded parameter that of all its pieces."""
    assert p.grad is not None
    if is_sharded(p):
        return _square_of_pieces(p, manifold)
    g = p.grad.coalesce().values() if p.grad.is_sparse and manifold is None else p.grad
    return _square_at(p.detach(), g.to_dense() if g.is_sparse else g, manifold)


def _square_of_pieces(p: Tensor, manifold: Manifold | None) -> Tensor:
    """Where a process has whole points, or slices of which sums will do, by what each of them has. Not by operations on
    DTensors, which some versions of torch get wrong for norms."""
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    g, cut = gradient_of(p), None if manifold is None else cut_of(p, manifold, slices=True)
    if manifold is not None and cut is None:
        return _square_at(whole(p.detach()), whole(g), manifold)
    x, g = filled(local(p), cut), filled(local(g), cut)
    total = _square_at(x, g, None if cut is None else cut.manifold)
    if cut is None or not cut.sliced:
        for i in mesh_axes(p):
            (total,) = Parts(mesh, i).summed(total)
    return total


def _square_at(x: Tensor, g: Tensor, manifold: Manifold | None) -> Tensor:
    wide = master_dtype(x.dtype)
    if manifold is None:
        norm: Tensor = torch.linalg.vector_norm(g.to(wide))
        return norm.double().square()
    with exact_products(x.device.type):
        stacks = zip(engine(manifold).split(x.to(wide)), engine(manifold).split(g.to(wide)), strict=True)
        norms = [factor.norm(x, factor.gradient(x, h)).double().square().sum() for (factor, x), (_, h) in stacks]
    total: Tensor = torch.stack(norms).sum()
    return total
