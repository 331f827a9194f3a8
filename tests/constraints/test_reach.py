"""The base follows the weight: every point of a component is in reach of the default engine, and nothing jumps."""

from __future__ import annotations

import io
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import manifolds
from constraints import AveragedModel, Riemannian, Trivialization, constrain, rebase
from constraints.moments import changed
from constraints.optim import RiemannianAdam
from constraints.rebase import Rebased
from manifolds import Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel, retractions
from manifolds.engine import engine
from manifolds.positive_definite import Name

RETRACTIONS = (retractions.cayley, retractions.exp, retractions.polar, retractions.qr)


def held(start: Tensor, manifold: Manifold, **options: Any) -> Any:
    module = nn.Module()
    module.w = nn.Parameter(start.clone())
    return constrain(module, "w", manifold, Trivialization(**options))


def fit(module: Any, goals: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (module.w - goals).abs().square().sum().backward()
        optimizer.step()


def targets(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start, goals = (manifold.random(*shape, generator=generator, dtype=dtype) for _ in range(2))
    if isinstance(manifold, Sphere):  # the antipode, but for a direction to leave by
        goals = manifold.nearest(-start + 0.01 * goals)
    elif not dtype.is_complex:  # in the component of the start
        ends = [part for _, part in engine(manifold).split(goals)], [part for _, part in engine(manifold).split(start)]
        goals = engine(manifold).join([_of_sign(*pair) for pair in zip(*ends, strict=True)], shape)
    return start, goals


def _of_sign(a: Tensor, b: Tensor) -> Tensor:
    """A with a determinant of the sign of that of B, by its first column, where they are square."""
    if a.shape[-2] != a.shape[-1]:
        return a
    first = torch.arange(a.shape[-1]) == 0
    return torch.where(first & (a.det() * b.det() < 0)[..., None, None], -a, a)


def steps_taken(module: Any, goals: Tensor, optimizer: torch.optim.Optimizer, at_most: int, ndim: int) -> list[int]:
    """The steps until the weight is within 0.05 of each goal, at_most where it is not at the end, fewest first."""
    first = torch.zeros(())
    for step in range(1, at_most + 1):
        fit(module, goals, optimizer, 1)
        error = (module.w.detach() - goals).abs().square().flatten(-ndim).sum(-1).sqrt()
        first = torch.where(error <= 0.05, torch.where(first > 0, first, step), 0)
        if step > 60 and bool((first > 0).all()):
            break
    return sorted(torch.where(first > 0, first, at_most).flatten().tolist())


REACHED: list[tuple[Manifold, tuple[int, ...], torch.dtype]] = [
    *((SpecialOrthogonal(), (count, n, n), torch.float64) for count, n in ((10, 3), (10, 8), (1, 32))),
    (SpecialOrthogonal(retraction=retractions.exp), (5, 3, 3), torch.float32),
    (SpecialOrthogonal(retraction=retractions.qr), (5, 3, 3), torch.float64),
    (Orthogonal(), (5, 4, 4), torch.complex128),
    (SpecialOrthogonal(), (5, 3, 3), torch.complex64),
    (Stiefel(retraction=retractions.polar), (5, 3, 7), torch.float32),
    (Stiefel(retraction=retractions.cayley), (5, 7, 3), torch.float32),
    (Stiefel(retraction=retractions.exp), (5, 3, 7), torch.float32),
    (Stiefel(retraction=retractions.qr), (5, 7, 3), torch.float32),
    (Stiefel(), (5, 7, 3), torch.float64),
    (Stiefel**3, (12, 4), torch.float32),
    (Sphere(), (10, 6), torch.float64),
]


@pytest.mark.parametrize(("manifold", "shape", "dtype"), REACHED, ids=str)
def test_every_point_of_the_component_is_reached_as_soon_as_by_others(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """All goals, at one rate, and in the middle in no more steps than the slower of the Riemannian engine and of an
    exponential whose base stays, but for one in eight: charts bend by that much before the base moves."""
    start, goals = targets(manifold, shape, dtype)
    module = held(start, manifold)
    ours = steps_taken(module, goals, torch.optim.Adam(module.parameters(), lr=0.05), 250, manifold.ndim)
    assert ours[-1] < 250
    module = nn.Module()
    module.w = nn.Parameter(start.clone())
    constrain(module, "w", manifold, Riemannian())
    others = [steps_taken(module, goals, RiemannianAdam(module, lr=0.05), 250, manifold.ndim)]
    if isinstance(manifold, (SpecialOrthogonal, Orthogonal)):
        module = held(start, type(manifold)(retraction=retractions.exp), rebase_every=math.inf)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        others.append(steps_taken(module, goals, optimizer, 250, manifold.ndim))
    assert ours[len(ours) // 2] <= 1.125 * max(each[len(each) // 2] for each in others)


@pytest.mark.parametrize("shape", [(40, 3), (3, 40)], ids=str)
def test_the_leading_subspace_is_found_from_every_start(shape: tuple[int, int]) -> None:
    """At a rate that falls: at one that stays, Adam ends in a cycle about the optimum, as wide as its steps."""
    generator = torch.Generator().manual_seed(0)
    basis = Stiefel().random(40, 40, generator=generator, dtype=torch.float64)
    values = torch.linspace(1, 10, 40, dtype=torch.float64)
    matrix, steps = (basis * values) @ basis.mT, 300
    module = held(Stiefel().random(10, *shape, generator=generator, dtype=torch.float64), Stiefel())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        w = module.w if shape[0] == 40 else module.w.mT
        found = (w * (matrix @ w)).sum((-2, -1))
        (-found.sum()).backward()
        optimizer.step()
        rates.step()
    # to a direction turned into the next one by less than a hundredth of a radian: the gap times its square
    assert bool((values[-3:].sum() - found <= 1e-4 * (values[-3] - values[-4])).all())


@pytest.mark.parametrize("shape", [(60, 4), (4, 60)], ids=str)
def test_what_is_reached_is_not_left_at_a_rate_that_stays(shape: tuple[int, int]) -> None:
    """1,500 steps, in which second moments fall by a factor of 4.5: entries whose own were small while others moved
    would be stepped along too far, and the weight would circle about the optimum. To the rounding of 240 terms."""
    generator = torch.Generator().manual_seed(0)
    basis = Stiefel().random(60, 60, generator=generator, dtype=torch.float64)
    matrix = (basis * torch.linspace(1, 10, 60, dtype=torch.float64)) @ basis.mT
    best = torch.linspace(1, 10, 60, dtype=torch.float64)[-4:].sum()
    module = held(Stiefel().random(10, *shape, generator=generator, dtype=torch.float64), Stiefel())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for step in range(1500):
        optimizer.zero_grad()
        w = module.w if shape[0] == 60 else module.w.mT
        found = (w * (matrix @ w)).sum((-2, -1))
        (-found.sum()).backward()
        optimizer.step()
        assert step < 500 or bool((best - found <= 1e-12 * best).all())


def test_a_fixed_base_does_not_reach_them() -> None:
    start, goals = targets(SpecialOrthogonal(), (20, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal(), rebase_every=math.inf)
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, torch.optim.Adam(module.parameters(), lr=0.05), 300)
    assert torch.equal(module.parametrizations.w[0].base_point, base)
    assert float((module.w - goals).detach().flatten(1).norm(dim=1).max()) > 0.05


def test_a_resumed_run_is_the_run_bit_for_bit() -> None:
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float32)
    module = held(start, SpecialOrthogonal())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    fit(module, goals, optimizer, 10)
    file = io.BytesIO()
    torch.save((module.state_dict(), optimizer.state_dict()), file)
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, optimizer, 40)
    assert not torch.equal(module.parametrizations.w[0].base_point, base)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)
    other = held(start, SpecialOrthogonal())
    other.load_state_dict(state)
    follower = torch.optim.Adam(other.parameters(), lr=0.05)
    follower.load_state_dict(of_optimizer)
    fit(other, goals, follower, 40)
    assert torch.equal(module.w, other.w)


def test_under_an_optimizer_that_is_not_torchs_the_base_stays() -> None:
    class Own(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal())
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, Own(module.parameters(), lr=0.05), 50)
    assert torch.equal(module.parametrizations.w[0].base_point, base)


