"""Manifolds for packed weights: geometry of tensors, without modules or optimizers."""

from . import retractions
from .base import GeodesicManifold, Manifold, NearestPointManifold, tolerance
from .compositions import (
    Composition,
    Hurwitz,
    Invertible,
    Isospectral,
    LowRank,
    Orthostochastic,
    PositiveSemidefinite,
    Scaled,
    SpectralBall,
    SpectralSphere,
)
from .correlation import Correlation
from .doubly_stochastic import DoublyStochastic
from .euclidean import Euclidean
from .fixed_rank import FixedRank
from .grassmann import Grassmann
from .hyperboloid import Hyperboloid
from .layout import BlockSpec, Layout, Pattern
from .oblique import Oblique
from .orthogonal import Orthogonal, SpecialOrthogonal
from .poincare import PoincareBall
from .positive import Positive
from .positive_definite import PositiveDefinite
from .product import ProductManifold
from .simplex import Simplex
from .sphere import Sphere
from .stiefel import Stiefel
from .symmetric import Skew, Symmetric

__all__ = [
    "BlockSpec",
    "Composition",
    "Correlation",
    "DoublyStochastic",
    "Euclidean",
    "FixedRank",
    "GeodesicManifold",
    "Grassmann",
    "Hurwitz",
    "Hyperboloid",
    "Invertible",
    "Isospectral",
    "Layout",
    "LowRank",
    "Manifold",
    "NearestPointManifold",
    "Oblique",
    "Orthogonal",
    "Orthostochastic",
    "Pattern",
    "PoincareBall",
    "Positive",
    "PositiveDefinite",
    "PositiveSemidefinite",
    "ProductManifold",
    "Scaled",
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
