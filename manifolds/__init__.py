"""Manifolds for packed weights: geometry of tensors, without modules or optimizers."""

from . import retractions
from .base import GeodesicManifold, Manifold, NearestPointManifold, tolerance
from .euclidean import Euclidean
from .layout import BlockSpec, Layout, Pattern
from .orthogonal import Orthogonal, SpecialOrthogonal
from .positive_definite import PositiveDefinite
from .product import ProductManifold
from .sphere import Sphere
from .stiefel import Stiefel

__all__ = [
    "BlockSpec",
    "Euclidean",
    "GeodesicManifold",
    "Layout",
    "Manifold",
    "NearestPointManifold",
    "Orthogonal",
    "Pattern",
    "PositiveDefinite",
    "ProductManifold",
    "SpecialOrthogonal",
    "Sphere",
    "Stiefel",
    "retractions",
    "tolerance",
]
