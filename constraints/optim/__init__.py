"""Optimizers that keep constrained parameters on their manifolds."""

from .adam import RiemannianAdam
from .adamw import RiemannianAdamW
from .lbfgs import RiemannianLBFGS
from .sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianAdamW", "RiemannianLBFGS", "RiemannianSGD"]
