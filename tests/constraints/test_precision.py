"""Lowered float32 products are for the model, never for its geometry."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from torch import nn

from constraints import Riemannian, Trivialization, constrain, optim
from manifolds import PositiveDefinite, SpectralBall, Stiefel, retractions
from manifolds.kernels import precision
from manifolds.kernels.precision import exact_products


@pytest.fixture
def lowered():
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(kept)


def error(weight):
    x = weight.detach().double()
    gram = x.mT @ x if x.shape[0] >= x.shape[1] else x @ x.mT
    return float((gram - torch.eye(len(gram))).abs().max())


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("retraction", [retractions.polar, retractions.cayley, retractions.exp])
@pytest.mark.parametrize("shape", [(256, 512), (256, 256)])
def test_a_trivialized_weight_is_orthonormal_under_any_precision_of_products(retraction, shape):
    torch.manual_seed(0)
    linear = nn.Linear(*shape)
    constrain(linear, "weight", Stiefel(retraction=retraction))
    with torch.no_grad():
        linear.parametrizations.weight.original.normal_(std=0.02)
    assert error(linear.weight) < 2e-5


class Graphs:
    """A backend that runs graphs as they are, and keeps the names of their products and solves."""

    def __init__(self):
        self.products, self.count = set(), 0

    def __call__(self, graph, _):
        self.count += 1
        names = {str(node.target) for node in graph.graph.nodes}
        self.products |= {name for name in names if any(part in name for part in ("mm", "matmul", "linalg", "solve"))}
        return graph.forward


SETS = [Stiefel(), Stiefel() ** 2, Stiefel(retraction=retractions.polar), PositiveDefinite(), SpectralBall()]


@pytest.fixture
def settings():
    """A function that changes what float32 products may be done in, by each of torch's ways."""
    before = torch.get_float32_matmul_precision()

    def change(way):
        backend, _, value = way.rpartition("=")
        if not backend:
            torch.set_float32_matmul_precision(value)
        elif backend == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = value == "True"
        else:
            getattr(torch.backends, backend).matmul.fp32_precision = value

    yield change
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(before)


WAYS = ["highest", "high", "highest", "medium", "highest", "allow_tf32=True", "allow_tf32=False"]
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    WAYS += ["cuda=tf32", "cuda=ieee"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, where any graph ends
@pytest.mark.parametrize("kind", ["weight", "map"])
@pytest.mark.parametrize("manifold", SETS, ids=str)
def test_a_graph_ends_where_products_are_lowered(manifold, kind, settings):
    """A setting of the process cannot be left in a graph: what needs another is computed outside, and torch compiles
    anew where the setting changes."""
    torch._dynamo.reset()
    settings("highest")
    x = manifold.random(8, 8, generator=torch.Generator().manual_seed(0))
    linear = constrain(nn.Linear(8, 8), "weight", manifold, init=x)

    def seen():
        if kind == "weight":
            return 2 * linear.weight
        if isinstance(manifold, SpectralBall):
            return 2 * manifold.compose(**manifold.decompose(linear.weight))
        return 2 * manifold.retract(linear.weight, manifold.project(linear.weight, 0.1 * x))

    compiled = torch.compile(seen, backend=(graphs := Graphs()))
    trained = [p for p in linear.parameters() if p.requires_grad and p is not linear.bias]
    expected = seen()
    slopes = torch.autograd.grad(expected.square().mul(x).sum(), trained)
    for at, way in enumerate(WAYS):
        settings(way)
        graphs.products.clear()
        found = compiled()
        if at == 0:
            assert graphs.products
        else:
            assert way in ("highest", "allow_tf32=False", "cuda=ieee") or not graphs.products, way
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found.square().mul(x).sum(), trained), slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("manifold", [Stiefel(), SpectralBall()], ids=str)
def test_where_products_are_lowered_no_step_compiles_anew(manifold, lowered):
    torch._dynamo.reset()
    sizes = (4, 8, 5, 12, 3, 9, 6, 16, 7, 10, 11, 13)  # more than torch has graphs for in one frame
    model = nn.Sequential(*(nn.Linear(n, m) for n, m in itertools.pairwise(sizes)))
    for linear in model:
        constrain(linear, "weight", manifold, init="haar")
    compiled = torch.compile(model, backend=(graphs := Graphs()))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    counts = []
    for _ in range(6):
        x = torch.randn(2, 4)
        optimizer.zero_grad()
        (y := compiled(x)).square().sum().backward()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)
        optimizer.step()
        counts.append(graphs.count)
    assert counts[1:] == counts[:1] * 5


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_whole_graph_is_refused_where_products_are_lowered(lowered):
    torch._dynamo.reset()
    linear = constrain(nn.Linear(8, 8), "weight", Stiefel)
    compiled = torch.compile(lambda: linear.weight, backend="eager", fullgraph=True)
    has_reason = "reason" in inspect.signature(torch.compiler.disable).parameters  # from torch 2.7 on
    with pytest.raises(torch._dynamo.exc.Unsupported, match="matmul_precision\\('highest'\\)" if has_reason else None):
        compiled()
    torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(compiled(), linear.weight)


