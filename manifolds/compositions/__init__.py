"""Weights that are maps of several points: low rank, bounded singular values, a gain times a rotation."""

from .base import ComposedProduct, Composition
from .low_rank import LowRank
from .orthostochastic import Orthostochastic
from .semidefinite import PositiveSemidefinite
from .spectral import Isospectral, SpectralBall, SpectralSphere

__all__ = [
    "ComposedProduct",
    "Composition",
    "Isospectral",
    "LowRank",
    "Orthostochastic",
    "PositiveSemidefinite",
    "SpectralBall",
    "SpectralSphere",
]
