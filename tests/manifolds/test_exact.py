"""How far rounding leaves a point from its manifold: max |X^H X - I| in eps, measured in more digits than it has."""

import pytest
import torch

from manifolds import Orthogonal, SpecialOrthogonal, Stiefel, retractions
from manifolds.engine import engine
from tests.promises import PROMISED, off

MOVES = [retractions.polar, retractions.cayley, retractions.qr, retractions.exp]
SHAPES = [(3, 3), (16, 16), (130, 130), (24, 8), (8, 24), (40, 1)]
LENGTHS = [0.0, 1e-3, 0.3, 1.0, 3.0, 10.0, 30.0, 1e2, 1e3, 1e4, 1e6, 1e9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("retraction", MOVES, ids=lambda r: r.__name__)
def test_a_move_ends_on_the_manifold_or_is_refused(retraction, shape, low_rank, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    manifold = Stiefel(retraction=retraction)
    for length in LENGTHS:
        x = manifold.random(*shape, dtype=dtype, generator=generator)
        c = torch.randn(*shape, dtype=dtype, generator=generator)
        if low_rank:
            c = c[:, :1] @ c[:1]
        c = engine(manifold).coordinates(x, c)
        try:
            y = engine(manifold).move(x, c * (length / c.norm().clamp_min(1e-30)))
        except torch.linalg.LinAlgError:
            y = torch.full_like(x, torch.nan)
        refused = bool(y.isnan().any())
        assert not refused or length > 1e4, length
        # 4.5 sqrt(n) of the pivots of one LU below n = 128, and those 8 that the start is off
        assert refused or off(y) <= PROMISED["one retraction"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("manifold", [Stiefel(), Orthogonal(), SpecialOrthogonal()], ids=repr)
def test_starts_and_nearest_points_are_polished(manifold, n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(n, n), (n, 2 * n), (2 * n, n)] if isinstance(manifold, Stiefel) else [(n, n)]:
        a = torch.randn(*shape, dtype=dtype, generator=generator)
        # one polish leaves the rounding of X, and measuring it sqrt(n) eps
        start, near = manifold.random(*shape, dtype=dtype, generator=generator), manifold.nearest(a)
        assert off(start, manifold) <= PROMISED["a random point"]
        assert off(near, manifold) <= PROMISED["a nearest point"]
        for x in (start, near):
            assert not x.is_conj()
            assert x.is_contiguous()
