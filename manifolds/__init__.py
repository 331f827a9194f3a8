"""Manifolds for packed weights: geometry of tensors, without modules or optimizers."""

from . import retractions
from .base import GeodesicManifold, Manifold, NearestPointManifold, tolerance
from .compositions import (
    Composition,
    Isospectral,
    LowRank,
    Orthostochastic,
    PositiveSemidefinite,
    SpectralBall,
    SpectralSphere,
)
from .euclidean import Euclidean
from .layout import BlockSpec, Layout, Pattern
from .oblique import Oblique
from .orthogonal import Orthogonal, SpecialOrthogonal
from .positive_definite import PositiveDefinite
from .product import ProductManifold
from .simplex import Simplex
from .sphere import Sphere
from .stiefel import Stiefel
from .symmetric import Skew, Symmetric

__all__ = [
    "BlockSpec",
    "Composition",
    "Euclidean",
    "GeodesicManifold",
    "Isospectral",
    "Layout",
    "LowRank",
    "Manifold",
    "NearestPointManifold",
    "Oblique",
    "Orthogonal",
    "Orthostochastic",
    "Pattern",
    "PositiveDefinite",
    "PositiveSemidefinite",
    "ProductManifold",
    "Simplex",
    "Skew",
    "SpecialOrthogonal",
    "SpectralBall",
    "SpectralSphere",
    "Sphere",
    "Stiefel",
    "Symmetric",
    "retractions",
    "tolerance",
]
