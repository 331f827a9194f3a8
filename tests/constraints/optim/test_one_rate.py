"""One learning rate for a whole model: lr means per degree of freedom what it means per entry in torch.optim.Adam."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam
from constraints.optim.step.bucket import Bucket
from manifolds import BlockSpec, Euclidean, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Sphere, Stiefel
from manifolds.retractions import cayley, exp, polar, qr

REAL, COMPLEX = torch.float64, torch.complex128
MANIFOLDS: list[tuple[Manifold, tuple[int, ...]]] = [
    *((Stiefel(metric), shape) for metric in ("euclidean", "canonical") for shape in ((2, 2), (6, 6), (9, 4), (3, 7))),
    *((Stiefel(), shape) for shape in ((5, 4), (4, 5), (8, 1), (1, 8), (3, 5, 5), (32, 32), (64, 8))),
    *((kind(), (n, n)) for kind in (Orthogonal, SpecialOrthogonal) for n in (2, 3, 5)),
    *((Sphere(), shape) for shape in ((2,), (9,), (4, 6))),
    (Euclidean(), (3, 4)),
]
POINTS_THAT_STAY: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel(), (1, 1)),
    (Stiefel("canonical"), (4, 1, 1)),
    (Orthogonal(), (1, 1)),
    (SpecialOrthogonal(), (1, 1)),
    (Sphere(), (3, 1)),
]
EVERY = [
    pytest.param(manifold, shape, dtype, id=f"{manifold} {shape} {dtype}")
    for manifold, shape in MANIFOLDS
    for dtype in (REAL, COMPLEX)
]


def degrees(manifold: Manifold, x: Tensor) -> int:
    """The rank of the projection at x, as a map of real numbers: its trace."""
    basis = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    basis = torch.cat([basis, 1j * basis]) if x.is_complex() else basis
    images = manifold.project(x.expand_as(basis).clone(), basis)
    return round(float((basis.conj() * images).real.sum()))


def free_twin(p: Tensor) -> nn.Parameter:
    return nn.Parameter(p.detach().clone())


def per_entry(moved: Tensor) -> float:
    """The root mean square over the entries, real ones."""
    real = torch.view_as_real(moved) if moved.is_complex() else moved
    return float(real.square().mean().sqrt())


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        *((m, shape) for m, shape in [*MANIFOLDS, *POINTS_THAT_STAY] if math.prod(shape) < 100),
        (Stiefel**3, (9, 3)),
        (Stiefel * Sphere * Euclidean, (9, 4)),
        (ProductManifold((Stiefel, SpecialOrthogonal), BlockSpec(rows=(4, 2))), (6, 2)),
    ],
    ids=str,
)
def test_degrees_of_freedom_are_those_of_the_tangent_space(manifold: Manifold, shape: tuple[int, ...]) -> None:
    assert degrees(manifold, manifold.random(*shape, dtype=REAL)) == manifold.dim(shape)
    assert degrees(manifold, manifold.random(*shape, dtype=COMPLEX)) == manifold.dim_of_complex(shape)


@pytest.mark.parametrize(("manifold", "shape", "dtype"), EVERY)
def test_a_first_step_is_lr_for_each_degree_of_freedom(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """|y - x| = lr sqrt(d) (1 + O(lr sqrt(d))) in the norm of the metric, for each point; lr with "sum"."""
    x, lr = manifold.random(*shape, dtype=dtype), 1e-6
    count = math.prod(shape[: len(shape) - manifold.ndim])
    d = degrees(manifold, x) // count
    for second_moment, expected in (("mean", lr * math.sqrt(d)), ("sum", lr)):
        p = free_twin(x)
        optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], lr, eps=0, second_moment=second_moment)
        p.grad = 1e3 * torch.randn_like(x)
        optimizer.step()
        lengths = manifold.norm(x, manifold.project(x, p.detach() - x))
        torch.testing.assert_close(lengths, torch.full_like(lengths, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("manifold", "shape", "dtype"), EVERY)
def test_weights_move_per_entry_as_in_adam(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Within a factor of 2, for a gradient that stays: d is at least a quarter of the entries, a half unless square.

    A square gradient of the canonical metric is twice as long in the ambient one for its norm: a factor of sqrt(2).
    """
    p, lr = nn.Parameter(manifold.random(*shape, dtype=dtype)), 1e-4
    x, q, g = p.detach().clone(), free_twin(p), torch.randn_like(p)
    held = RiemannianAdam([{"params": [p], "manifold": manifold}], lr)
    free = torch.optim.Adam([q], lr)
    for _ in range(5):
        p.grad, q.grad = g.clone(), g.clone()
        held.step()
        free.step()
    ratio = per_entry(p.detach() - x) / per_entry(q.detach() - x)
    assert 0.5 - 1e-3 <= ratio <= 1.5


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("kind", [Stiefel, Orthogonal, SpecialOrthogonal])
def test_coordinates_of_a_square_block_are_two_entries_for_each_degree_of_freedom(kind: Any, n: int) -> None:
    """The first step of Adam moves each entry of a skew Omega by lr: the weight by lr sqrt(2 d), as RiemannianAdam does
    in the canonical metric, which counts each pair of entries once; in the other one that moves it by lr sqrt(d)."""
    lr, x = 1e-6, kind().random(n, n, dtype=REAL)
    g, d = torch.randn_like(x), kind().dim(x.shape)

    def length(manifold: Manifold, method: Any, optimizer: Any) -> float:
        net = nn.Module()
        net.w = nn.Parameter(x.clone())
        constrain(net, "w", manifold, method)
        (net.w * g).sum().backward()
        optimizer(net).step()
        return float((net.w.detach() - x).norm())

    riemannian = partial(RiemannianAdam, lr=lr, eps=0)
    cases = [
        (length(kind(), Trivialization(), lambda net: torch.optim.Adam(net.parameters(), lr, eps=1e-30)), 2 * d),
        (length(kind(), Riemannian(), riemannian), d),
        (length(Stiefel("canonical"), Riemannian(), riemannian), 2 * d),
    ]
    for moved, squares in cases:  # to the second order of a step of at most 6e-6
        assert moved == pytest.approx(lr * math.sqrt(squares), rel=1e-5)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_the_mean_is_the_sum_at_another_rate(amsgrad: bool, capturable: bool, tensor_lr: bool) -> None:
    """Per factor, "mean" at lr and eps is "sum" at lr sqrt(d) and eps sqrt(d): also batch last, in tiles, in groups."""
    for manifold, shape in (*MANIFOLDS, (SpecialOrthogonal(), (4096, 3, 3)), (Stiefel(), (600, 4, 4))):
        x = manifold.random(*shape, dtype=torch.float32)
        root = math.sqrt(manifold.dim(shape[len(shape) - manifold.ndim :]))
        found = []
        for second_moment, by in (("mean", 1.0), ("sum", root)):
            p = free_twin(x)
            optimizer = RiemannianAdam(
                [{"params": [p], "manifold": manifold, "second_moment": second_moment}],
                torch.tensor(1e-2 * by) if tensor_lr else 1e-2 * by,
                eps=1e-3 * by,
                amsgrad=amsgrad,
                capturable=capturable,
            )
            generator = torch.Generator().manual_seed(0)
            for scale in (1.0, 3.0, 0.01):
                p.grad = scale * torch.randn(shape, generator=generator)
                optimizer.step()
            found.append(p.detach())
        # three steps, each of a few roundings in the size of a step of at most 0.5
        torch.testing.assert_close(*found, rtol=0, atol=32 * torch.finfo(torch.float32).eps)
        assert not torch.equal(found[0], x)


