"""Optimizers that keep constrained parameters on their manifolds."""

from . import spectral
from .adam import RiemannianAdam
from .adamw import RiemannianAdamW
from .clipping import clip_riemannian_grad_norm_
from .lbfgs import RiemannianLBFGS
from .muon import RiemannianMuon
from .retracted import Retracted
from .sgd import RiemannianSGD

__all__ = [
    "Retracted",
    "RiemannianAdam",
    "RiemannianAdamW",
    "RiemannianLBFGS",
    "RiemannianMuon",
    "RiemannianSGD",
    "clip_riemannian_grad_norm_",
    "spectral",
]
