"""What torch's modules pack: each claim against the module's own output, each error with code that works."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constraints import BlockSpec, Packing, Riemannian, constrain, register_packing, report
from constraints.packing import _rules, packing_of
from manifolds import Euclidean, Orthogonal, Scaled, Sphere, Stiefel

LAYERED = [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)]
CELLS = [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)]
RECURRENT: list[tuple[Any, int, dict[str, Any]]] = [
    *((kind, gates, {"bias": bias}) for kind, gates in LAYERED + CELLS for bias in (True, False)),
    *((kind, gates, {"num_layers": 2}) for kind, gates in LAYERED),
    *((kind, gates, {"bidirectional": True}) for kind, gates in LAYERED),
]


def matrices(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.dim() > 1]


@pytest.mark.parametrize(("kind", "gates", "options"), RECURRENT)
def test_recurrent_weights(kind: Any, gates: int, options: dict[str, Any]) -> None:
    """Every weight of every layer and direction packs the gates; a plain manifold is right where there is one."""
    for name in matrices(kind(5, 4, **options)):
        module = kind(5, 4, **options)
        if gates == 1:
            constrain(module, name, Stiefel)
        else:
            with pytest.raises(ValueError, match=rf"packs {gates} gate matrices"):
                constrain(module, name, Stiefel)
            constrain(module, name, Stiefel**gates)
        (row,) = report(module)
        assert len(row.residuals) == gates
        assert row.ok
        with pytest.raises(ValueError, match=rf"would cut it into {gates + 1} blocks"):
            constrain(kind(5, 4, **options), name, Stiefel ** (gates + 1))


def test_projections_of_an_lstm() -> None:
    lstm = nn.LSTM(5, 6, num_layers=2, proj_size=3)
    constrain(lstm, "weight_hh*", Stiefel**4)
    constrain(lstm, "weight_hr*", Stiefel)
    assert [len(row.residuals) for row in report(lstm)] == [4, 4, 1, 1]
    assert all(row.ok for row in report(lstm))
    assert [gate.shape for gate in (Stiefel**4).unpack(lstm.weight_hh_l0)] == [(6, 3)] * 4


def test_attention() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match=r"3 projection matrices \(q, k, v\)") as caught:
        constrain(attention, "in_proj_weight", Orthogonal)
    assert all(word in str(caught.value) for word in ("Orthogonal**3", "rows=1", "head=6"))
    with pytest.raises(ValueError, match="would cut it into 2 blocks"):
        constrain(attention, "in_proj_weight", Stiefel**2)
    constrain(attention, "in_proj_weight", Stiefel * Euclidean * Stiefel)


def test_attention_with_separate_projections() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        constrain(attention, name, Stiefel)
    with pytest.raises(ValueError, match=r"in_proj_weight of MultiheadAttention.* is None"):
        constrain(attention, "in_proj_weight", Stiefel**3)


def test_attention_head_by_head() -> None:
    """The pattern of the error: each block maps the input to one head of q, k or v."""
    attention = nn.MultiheadAttention(8, 2)
    layout = readings(attention, "in_proj_weight")[-1]
    constrain(attention, "in_proj_weight", Stiefel, layout=layout)
    blocks = iter(layout.unpack(attention.in_proj_weight.detach()))
    for projection in attention.in_proj_weight.detach().chunk(3):
        for head in projection.chunk(2):
            assert torch.equal(next(blocks), head)
            torch.testing.assert_close(head @ head.T, torch.eye(4), rtol=0, atol=1e-5)


def test_heads_of_separate_projections() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    constrain(attention, "k_proj_weight", Stiefel, layout=readings(attention, "k_proj_weight")[-1])
    for head in attention.k_proj_weight.detach().chunk(2):
        torch.testing.assert_close(head @ head.T, torch.eye(4), rtol=0, atol=1e-5)
    assert not torch.allclose(attention.k_proj_weight.T @ attention.k_proj_weight, torch.eye(6), atol=0.1)


def test_each_head_of_a_third_party() -> None:
    """Grouped queries: 4 heads of q, 2 of k, 2 of v, each of 3 rows."""
    packing = Packing.stack("q", "k", "v", sizes=(12, 6, 6), heads=(4, 2, 2))
    blocks = packing.readings[-1][1].unpack(torch.arange(24.0).unsqueeze(1))
    assert [block.flatten().tolist() for block in blocks] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)]
    equal = Packing.stack("q", "k", "v", heads=2).readings[-1][1]
    assert [len(block) for block in equal.unpack(torch.ones(24, 5))] == [4] * 6


@pytest.mark.parametrize(
    ("sizes", "heads", "words"),
    [
        ((12, 6), None, r"has 3 sizes; got \(12, 6\)"),
        (None, (4, 2), r"has 3 heads; got \(4, 2\)"),
        ((12, 6, 6), 2, "heads of attention have one size"),
        ((12, 6, 6), (4, 4, 2), "heads of attention have one size"),
        (None, (4, 2, 2), "heads of attention have one size"),
    ],
)
def test_a_stack_that_contradicts_itself(sizes: Any, heads: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Packing.stack("q", "k", "v", sizes=sizes, heads=heads)


def readings(module: nn.Module, attribute: str) -> list[Any]:
    packing = packing_of(module, attribute)
    assert packing is not None
    return [layout for _, layout in packing.readings]


def apply_convolution(module: Any, blocks: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """The convolution, from the matrices (output x input and kernel) of its groups and the patches of its input."""
    assert module.kernel_size == (3, 3)
    parts = []
    for block, part in zip(blocks, x.chunk(module.groups, 1), strict=True):
        if module.transposed:
            o = block.shape[0]
            kernel = block.reshape(o, part.shape[1], 3, 3)
            part = functional.pad(part, (2, 2, 2, 2))
            patches = functional.unfold(part, 3)
            parts.append((kernel.flip(-1, -2).reshape(o, -1) @ patches).unflatten(-1, (x.shape[2] + 2, -1)))
        else:
            parts.append((block @ functional.unfold(part, 3)).unflatten(-1, (x.shape[2] - 2, -1)))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_matrix_of_a_convolution_is_what_multiplies_patches(kind: Any, groups: int) -> None:
    conv = kind(4, 6, 3, groups=groups, bias=False)
    layout = readings(conv, "weight")[0]
    x = torch.randn(2, 4, 5, 5)
    blocks = layout.unpack(conv.weight, 4)
    assert [block.shape for block in blocks] == [(6 // groups, 4 // groups * 9)] * groups
    torch.testing.assert_close(apply_convolution(conv, blocks, x), conv(x), rtol=1e-4, atol=1e-5)


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_needs_a_layout_and_the_error_has_those_that_work(kind: Any, groups: int) -> None:
    conv = kind(4, 6, 2, groups=groups)
    for manifold in (Stiefel, Orthogonal, Sphere, Stiefel**2):
        with pytest.raises(ValueError, match=r"weight of Conv.*layout=BlockSpec") as caught:
            constrain(conv, "weight", manifold)
        if manifold in (Stiefel, Sphere):
            codes = re.findall(r"pass layout=(BlockSpec\.pattern\('[^']*'[^)]*\))", str(caught.value), re.IGNORECASE)
            assert codes
            for code in codes:
                layout = eval(code, {"BlockSpec": BlockSpec})
                other = constrain(kind(4, 6, 2, groups=groups), "weight", manifold, layout=layout)
                assert report(other)[0].ok


def test_kernel_by_kernel() -> None:
    conv = constrain(nn.Conv2d(2, 3, 3), "weight", Stiefel, layout=BlockSpec.pattern("o i h w -> (o i) h w"))
    gram = conv.weight.mT @ conv.weight
    torch.testing.assert_close(gram, torch.eye(3).expand(3, 2, 3, 3), rtol=0, atol=1e-5)


def test_filters_as_unit_vectors() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    constrain(conv, "weight", Sphere, layout=readings(conv, "weight")[-2])
    torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1), torch.ones(6))
    up = nn.ConvTranspose2d(4, 6, 3)
    constrain(up, "weight", Sphere, layout=readings(up, "weight")[-2])
    torch.testing.assert_close(up.weight.transpose(0, 1).flatten(1).norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_kernels_as_unit_vectors(kind: Any) -> None:
    conv = kind(4, 6, 3, groups=2)
    constrain(conv, "weight", Sphere, layout=readings(conv, "weight")[-1])
    torch.testing.assert_close(conv.weight.flatten(2).norm(dim=2), torch.ones(conv.weight.shape[:2]))


def test_bilinear() -> None:
    bilinear = nn.Bilinear(4, 3, 5)
    with pytest.raises(ValueError, match=r"weight of Bilinear.*5 bilinear forms.*layout="):
        constrain(bilinear, "weight", Stiefel)
    constrain(bilinear, "weight", Stiefel, layout=readings(bilinear, "weight")[0])
    torch.testing.assert_close(bilinear.weight.mT @ bilinear.weight, torch.eye(3).expand(5, 3, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "name", "manifold", "problem"),
    [
        # points of as many axes as the tensor: it would be one point
        (
            lambda: nn.GRU(3, 4),
            "weight_hh_l0",
            Stiefel,
            r"Stiefel would constrain the \(12, 4\) stack and not each gate",
        ),
        # of fewer axes: a batch of points of which nothing is said
        (
            lambda: nn.Conv2d(4, 6, 3),
            "weight",
            Stiefel,
            r"Stiefel alone does not say what of the \(6, 4, 3, 3\) tensor",
        ),
        (lambda: nn.Bilinear(4, 3, 5), "weight", Stiefel, r"Stiefel alone does not say what of the \(5, 4, 3\) tensor"),
        # a product: another number of blocks
        (lambda: nn.GRU(3, 4), "weight_hh_l0", Stiefel**2, r"Stiefel\*\*2 would cut it into 2 blocks"),
        (lambda: nn.Conv2d(4, 6, 3), "weight", Stiefel**2, r"Stiefel\*\*2 would cut it into 2 blocks"),
    ],
)
def test_the_problem_that_is_named_is_the_one_at_hand(make: Any, name: str, manifold: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        constrain(make(), name, manifold)


def test_rows_of_an_embedding() -> None:
    embedding = constrain(nn.Embedding(7, 4), "weight", Sphere, Riemannian())
    torch.testing.assert_close(embedding.weight.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_is_one_matrix(kind: Any) -> None:
    embedding = constrain(kind(7, 4), "weight", Stiefel)
    torch.testing.assert_close(embedding.weight.T @ embedding.weight, torch.eye(4), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"packs one table \(rows\); Stiefel\*\*2 would cut it into 2 blocks"):
        constrain(kind(8, 4), "weight", Stiefel**2)
    constrain(kind(8, 4), "weight", Stiefel, layout=BlockSpec(rows=2))


def test_the_padding_of_an_embedding_may_stay_free() -> None:
    """A row of zeros is on no sphere; the others are held without it."""
    with pytest.raises(ValueError, match="zero"):
        constrain(nn.Embedding(7, 4, padding_idx=0), "weight", Sphere)
    embedding = nn.Embedding(7, 4, padding_idx=0)
    constrain(embedding, "weight", Euclidean * Sphere, layout=BlockSpec(rows=(1, 6), axis=-2))
    torch.testing.assert_close(embedding.weight.norm(dim=1), torch.tensor([0.0] + [1.0] * 6))


MODULES: list[Any] = [
    *(lambda kind=kind: kind(3, 6, num_layers=2, bidirectional=True) for kind in (nn.RNN, nn.GRU, nn.LSTM)),
    lambda: nn.LSTM(3, 6, num_layers=2, bidirectional=True, proj_size=2),
    *(lambda kind=kind: kind(3, 6) for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)),
    lambda: nn.MultiheadAttention(6, 2),
    lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5),
    *(lambda kind=kind, g=g: kind(4, 6, 3, groups=g) for kind in CONVOLUTIONS for g in (1, 2)),
    lambda: nn.Bilinear(4, 3, 5),
    lambda: nn.Embedding(7, 4),
]


@pytest.mark.parametrize("number", range(len(MODULES)))
@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel(metric="canonical"), Stiefel**5, Stiefel * Euclidean])
def test_the_ways_out_of_an_error_work_when_they_are_pasted(number: int, manifold: Any) -> None:
    """For every matrix of every module: what the message shows, run as it is written."""
    for name in matrices(MODULES[number]()):
        try:
            constrain(MODULES[number](), name, manifold)
        except ValueError as error:
            message = str(error)
        else:
            continue
        if " packs " not in message:  # out_proj of MultiheadAttention: a Linear, of which nothing is known
            assert name == "out_proj.weight"
            continue
        written = re.findall(r"[Ww]rite (.*?) to constrain", message)
        passed = re.findall(r"[Pp]ass (layout=.*?) to constrain", message)
        calls = [f"constrain(module, name, {code})" for code in written]
        calls += [f"constrain(module, name, manifold, {code})" for code in passed]
        assert calls
        for call in calls:
            module = MODULES[number]()
            eval(call, {**globals(), "module": module, "name": name, "manifold": manifold})
            (row,) = report(module)
            assert row.ok
            assert row.name == name


@pytest.mark.parametrize(
    ("name", "manifold", "layout", "count"),
    [
        ("weight_hh_l0", Stiefel, BlockSpec(rows=1), 1),
        ("weight_hh_l0", Stiefel, BlockSpec(rows=6), 6),
        ("weight_hh_l0", Stiefel**6, BlockSpec(rows=6), 6),
        ("weight_hh_l0", Sphere, None, 1),
        ("weight_hh_l0", Euclidean, None, 1),
        ("bias_hh_l0", Sphere, None, 1),
    ],
)
def test_who_says_how_is_believed(name: str, manifold: Any, layout: Any, count: int) -> None:
    """An explicit layout overrides what is known; vectors and numbers are not packed."""
    (row,) = report(constrain(nn.GRU(3, 4), name, manifold, layout=layout))
    assert len(row.residuals) == count


class Fused(nn.Module):
    """A third party's attention: q, k and v of unequal sizes in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(8, 8))


