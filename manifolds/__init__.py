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
from .orthogonal import Orthogonal, SpecialOrthogonal
from .product import ProductManifold
from .sphere import Sphere
from .stiefel import Stiefel

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
    "Orthogonal",
    "Orthostochastic",
    "Pattern",
    "PositiveSemidefinite",
    "ProductManifold",
    "SpecialOrthogonal",
    "SpectralBall",
    "SpectralSphere",
    "Sphere",
    "Stiefel",
    "retractions",
    "tolerance",
]