class Nearest(nn.Module):
    def forward(self, x):
        return Stiefel().nearest(x) @ x


def test_export_is_no_graph_of_the_compiler(lowered):
    """torch says `is_compiling` of it, and of all threads while one compiles."""
    x = torch.randn(4, 4)
    exported = torch.export.export(Nearest(), (x,), strict=False).module()
    torch.testing.assert_close(exported(x), Nearest()(x), rtol=1e-4, atol=1e-4)


def test_a_compiler_in_another_thread_changes_nothing(monkeypatch, lowered):
    linear = constrain(nn.Linear(64, 64), "weight", Stiefel, Riemannian())
    optimizer = optim.RiemannianAdam(linear, lr=0.1)
    other = constrain(nn.Linear(64, 64), "weight", Stiefel)
    adam = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=0.1)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    for _ in range(2):
        (linear.weight.square() + other.weight.sin() + Stiefel().nearest(linear.weight)).sum().backward()
        optimizer.step()
        adam.step()
    assert error(linear.weight) < 2e-5
    assert error(other.weight) < 2e-5


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 and later")
def test_a_setting_of_all_backends_can_be_taken_back():
    kept = torch.backends.fp32_precision
    x = torch.eye(2)
    try:
        for allowed in ("tf32", "ieee", "tf32", kept):
            torch.backends.fp32_precision = allowed
            if allowed != "ieee":
                torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
            Stiefel().nearest(x)
            assert torch.backends.cuda.matmul.fp32_precision == allowed
            assert torch.backends.mkldnn.matmul.fp32_precision == allowed
    finally:
        torch.backends.fp32_precision = kept


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 and later")
@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_a_setting_of_one_backend_is_left_and_put_back(backend, settings):
    settings("highest")
    assert not precision.is_lowered()
    of_one = getattr(torch.backends, backend).matmul
    for way in ("tf32", "ieee", "tf32"):
        settings(f"{backend}={way}")
        assert precision.is_lowered() == (way == "tf32")
        with exact_products("cpu"):
            assert of_one.fp32_precision == "ieee"
        Stiefel().nearest(torch.eye(2))
        assert of_one.fp32_precision == way


def test_the_setting_is_of_all_threads_and_the_last_one_out_puts_it_back(lowered):
    def allowed():
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            return torch.backends.cuda.matmul.fp32_precision != "ieee"
        return torch.get_float32_matmul_precision() != "highest"

    assert allowed()
    with exact_products("cpu"):
        assert not allowed()
        second = exact_products("cpu")
        second.__enter__()
    assert not allowed()
    with exact_products("cpu"):
        pass
    assert not allowed()
    assert not torch.backends.cuda.matmul.allow_tf32  # no contradiction to torch
    second.__exit__(None, None, None)
    assert allowed()
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(KeyError), exact_products("cpu"):
        raise KeyError
    assert allowed()


def test_a_setting_that_is_made_inside_stays(lowered, settings):
    with torch.autocast("cpu", torch.bfloat16), exact_products("cpu"):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "highest"
        settings("high")
    assert torch.get_float32_matmul_precision() == "high"
    if hasattr(torch.backends.mkldnn, "matmul"):
        settings("highest")
        settings("mkldnn=tf32")
        with exact_products("cpu"):
            settings("mkldnn=bf16")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_a_child_of_a_fork_begins_with_nobody_inside(lowered):
    with exact_products("cpu"):
        assert precision._full.inside == 1
        precision._full.after_fork()
        assert precision._full.inside == 0
        assert torch.get_float32_matmul_precision() == "medium"
    assert precision._full.inside == 0
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel(retraction=retractions.polar), PositiveDefinite()], ids=str)
def test_what_is_compiled_leaves_autocast_too(manifold, backend):
    """The weight in the graph, a map that the graph calls, and their derivatives."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    linear = nn.Linear(32, 32)
    constrain(linear, "weight", manifold, init="haar")
    original = linear.parametrizations.weight.original
    with torch.no_grad():
        original.add_(0.03 * torch.randn(32, 32))
    c = torch.randn(32, 32)

    def both():
        weight = linear.weight
        return weight, manifold.retract(weight, manifold.project(weight, 0.1 * c))

    def slope(weight, moved):
        return torch.autograd.grad((c * (weight + moved)).sum(), original)[0]

    expected = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.compile(both, fullgraph=True, backend=backend)()
    for one, other in zip(found, expected, strict=True):
        assert bool(manifold.contains(one.detach()))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    exact = slope(*expected)
    # aot_eager, as inductor, takes derivatives under the autocast that is around the graph, as those of free weights
    assert (slope(*found) - exact).norm() <= (1e-4 if backend == "eager" else 16 * 2.0**-8) * exact.norm()


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()])
def test_a_weight_is_admitted_under_any_precision_of_products(method):
    torch.manual_seed(0)
    linear = nn.Linear(256, 256)
    constrain(linear, "weight", Stiefel, method)
    linear.load_state_dict(linear.state_dict())
    assert error(linear.weight) < 2e-5
