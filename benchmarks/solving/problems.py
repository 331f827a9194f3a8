"""Problems on the manifolds that exist here."""

from __future__ import annotations

import torch
from torch import Tensor

from manifolds import (
    Euclidean,
    Grassmann,
    Oblique,
    Orthogonal,
    PositiveDefinite,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

from .problem import F64, Problem, Problems, circuit, digits, overlap


def problems() -> list[Problem]:
    """All of them, with data of one seed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = F64) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    problems = Problems()
    one, found = problems.one, problems.found

    c = digits()
    one("pca", "PCA of digits, 64 x 5", lambda x: -(x * (c @ x)).sum(), Stiefel(), (64, 5), "Stiefel", 64, 5)
    one(
        "subspace",
        "the same as a point of the Grassmann manifold",
        lambda x: -(x * (c @ x)).sum(),
        Grassmann(),
        (64, 5),
        "Grassmann",
        64,
        5,
    )
    covariances = normal(50, 6, 12)
    covariances = covariances @ covariances.mT / 12
    roots = torch.linalg.inv(torch.linalg.cholesky(covariances))
    one(
        "spd-mean",
        "Karcher mean of 50 covariances, 6 x 6",
        lambda x: torch.linalg.eigvalsh(roots @ x @ roots.mT).log().square().sum(1).mean(),
        PositiveDefinite(),
        (6, 6),
        "SymmetricPositiveDefinite",
        6,
    )
    weights = torch.arange(5.0, 0, -1, dtype=F64)
    one(
        "brockett",
        "leading eigenvectors in order, 64 x 5",
        lambda x: -(x * (c @ x) * weights).sum(),
        Stiefel(),
        (64, 5),
        "Stiefel",
        64,
        5,
    )
    s = normal(300, 300)
    s = (s + s.T) / 300**0.5
    one("rayleigh", "smallest eigenvalue, n = 300", lambda x: x @ s @ x, Sphere(), (300,), "Sphere", 300)
    within, between = normal(30, 60), normal(30, 40)
    within, between = within @ within.T / 60, between @ between.T / 40
    one(
        "trace-ratio",
        "trace ratio of two covariances, 30 x 3",
        lambda x: -(x * (between @ x)).sum() / (x * (within @ x)).sum(),
        Stiefel(),
        (30, 3),
        "Stiefel",
        30,
        3,
    )

    cloud = normal(100, 40)
    turn = SpecialOrthogonal().random(40, 40, dtype=F64, generator=generator)
    seen = cloud @ turn + 0.3 * normal(100, 40)

    def near(g: torch.Generator) -> list[Tensor]:
        a = torch.randn(40, 40, dtype=F64, generator=g) / 40**0.5
        return [turn @ torch.linalg.matrix_exp((a - a.T) / 2)]

    one(
        "procrustes",
        "Procrustes, 40 x 40",
        lambda x: (cloud @ x - seen).square().sum(),
        Orthogonal(),
        (40, 40),
        "Stiefel",
        40,
        40,
        near=near,
    )
    rotations = SpecialOrthogonal().random(1000, 3, 3, dtype=F64, generator=generator)
    small = 0.5 * normal(1000, 3, 3)
    rotations = rotations[0] @ torch.linalg.matrix_exp(small - small.mT)
    one(
        "median",
        "robust mean of 1000 rotations",
        lambda x: ((x - rotations).square().sum((1, 2)) + 1e-2).sqrt().mean(),
        SpecialOrthogonal(),
        (3, 3),
        "SpecialOrthogonalGroup",
        3,
    )
    cameras = SpecialOrthogonal().random(30, 3, 3, dtype=F64, generator=generator)
    i, j = torch.combinations(torch.arange(30))[torch.rand(435, generator=generator) < 0.3].T
    noise = 0.1 * normal(len(i), 3, 3)
    relative = cameras[i] @ torch.linalg.matrix_exp(noise - noise.mT) @ cameras[j].mT
    one(
        "synchronization",
        "rotation averaging, 30 cameras",
        lambda x: (x[i] - relative @ x[j]).square().sum((1, 2)).mean(),
        SpecialOrthogonal(),
        (30, 3, 3),
        "SpecialOrthogonalGroup",
        3,
        k=30,
    )
    basis = Orthogonal().random(8, 8, dtype=F64, generator=generator)
    spectra = torch.diag_embed(normal(10, 8))
    many = basis @ spectra @ basis.T + 0.05 * (lambda e: e + e.mT)(normal(10, 8, 8))
    one(
        "joint",
        "joint diagonalization of 10 matrices, 8 x 8",
        lambda x: many.square().sum() - (x.T @ many @ x).diagonal(dim1=1, dim2=2).square().sum(),
        Orthogonal(),
        (8, 8),
        "Stiefel",
        8,
        8,
    )
    sources = (6 * torch.rand(2000, 6, dtype=F64, generator=generator) - 3) @ Orthogonal().random(
        6, 6, dtype=F64, generator=generator
    )
    one(
        "ica",
        "independent components, 6 x 6",
        lambda x: torch.log(torch.cosh(sources @ x)).mean(0).sum(),
        Orthogonal(),
        (6, 6),
        "Stiefel",
        6,
        6,
    )
    sparse = (normal(20, 400) * (torch.rand(20, 400, generator=generator) < 0.2)).T
    one(
        "dictionary",
        "dictionary of 20 atoms by the fourth power",
        lambda x: -(sparse @ x).pow(4).mean(0).sum(),
        Orthogonal(),
        (20, 20),
        "Stiefel",
        20,
        20,
    )
    graph = torch.triu((torch.rand(80, 80, generator=generator) < 0.1).to(F64), 1)
    graph = graph + graph.T
    one(
        "max-cut",
        "max-cut, 80 nodes, rank 10",
        lambda x: (x * (x @ graph)).sum() / 4,
        Oblique(),
        (10, 80),
        "Oblique",
        10,
        80,
    )
    pairs = torch.combinations(torch.arange(12)).T
    one(
        "thomson",
        "12 charges on a sphere",
        lambda x: (x[:, pairs[0]] - x[:, pairs[1]]).square().sum(0).rsqrt().sum(),
        Oblique(),
        (3, 12),
        "Oblique",
        3,
        12,
    )
    target = torch.corrcoef(normal(30, 60))
    one(
        "correlation",
        "nearest correlation matrix of rank 5, 30 x 30",
        lambda x: (x.T @ x - target).square().sum(),
        Oblique(),
        (5, 30),
        "Oblique",
        5,
        30,
    )
    cube = normal(12, 12, 12)
    one(
        "tensor",
        "best rank-one tensor, 12^3",
        lambda x: -torch.einsum("ijk,i,j,k->", cube, x, x, x),
        Sphere(),
        (12,),
        "Sphere",
        12,
    )
    one(
        "sparse-pca",
        "sparse PCA of digits, 64 x 3",
        lambda x: -(x * (c @ x)).sum() + 0.01 * (x * x + 1e-3).sqrt().sum(),
        Stiefel(),
        (64, 3),
        "Stiefel",
        64,
        3,
    )
    directions = Sphere().nearest(normal(200, 5) + 2 * torch.eye(5, dtype=F64)[0])
    one(
        "sphere-mean",
        "Karcher mean of 200 directions",
        lambda x: (2 * torch.atan2((x - directions).norm(dim=1), (x + directions).norm(dim=1))).square().mean(),
        Sphere(),
        (5,),
        "Sphere",
        5,
    )
    gates = normal(3, 16, 16)
    one(
        "packed",
        "three gates of a packed weight, 3 x (16 x 16)",
        lambda x: (gates * x).sum() + 0.1 * x.pow(4).sum(),
        Stiefel(),
        (3, 16, 16),
        "Stiefel",
        16,
        16,
        k=3,
    )
    state = normal(2**6)
    state = state / state.norm()
    one(
        "network",
        "isometric network of ten tensors",
        lambda x: -overlap(x, state).square(),
        Stiefel(),
        (10, 4, 4),
        "Stiefel",
        4,
        4,
        k=10,
    )
    a = normal(30, 20)
    found.append(
        Problem(
            "svd",
            "leading singular vectors, 30 x 3 and 20 x 3",
            lambda u, v: -((u.T @ a @ v).diagonal() * weights[:3]).sum(),
            [Stiefel(), Stiefel()],
            [(30, 3), (20, 3)],
            [("Stiefel", (30, 3), {}), ("Stiefel", (20, 3), {})],
        )
    )
    low = normal(40, 3) @ normal(3, 30) / 3
    mask = torch.rand(40, 30, generator=generator) < 0.5
    found.append(
        Problem(
            "completion",
            "completion of a 40 x 30 matrix of rank 3, half seen",
            lambda u, b: (torch.where(mask, u @ b - low, 0)).square().sum(),
            [Stiefel(), Euclidean()],
            [(40, 3), (3, 30)],
            [("Stiefel", (40, 3), {}), ("Euclidean", (3, 30), {})],
        )
    )
    h = normal(8, 8, dtype=torch.complex128)
    unitary = torch.linalg.matrix_exp(1j * (h + h.mH) / 4)
    one(
        "unitary",
        "synthesis of a unitary on three spins from six gates",
        lambda x: 1 - circuit(x, unitary),
        Orthogonal(),
        (6, 4, 4),
        "UnitaryGroup",
        4,
        k=6,
        dtype=torch.complex128,
    )
    return found
