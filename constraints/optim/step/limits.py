"""What a step may look at, and how large the numbers are that it takes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from manifolds.kernels.tiny import largest_norm, norms


def is_fit(gradients: Tensor, share: float = 1.0) -> Bool[Tensor, " B"]:
    """Which gradients are finite, and small enough to be squared. share: see `Bucket`."""
    norms: Tensor = torch.linalg.vector_norm(flat(gradients), dim=1)
    return norms <= share * limit(gradients.dtype)


def seen_and_fit(gradients: Tensor, fit: Bool[Tensor, " B"] | None) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Which gradients are not exactly zero, and which of those are fit; zero is there for those that are not."""
    seen = (flat(gradients) != 0).any(1)
    return (seen, seen) if fit is None else (seen | ~fit, seen & fit)


def where(these: Bool[Tensor, " B"], new: Tensor, old: Tensor | float) -> Tensor:
    """New for these points, old for the others; in tiles too."""
    return torch.where(_mask(these, new), new, old)


def overwrite(old: Tensor, new: Tensor, these: Bool[Tensor, " B"] | None) -> None:
    """Put new in the place of old, for these points, or for all."""
    if these is None:
        old.copy_(new)
    else:
        torch.where(_mask(these, new), new, old, out=old)


def _mask(these: Bool[Tensor, " B"], points: Tensor) -> Tensor:
    batch = 1 if len(points) == len(these) else 2
    return these.view(*points.shape[:batch], *(1,) * (points.dim() - batch))


def too_long() -> Exception:
    error: Exception = torch.linalg.LinAlgError("the step is too long to be computed")  # type: ignore[attr-defined]
    return error


def length(c: Tensor, size: float | Tensor, ndim: int) -> float:
    """The largest |size c| of points with so many axes."""
    if not isinstance(size, Tensor) and ndim == 2:
        return largest_norm(c) * abs(size)
    lengths = norms(c).flatten() if ndim == 2 else torch.linalg.vector_norm(flat(c), dim=1)
    return float((lengths * (size.flatten() if isinstance(size, Tensor) else size)).abs().max())


def limit(dtype: torch.dtype) -> float:
    """The norm of a gradient from which on optimizers refuse it: X^H G - G^H X may be four times as long as it is."""
    return math.sqrt(torch.finfo(dtype).max) / 4


def flat(points: Tensor) -> Tensor:
    return points.reshape(len(points), -1)


def can_look(device: torch.device) -> bool:
    """Whether a step may look at values; on an accelerator it would have to wait for them."""
    return device.type == "cpu"


def being_captured(device: torch.device) -> bool:
    """Whether what runs on the device goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the absolute value."""
    return dtype.to_real() if dtype.is_complex else dtype