# One change of chart ----------------------------------------------------------------------------------------------

CHANGED: list[tuple[Manifold, tuple[int, ...]]] = [
    *((Stiefel(retraction=r), (2, *s)) for r in RETRACTIONS for s in ((3, 3), (5, 2), (2, 5))),
    *((kind(retraction=r), (3, 3)) for kind in (Orthogonal, SpecialOrthogonal) for r in RETRACTIONS),
    (Stiefel(metric="canonical"), (5, 3)),
    (Sphere(), (3, 5)),
    (Stiefel**3, (9, 3)),
    (Stiefel * Sphere * Euclidean, (9, 2)),
]


def far(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> tuple[Any, Tensor]:
    """A module whose coordinates are long, with a gradient, and its weight."""
    generator = torch.Generator().manual_seed(1)
    module = held(manifold.random(*shape, generator=generator, dtype=dtype), manifold, **options)
    original = module.parametrizations.w.original
    with torch.no_grad():
        original.copy_(torch.randn(shape, generator=generator, dtype=dtype))
    original.grad = torch.randn(shape, generator=generator, dtype=dtype)
    return module, module.w.detach().clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize(("manifold", "shape"), CHANGED, ids=str)
def test_the_weight_does_not_jump(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """To the rounding of one move and of one polish, on points of norm 2 at most."""
    module, weight = far(manifold, shape, dtype)
    coordinates, base = module.parametrizations.w, module.parametrizations.w[0].base_point.clone()
    torch.optim.SGD(module.parameters(), lr=1e-30).step()
    assert not torch.equal(coordinates[0].base_point, base)
    assert coordinates.original.count_nonzero() == 0
    assert float((module.w.detach() - weight).abs().max()) <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("manifold", "shape"), CHANGED, ids=str)
def test_momentum_is_carried_as_the_formula_says(manifold: Manifold, shape: tuple[int, ...]) -> None:
    """SGD: the buffer M becomes that of `recenter`, no longer than it was, and the next step is the one along it."""
    module, _ = far(manifold, shape, torch.float64)
    coordinates = module.parametrizations.w
    original, base = coordinates.original, coordinates[0].base_point.clone()
    c = engine(manifold).coordinates(base, original.detach())
    m = engine(manifold).coordinates(base, original.grad)
    original.grad.copy_(m)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-30, momentum=0.5)
    optimizer.step()
    point = coordinates[0].base_point.clone()
    parts = []
    for (factor, new), (_, old) in zip(
        engine(manifold).split(engine(manifold).recenter(base, point, c, m)), engine(manifold).split(m), strict=True
    ):
        axes = tuple(range(-factor.ndim, 0))
        now, then = (t.square().sum(axes, keepdim=True).sqrt() if axes else t.abs() for t in (new, old))
        parts.append(new * (then / now).clamp_max(1))
    expected = engine(manifold).join(parts, shape)
    torch.testing.assert_close(optimizer.state[original]["momentum_buffer"], expected, rtol=1e-12, atol=1e-12)
    optimizer.param_groups[0]["lr"] = 0.1
    original.grad.zero_()
    optimizer.step()
    step = engine(manifold).coordinates(point, -0.05 * expected)
    torch.testing.assert_close(module.w.detach(), engine(manifold).move(point, step), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", ["coordinates", "gradient"])
def test_no_base_is_made_of_nan(place: str) -> None:
    """The step that brought it leaves base and weight of others alone, and the next use of the weight says so."""
    module, _ = far(SpecialOrthogonal(), (2, 3, 3), torch.float64)
    coordinates = module.parametrizations.w
    base = coordinates[0].base_point.clone()
    with torch.no_grad():
        (coordinates.original if place == "coordinates" else coordinates.original.grad)[0, 0, 1] = math.nan
    torch.optim.Adam(module.parameters(), lr=0.1).step()
    assert torch.equal(coordinates[0].base_point, base)
    with pytest.raises(ValueError, match=r"w of Module.* has no value"):
        _ = module.w


def test_two_optimizers_of_one_weight_are_both_carried() -> None:
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal())
    original = module.parametrizations.w.original
    pair = [torch.optim.SGD([original], lr=1e-3, momentum=0.9) for _ in range(2)]
    base = module.parametrizations.w[0].base_point.clone()
    for step in range(200):
        fit(module, goals, pair[step % 2], 1)
        if not torch.equal(module.parametrizations.w[0].base_point, base):
            break
        kept = [each.state[original]["momentum_buffer"].clone() for each in pair if each.state]
    assert step > 1
    assert not any(
        torch.equal(each.state[original]["momentum_buffer"], old) for each, old in zip(pair, kept, strict=True)
    )
    point = module.parametrizations.w[0].base_point.clone()
    idle = pair[(step + 1) % 2].state[original]["momentum_buffer"]
    c = _cayley_of(base.mT @ point)
    carried = engine(SpecialOrthogonal()).recenter(base, point, c, kept[(step + 1) % 2])
    lengths = [t.flatten(1).norm(dim=1)[:, None, None] for t in (carried, kept[(step + 1) % 2])]
    torch.testing.assert_close(idle, carried * (lengths[1] / lengths[0]).clamp_max(1), rtol=1e-9, atol=1e-12)


