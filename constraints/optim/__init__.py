"""Optimizers that keep constrained parameters on their manifolds."""

from .adam import RiemannianAdam
from .sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianSGD"]