@pytest.mark.parametrize(("manifold", "shape"), POINTS_THAT_STAY, ids=str)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_points_without_a_degree_of_freedom_stay(manifold: Manifold, shape: tuple[int, ...], eps: float) -> None:
    p = nn.Parameter(manifold.random(*shape))
    x = p.detach().clone()
    optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], 0.1, eps=eps)
    for _ in range(3):
        p.grad = torch.randn(shape)
        optimizer.step()
    assert torch.equal(p.detach(), x)


class Mixed(nn.Module):
    """Layers of all sizes, and kinds of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.GRU(5, 8), nn.GRU(8, 96)
        self.attention = nn.MultiheadAttention(96, 4)
        self.conv = nn.Conv2d(8, 16, 3, groups=2)
        self.up, self.down = nn.Linear(96, 200), nn.Linear(200, 12)
        self.rotation = nn.Parameter(torch.eye(3).repeat(7, 1, 1))
        self.rows = nn.Embedding(20, 6)
        self.unitary = nn.Parameter(torch.eye(6, dtype=torch.complex64))


HELD: dict[str, tuple[Any, BlockSpec | None]] = {
    "small.weight_hh_l0": (Stiefel**3, None),
    "large.weight_hh_l0": (Stiefel * Euclidean * Stiefel("canonical"), None),
    "attention.in_proj_weight": (Stiefel**3, None),
    "conv.weight": (Stiefel**2, BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=2)),
    "up.weight": (Stiefel(), None),
    "down.weight": (Stiefel(), None),
    "rotation": (SpecialOrthogonal(), None),
    "rows.weight": (Sphere(), None),
    "unitary": (Orthogonal(), None),
}


def random_gradients(model: nn.Module, generator: torch.Generator, common: dict[str, Tensor]) -> None:
    """Noise about a gradient that stays, of a size of its own for each tensor."""
    for i, (name, p) in enumerate(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = 10.0 ** (i % 5 - 2) * (common[name] + noise)


def schedules(optimizer: torch.optim.Optimizer, steps: int) -> Iterator[Any]:
    yield None
    yield torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, cycle_momentum=False)


@pytest.mark.parametrize("scheduled", [False, True])
def test_every_layer_moves_as_without_its_constraint(scheduled: bool) -> None:
    """Per entry and within a factor of 2, at one lr for all groups, which a schedule may overwrite."""
    torch.manual_seed(0)
    free, steps = Mixed(), 20
    held = copy.deepcopy(free)
    for name, (manifold, layout) in HELD.items():
        constrain(held, name, manifold, Riemannian(), layout=layout, init="haar" if layout is None else None)
    free.load_state_dict(held.state_dict())
    before = {name: p.detach().clone() for name, p in held.named_parameters()}
    common = {name: torch.randn_like(p) for name, p in before.items()}
    for model, optimizer in ((held, RiemannianAdam(held, 1e-3)), (free, torch.optim.Adam(free.parameters(), 1e-3))):
        *_, schedule = schedules(optimizer, steps + 1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            random_gradients(model, generator, common)
            optimizer.step()
            if scheduled:
                schedule.step()
    for (name, p), q in zip(held.named_parameters(), free.parameters(), strict=True):
        moved, expected = p.detach() - before[name], q.detach() - before[name]
        if name not in HELD:
            torch.testing.assert_close(moved, expected)
            continue
        manifold, layout = HELD[name]
        product = ProductManifold(manifold.factors, layout) if layout else manifold
        cut = product.unpack if isinstance(product, ProductManifold) else lambda t: (t,)
        for of_held, of_free in zip(cut(moved), cut(expected), strict=True):
            assert 0.5 <= per_entry(of_held) / per_entry(of_free) <= 2, name


SIZES = [
    (Stiefel(metric, r), s)
    for metric in ("euclidean", "canonical")
    for r in (polar, cayley, exp, qr)
    for s in ((24, 24), (30, 6), (6, 30))
]


@pytest.mark.parametrize(("manifold", "shape"), [*SIZES, (Orthogonal(), (24, 24))], ids=str)
@pytest.mark.parametrize("second_moment", ["mean", "sum"])
def test_no_step_is_longer_than_its_bound(
    manifold: Manifold, shape: tuple[int, ...], second_moment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the drift is reckoned with: for gradients that stay, and for those that grow, which make the longest."""
    seen: list[tuple[float, float]] = []
    advance = Bucket.advance

    def spy(self: Bucket, c: Tensor, size: Any, longest: float | None = None) -> Tensor:
        assert longest is not None
        scale = float(size) if not isinstance(size, Tensor) else size.reshape(-1, 1, 1)
        seen.append((float((c * scale).flatten(1).norm(dim=1).max()), longest))
        return advance(self, c, size, longest)

    monkeypatch.setattr(Bucket, "advance", spy)
    for count in (1, 2):
        p = nn.Parameter(manifold.random(count, *shape, dtype=REAL))
        optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], 1e-3, second_moment=second_moment)
        slope, steps = torch.randn_like(p), 40
        for t in range(steps):
            p.grad = slope * (0.999 / 0.9) ** t  # as Cauchy-Schwarz is sharp for
            optimizer.step()
    assert all(length <= bound for length, bound in seen)
    assert max(length / bound for length, bound in seen) > 0.1, "a bound so far off says nothing"