class FusedMore(Fused):
    """A subclass, which packs the same."""


@pytest.fixture
def registered() -> Any:
    rule = lambda module, attribute: Packing.stack("q", "k", "v", sizes=(4, 2, 2), noun="projection")  # noqa: E731
    register_packing(Fused, rule)
    yield
    del _rules[Fused]


@pytest.mark.parametrize("kind", [Fused, FusedMore])
def test_third_parties_register_with_one_call(kind: Any, registered: Any) -> None:
    module = kind()
    with pytest.raises(ValueError, match=rf"qkv of {kind.__name__}.*3 projection matrices \(q, k, v\)") as caught:
        constrain(module, "qkv", Stiefel)
    assert "BlockSpec(rows=(4, 2, 2), axis=0)" in str(caught.value)
    constrain(module, "qkv", Stiefel, layout=BlockSpec(rows=(4, 2, 2)))
    for block in module.qkv.detach().split((4, 2, 2)):
        assert Stiefel().contains(block)


@pytest.mark.parametrize("kind", [Fused, nn.Linear])
def test_unknown_modules_take_any_manifold(kind: Any) -> None:
    module = kind(4, 4) if kind is nn.Linear else kind()
    name = "weight" if kind is nn.Linear else "qkv"
    constrain(module, name, Stiefel**2)
    assert (Stiefel**2).contains(getattr(module, name).detach()).all()


def test_a_gain_for_each_block_of_a_product_is_one_for_each_gate() -> None:
    """Another number of blocks is told, with the composition that follows the gates; it does, to the letter."""
    gru = constrain(nn.GRU(8, 8), "weight_hh_l0", Scaled(Stiefel**3), init="haar")
    for gate in gru.weight_hh_l0.detach().chunk(3):
        gram = gate.mT @ gate
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(8), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"Write Scaled\(Stiefel\)\*\*3 to constrain each gate"):
        constrain(nn.GRU(8, 8), "weight_hh_l0", Scaled(Stiefel**4), init="haar")
    constrain(nn.GRU(8, 8), "weight_hh_l0", Scaled(Stiefel) ** 3, init="haar")
