"""Optimizers that keep constrained parameters on their manifolds."""

from .adam import RiemannianAdam
from .lbfgs import RiemannianLBFGS
from .sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianLBFGS", "RiemannianSGD"]