# What is saved ------------------------------------------------------------------------------------------


def parameters() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    gates, rows = (Stiefel**3).random(12, 4, generator=generator), Sphere().random(5, 3, generator=generator)
    return [
        {"params": [nn.Parameter(gates)], "manifold": Stiefel**3},
        {"params": [nn.Parameter(rows)], "manifold": Sphere},
        {"params": [nn.Parameter(torch.zeros(4))]},
    ]


def train(optimizer: torch.optim.Optimizer, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(4):
        for p in held:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in held]


def old(optimizer: RiemannianAdam) -> RiemannianAdam:
    """As it was before there was a choice."""
    for group in optimizer.param_groups:
        del group["second_moment"]
    del optimizer.defaults["second_moment"]
    return optimizer


def test_a_file_says_which_second_moment_it_goes_on_with() -> None:
    """As for all options of torch's: training goes on as it was, at the rate that it had."""
    first = RiemannianAdam(parameters(), 0.05, second_moment="sum")
    train(first, 0)
    second = RiemannianAdam(parameters(), 0.05)
    with torch.no_grad():
        for group, other in zip(second.param_groups, first.param_groups, strict=True):
            group["params"][0].copy_(other["params"][0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [group["second_moment"] for group in second.param_groups] == ["sum"] * 3
    for a, b in zip(train(first, 1), train(second, 1), strict=True):
        assert torch.equal(a, b)


def test_files_from_before_there_was_a_choice_go_on_as_they_were() -> None:
    """Their rates were chosen for the sum: it is kept, and where another was asked for that is said."""
    first = RiemannianAdam(parameters(), 0.05, second_moment="sum")
    train(first, 0)
    before, second = old(copy.deepcopy(first)), RiemannianAdam(parameters(), 0.05)
    with torch.no_grad():
        for group, other in zip(second.param_groups, first.param_groups, strict=True):
            group["params"][0].copy_(other["params"][0])
    with pytest.warns(UserWarning, match="go on with that, at the lr that was saved"):
        second.load_state_dict(before.state_dict())
    again = pickle.loads(pickle.dumps(before))
    again.add_param_group({"params": [nn.Parameter(torch.eye(3))], "manifold": Stiefel})
    assert {group["second_moment"] for o in (second, again) for group in o.param_groups} == {"sum"}
    again.param_groups.pop()
    for others in zip(train(first, 1), train(second, 1), train(again, 1), strict=True):
        assert all(torch.equal(others[0], other) for other in others)


def test_who_asked_for_the_sum_hears_nothing(recwarn: pytest.WarningsRecorder) -> None:
    saved = old(RiemannianAdam(parameters(), 0.05, second_moment="sum")).state_dict()
    optimizer = RiemannianAdam(parameters(), 0.05, second_moment="sum")
    optimizer.load_state_dict(saved)
    free = [nn.Parameter(torch.zeros(4))]
    RiemannianAdam(free).load_state_dict(old(RiemannianAdam(free)).state_dict())
    assert not recwarn.list


@pytest.mark.parametrize("value", ["median", None, 1, "Mean", True])
def test_another_second_moment_is_refused(value: Any) -> None:
    x = nn.Parameter(torch.eye(3))
    with pytest.raises(ValueError, match="second_moment of RiemannianAdam is 'mean' or 'sum'"):
        RiemannianAdam([x], second_moment=value)
    with pytest.raises(ValueError, match="second_moment of RiemannianAdam is 'mean' or 'sum'"):
        RiemannianAdam([{"params": [x], "manifold": Stiefel, "second_moment": value}])
