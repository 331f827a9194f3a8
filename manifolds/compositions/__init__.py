"""Weights that are maps of several points: low rank, bounded singular values, a gain times a rotation."""

from .base import ComposedProduct, Composition
from .hurwitz import Hurwitz
from .invertible import Invertible
from .low_rank import LowRank
from .orthostochastic import Orthostochastic
from .scaled import Scaled
from .semidefinite import PositiveSemidefinite
from .spectral import Isospectral, SpectralBall, SpectralSphere

__all__ = [
    "ComposedProduct",
    "Composition",
    "Hurwitz",
    "Invertible",
    "Isospectral",
    "LowRank",
    "Orthostochastic",
    "PositiveSemidefinite",
    "Scaled",
    "SpectralBall",
    "SpectralSphere",
]