SECONDS: dict[str, tuple[Any, bool]] = {  # whether its second moments fade
    "Adam": (torch.optim.Adam, True),
    "AdamW with amsgrad": (lambda p, lr: torch.optim.AdamW(p, lr, amsgrad=True, weight_decay=0), False),
    "Adamax": (torch.optim.Adamax, True),
    "NAdam": (torch.optim.NAdam, True),
    "RAdam": (torch.optim.RAdam, True),
    "RMSprop, centered": (lambda p, lr: torch.optim.RMSprop(p, lr, centered=True, momentum=0.9), True),
    "Adadelta": (torch.optim.Adadelta, True),
    "Adagrad": (torch.optim.Adagrad, False),
}
SECOND = ("exp_avg_sq", "exp_inf", "max_exp_avg_sq", "square_avg", "sum")
TURNED = [*CHANGED, (Euclidean(ndim=2), (3, 4)), (manifolds.Symmetric(), (4, 4)), (manifolds.Grassmann(), (5, 2))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("manifold", "shape"), TURNED, ids=str)
@pytest.mark.parametrize("name", SECONDS)
def test_second_moments_that_fade_are_at_least_the_median_of_their_point(
    name: str, manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Of real and imaginary parts as of two entries. On flat sets, where nothing turns, all stay to the bit; and a
    second move, without a step between, changes none."""
    make, fades = SECONDS[name]
    module, _ = far(manifold, shape, dtype, rebase_every=math.inf)
    original = module.parametrizations.w.original
    optimizer = make([original], lr=1e-30)
    optimizer.step()
    before = {key: kept.clone() for key, kept in optimizer.state[original].items() if key in SECOND}
    assert before
    for _ in range(2):
        assert rebase(module, optimizer) == [Rebased("w", "carried")]
        for key, old in before.items():
            new = optimizer.state[original][key]
            for (factor, now), (_, then) in zip(engine(manifold).split(new), engine(manifold).split(old), strict=True):
                if not fades or isinstance(factor, Euclidean | manifolds.Symmetric):
                    assert torch.equal(now, then)
                    continue
                now, then = (torch.view_as_real(t) if t.is_complex() else t[..., None] for t in (now, then))
                median = then.flatten(-factor.ndim - 1).quantile(0.5, -1, interpolation="lower")
                assert torch.equal(now, then.maximum(median.reshape(*median.shape, *(1,) * (factor.ndim + 1))))
        with torch.no_grad():
            original.copy_(torch.randn(shape, dtype=dtype) / 8)


@pytest.mark.parametrize("every", [1, 16])
def test_second_moments_do_not_grow_from_move_to_move(every: int) -> None:
    """Rows of gradients that are ten times as large as the others: at most the half that was below is raised, to what
    the other half has, so that the mean stays below twice what it is without any move."""
    means = {}
    for rebased in (every, math.inf):
        generator = torch.Generator().manual_seed(0)
        start = Stiefel().random(20, 4, generator=generator, dtype=torch.float64)
        module = held(start, Stiefel(), rebase_every=rebased)
        original = module.parametrizations.w.original
        optimizer = torch.optim.Adam([original], lr=1e-4)
        scale = torch.ones(20, 1, dtype=torch.float64)
        scale[:2] = 10
        for _ in range(300):
            optimizer.zero_grad()
            (module.w * scale * torch.randn(20, 4, generator=generator, dtype=torch.float64)).sum().backward()
            optimizer.step()
        means[rebased] = float(optimizer.state[original]["exp_avg_sq"].mean())
    assert means[every] < 2 * means[math.inf]


@pytest.mark.parametrize("spike", [1e6, math.inf])
def test_an_outlier_stops_its_own_entry_alone(spike: float) -> None:
    module, _ = far(Stiefel(), (2, 5, 3), torch.float32, rebase_every=math.inf)
    original = module.parametrizations.w.original
    optimizer = torch.optim.Adam([original], lr=1e-30)
    optimizer.step()
    second = optimizer.state[original]["exp_avg_sq"]
    most = second.flatten(1).amax(1)[:, None, None]
    second[0, 0, 0] = spike
    rebase(module, optimizer)
    assert int((second > most).sum()) == 1


def test_under_amsgrad_no_entry_is_stepped_along_by_more_than_any_before() -> None:
    """|M| over the root of what AMSGrad divides by, the largest so far, under changes that turn all entries."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        mean, root, above = torch.randn(3, 6, 3, generator=generator, dtype=torch.float64)
        state = {"exp_avg": mean, "exp_avg_sq": root.pow(4), "max_exp_avg_sq": root.pow(4) * (1 + above.exp())}
        turn = Orthogonal().random(18, 18, generator=generator, dtype=torch.float64)
        pairs = changed(state, lambda m, turn=turn: (turn @ m.flatten()).view(6, 3), Stiefel())
        assert len(pairs) == 1
        longest = [(m.abs() / state["max_exp_avg_sq"].sqrt()).max() for m in pairs[0]]
        assert longest[1] <= longest[0] * (1 + 1e-14)  # one product and one quotient


def _cayley_of(q: Tensor) -> Tensor:
    """The skew C with Cayley(C) = Q: 2 (Q - I) (Q + I)^-1."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    return 2 * torch.linalg.solve(q + eye, q - eye, left=False)


def test_a_skipped_step_moves_no_base_and_scaling_changes_nothing() -> None:
    """Scales are powers of two, so that a run with a GradScaler is the run without, bit for bit."""
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float32)
    plain, scaled = (held(start, SpecialOrthogonal()) for _ in range(2))
    optimizer = torch.optim.Adam(scaled.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(plain, goals, torch.optim.Adam(plain.parameters(), lr=0.05), 40)
    for step in range(41):
        optimizer.zero_grad()
        scaler.scale((scaled.w - goals).abs().square().sum()).backward()
        if step == 20:
            base = scaled.parametrizations.w[0].base_point.clone()
            scaled.parametrizations.w.original.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        if step == 20:
            assert torch.equal(scaled.parametrizations.w[0].base_point, base)
    assert scaled.parametrizations.w.steps == 40
    assert not torch.equal(scaled.parametrizations.w[0].base_point, start)
    assert torch.equal(scaled.w, plain.w)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_forward_pass_goes_on_where_the_base_moves() -> None:
    """One graph for all bases: they are inputs, written in place."""
    torch._dynamo.reset()
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float64)
    plain, compiled = (held(start, SpecialOrthogonal()) for _ in range(2))
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(1)
        return graph

    error = torch.compile(lambda: (compiled.w - goals).square().sum(), backend=backend)
    fit(plain, goals, torch.optim.Adam(plain.parameters(), lr=0.05), 30)
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert not torch.equal(compiled.parametrizations.w[0].base_point, start)
    assert len(seen) == 1
    torch.testing.assert_close(compiled.w, plain.w, rtol=0, atol=1e-9)


def test_an_average_over_changes_of_chart_is_that_of_the_weights() -> None:
    """nearest(A + (W - A) / (n + 1)), step by step, whatever the bases are."""
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal())
    optimizer, average = torch.optim.Adam(module.parameters(), lr=0.02), AveragedModel(module)
    for n in range(30):
        fit(module, goals, optimizer, 1)
        average.update_parameters(module)
        weight = module.w.detach().clone()
        expected = SpecialOrthogonal().nearest(torch.lerp(expected, weight, 1 / (n + 1))) if n else weight
    assert not torch.equal(module.parametrizations.w[0].base_point, start)
    torch.testing.assert_close(average.module.w.detach(), expected, rtol=0, atol=1e-9)


WILD: list[tuple[Manifold, tuple[int, ...]]] = [
    *((Stiefel(retraction=each), shape) for each in RETRACTIONS for shape in ((8, 8), (12, 4))),
    *((manifolds.PositiveDefinite(metric), (6, 6)) for metric in get_args(Name)),
    (manifolds.Grassmann(), (12, 4)),
    (manifolds.PoincareBall(), (6, 4)),
    (manifolds.Hyperboloid(), (6, 4)),
    (manifolds.Simplex(), (6, 4)),
    (manifolds.DoublyStochastic(), (5, 5)),
    (manifolds.FixedRank(2), (6, 5)),
    (manifolds.Correlation(), (5, 5)),
]


@pytest.mark.parametrize("lr", [0.3, 3.0])
@pytest.mark.parametrize(("manifold", "shape"), WILD, ids=str)
def test_a_rate_that_is_far_too_large_is_no_crash(manifold: Manifold, shape: tuple[int, ...], lr: float) -> None:
    """The base moves where it can; where the weight has no value any more, or none in float32, a ValueError says so."""
    net = nn.Module()
    net.weight = nn.Parameter(manifold.random(*shape))
    constrain(net, "weight", manifold)
    optimizer, target = torch.optim.Adam(net.parameters(), lr=lr), manifold.random(*shape)
    try:
        for _ in range(25):
            optimizer.zero_grad()
            (net.weight - target).square().sum().backward()
            optimizer.step()
        weight = net.weight.detach()
    except ValueError as error:
        if "has no value" not in str(error):
            raise
        return
    if isinstance(
        manifold, manifolds.PositiveDefinite | manifolds.Correlation
    ):  # eigenvalues below rounding may be lost
        lost = 16 * torch.finfo(weight.dtype).eps * float(weight.norm())
        weight = weight + lost * torch.eye(len(weight))
        weight = weight / (1 + lost) if isinstance(manifold, manifolds.Correlation) else weight
    assert bool(manifold.contains(weight).all())
