"""What an error tells a reader to write works as it is written."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

from constraints import (
    AveragedModel,
    BlockSpec,
    Packing,
    Riemannian,
    Trivialization,
    constrain,
    register_packing,
    report,
    unconstrain,
)
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import (
    Euclidean,
    Hyperboloid,
    LowRank,
    Orthogonal,
    ProductManifold,
    Simplex,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

# Ways out that are code ---------------------------------------------------------------------------------------------

PROJECTED = {
    "a class": (Stiefel, (6, 4)),
    "an option": (Stiefel(metric="canonical"), (6, 4)),
    "rotations": (SpecialOrthogonal, (4, 4)),
    "a power": (Stiefel**3, (12, 4)),
    "a product": (Stiefel * Sphere, (12, 4)),
    "a layout": (ProductManifold((Stiefel, Sphere), BlockSpec(rows=(8, 4))), (12, 4)),
    "one factor": (Stiefel**1, (6, 4)),
}
NAMES = {each.__name__: each for each in (Stiefel, SpecialOrthogonal, Sphere, ProductManifold, BlockSpec)}
PROJECTION = re.compile(r"(?:init=|Assign |\] = |copy_\(|copy )(.*?)\.nearest\(")


def put_off(place: str, layer: nn.Module, manifold: Any, value: torch.Tensor) -> None:
    """Give a value that is not on the manifold, in one of the places where it is refused."""
    if place == "init":
        constrain(layer, "weight", manifold, init=value)
    elif place == "assignment":
        layer.weight = value
    elif place == "checkpoint":
        layer.load_state_dict({"weight": value}, strict=False)
    elif place == "in place":
        optimizer = RiemannianSGD(layer, lr=0.1)
        with torch.no_grad():
            layer.weight.copy_(value)
        optimizer.step()
    else:
        RiemannianSGD([{"params": [nn.Parameter(value)], "manifold": manifold}], lr=0.1)


@pytest.mark.parametrize("case", PROJECTED)
@pytest.mark.parametrize("place", ["init", "assignment", "checkpoint", "in place", "group"])
def test_the_nearest_point_is_written_as_python(place: str, case: str) -> None:
    manifold, shape = PROJECTED[case]
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(shape[1], shape[0])
    method = Trivialization() if place in ("assignment", "checkpoint") else Riemannian()
    if place != "init":
        constrain(layer, "weight", manifold, method)
    with pytest.raises(ValueError, match="nearest") as caught:
        put_off(place, layer, manifold, value)
    (code,) = PROJECTION.findall(str(caught.value))
    written = eval(code, NAMES)
    assert written == (manifold() if isinstance(manifold, type) else manifold)
    assert bool(written.contains(written.nearest(value)).all())


def test_a_checkpoint_off_the_manifold_is_projected_as_the_error_says() -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", Stiefel**3)
    state = nn.GRU(3, 4).state_dict()
    with pytest.raises(ValueError, match="Load it before constrain") as caught:
        gru.load_state_dict(state)
    (code,) = re.findall(r"project it: (.*\))\.", str(caught.value))
    exec(code, {"state": state, "Stiefel": Stiefel})
    gru.load_state_dict(state)


POSES: list[
    tuple[tuple[int, ...], Any, BlockSpec | None, int]
] = [  # shape, product, layout, how many layouts are named
    ((4, 6, 3), Stiefel**2, None, 2),
    ((5, 6, 3), Stiefel**2, None, 1),
    ((6, 4, 3), Stiefel**3, None, 1),
    ((2, 3, 3), SpecialOrthogonal**2, None, 1),
    ((4, 6), Sphere**2, None, 2),
    ((10, 3, 4), SpecialOrthogonal * Euclidean, BlockSpec(rows=(3, 1), axis=1), 1),
    ((10, 3, 4), SpecialOrthogonal * Euclidean, None, 0),
    ((5, 7), Sphere**2, None, 0),
]


@pytest.mark.parametrize(("shape", "product", "layout", "count"), POSES)
def test_each_layout_that_is_named_for_a_batch_cuts_it(
    shape: tuple[int, ...], product: Any, layout: BlockSpec | None, count: int
) -> None:
    """A layout that does not fit the tensor is not named; where none fits, the way out is to give the sizes."""
    layer = nn.ParameterDict({"weight": torch.randn(shape, generator=torch.Generator().manual_seed(0))})
    with pytest.raises(ValueError, match="counts its axis from the first one") as caught:
        constrain(layer, "weight", product, layout=layout)
    ways = re.findall(r"layout=(BlockSpec\(.*?, axis=-\d\)) to cut", str(caught.value))
    assert len(ways) == count
    assert ("sizes of the blocks" in str(caught.value)) == (not ways)
    for way in ways:
        constrain(layer, "weight", product, Riemannian(), layout=eval(way, NAMES))
        assert report(layer)[0].ok
        unconstrain(layer, "weight")


def test_a_pose_is_a_rotation_beside_a_translation() -> None:
    """The columns of R stay orthonormal with determinant 1, and t, the fourth column, is not touched."""
    poses = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = nn.ParameterDict({"pose": poses.clone()})
    constrain(layer, "pose", SpecialOrthogonal * Euclidean, layout=BlockSpec(rows=(3, 1), axis=-1))
    assert bool(SpecialOrthogonal().contains(layer["pose"][..., :3]).all())
    assert torch.equal(layer["pose"][..., 3], poses[..., 3])


# A reflection is not turned silently --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
def test_a_present_reflection_is_not_turned_into_a_rotation(method: Method) -> None:
    """The rotations nearest to an orthogonal matrix of determinant -1 are many, at a distance of 2."""
    reflection = torch.diag(torch.tensor([1.0, 1, 1, -1]))
    layer = nn.Linear(4, 4)
    for rounding in (0, 1e-4):
        with torch.no_grad():
            layer.weight.copy_(reflection + rounding)
        with pytest.raises(
            ValueError, match=r"1 of 1 orthogonal matrices with determinant -1.*Orthogonal ad"
        ) as caught:
            constrain(layer, "weight", SpecialOrthogonal, method)
        assert torch.equal(layer.weight, reflection + rounding)
    (code,) = re.findall(r"pass init=(\S+)\.$", str(caught.value))
    constrain(layer, "weight", SpecialOrthogonal, method, init=eval(code))
    assert report(layer)[0].determinants == ("+",)


def test_only_the_rotations_of_a_product_are_asked_for_their_sign() -> None:
    layer = nn.Linear(4, 8, bias=False)
    rotation, reflection = torch.eye(4), torch.diag(torch.tensor([1.0, 1, 1, -1]))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([reflection, rotation]))
    with pytest.raises(ValueError, match=r"1 of 1 orthogonal matrices with determinant -1"):
        constrain(layer, "weight", SpecialOrthogonal * Stiefel)
    constrain(layer, "weight", Stiefel * SpecialOrthogonal)


def test_an_ordinary_weight_of_negative_determinant_takes_the_nearest_rotation() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([2.0, 2, 2, -1])))
    constrain(layer, "weight", SpecialOrthogonal)
    assert torch.equal(layer.weight, torch.eye(4))
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.diag(torch.tensor([1.0, 1, 1, -1])))
    with pytest.raises(ValueError, match="several nearest matrices of determinant 1"):
        constrain(layer, "weight", SpecialOrthogonal)


# Names --------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose table is the last layer too, under names that no glob has in common."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 6)
        self.lm_head = nn.Linear(6, 10, bias=False)
        self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("name", ["wte.weight", "lm_head.weight", "*.weight"])
def test_tied_tensors_are_constrained_and_let_go_by_any_of_their_names(name: str) -> None:
    net = constrain(Tied(), name, Sphere)
    assert [row.name for row in report(net)] == ["wte.weight"]
    assert torch.equal(net.wte.weight, net.lm_head.weight)
    unconstrain(net, name)
    assert net.wte.weight is net.lm_head.weight


def test_a_list_of_names_is_all_or_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"no parameter that matches '2\.weight'"):
        constrain(net, ["0.weight", "2.weight"], Stiefel)
    assert report(net) == []
    with pytest.raises(ValueError, match=r"shape \(3,\)") as caught:
        constrain(net, ["0.weight", "0.bias"], Stiefel)
    assert "glob" not in str(caught.value)
    assert report(net) == []
    constrain(net, ["0.weight", "1.*ght"], Stiefel)
    assert [row.name for row in report(net)] == ["0.weight", "1.weight"]


@pytest.mark.parametrize("name", [3, None, [], ["weight", 3]])
def test_what_is_no_name_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError, match=r"a name is 'layer\.weight', a glob, or a list"):
        constrain(nn.Linear(3, 3), name, Stiefel)


def test_a_tensor_is_no_module() -> None:
    tensor: Any = torch.eye(3)
    with pytest.raises(TypeError, match=r"constrain\(model, 'layer\.weight', Stiefel\); got a Tensor"):
        constrain(tensor, "weight", Stiefel)


# The order of things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RiemannianSGD, RiemannianAdam])
def test_an_optimizer_that_was_made_before_constrain_is_to_be_made_again(kind: Any) -> None:
    layer = nn.Linear(3, 3)
    optimizer = kind(layer, lr=0.1)
    constrain(layer, "weight", Stiefel, Riemannian())
    layer(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=rf"made before it was\. Make it again.*{kind.__name__}\(model"):
        optimizer.step()
    kind(layer, lr=0.1).step()


def test_a_parameter_for_a_trivialized_weight_is_refused_with_the_way_out() -> None:
    layer = constrain(nn.Linear(3, 3), "weight", Stiefel)
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        value = nn.Parameter(Stiefel().random(3, 3))
        with pytest.raises(ValueError, match=r"weight of Linear.*module\.weight = value\.detach\(\)"):
            each.weight = value
        each.weight = value.detach()
        torch.testing.assert_close(each.weight, value)
        each.extra = nn.Parameter(torch.zeros(2))
        unconstrain(each, "weight")
        each.weight = value
        assert each.weight is value


def test_a_riemannian_parameter_that_was_replaced_is_not_trained_without_a_word() -> None:
    layer = constrain(nn.Linear(3, 3), "weight", Stiefel, Riemannian())
    optimizer = RiemannianSGD(layer, lr=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    layer.weight = nn.Parameter(Stiefel().random(3, 3))
    layer(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"another Parameter now than the one that this RiemannianSGD holds"):
        optimizer.step()
    RiemannianSGD(layer, lr=0.1).step()
    layer.weight = nn.Parameter(torch.randn(3, 3))
    with pytest.raises(ValueError, match="is not on Stiefel"):
        RiemannianSGD(layer, lr=0.1)


@pytest.mark.parametrize("case", PROJECTED)
@pytest.mark.parametrize("kind", [RiemannianSGD, RiemannianAdam])
def test_a_new_fold_is_constrained_again_as_the_error_says(kind: Any, case: str) -> None:
    """reset_parameters writes past the constraint; what the optimizer names brings the weight back, to the letter."""
    manifold, shape = PROJECTED[case]
    layer = constrain(nn.Linear(shape[1], shape[0]), "weight", manifold, Riemannian())
    weight = layer.weight
    for way in ("constrain", "nearest"):
        layer.reset_parameters()
        with pytest.raises(ValueError, match=r"is not on .*constrain\(module, name, ") as caught:
            kind(layer, lr=0.1)
        code = str(caught.value)
        if way == "constrain":
            (written,) = re.findall(r"Use (constrain\(module, name, .*, Riemannian\(\)\)), which", code)
            names = {"constrain": constrain, "module": layer, "name": "weight", "Riemannian": Riemannian}
            eval(written, NAMES | names)
        else:
            (written,) = re.findall(r"under torch\.no_grad\(\), (weight\.copy_\(.*\.nearest\(weight\)\))\.", code)
            with torch.no_grad():
                eval(written, NAMES | {"weight": weight})
        assert layer.weight is weight
        assert report(layer)[0].ok
        layer(torch.ones(2, shape[1])).sum().backward()
        kind(layer, lr=0.1).step()


def test_a_held_weight_is_not_constrained_in_another_way() -> None:
    for manifold, method in ((Stiefel("canonical"), Riemannian()), (Stiefel, Trivialization())):
        layer = constrain(nn.Linear(4, 4), "weight", Stiefel, Riemannian())
        before = layer.weight.detach().clone()
        with pytest.raises(ValueError, match="constrained already, to Stiefel by Riemannian"):
            constrain(layer, "weight", manifold, method, init="haar")
        assert torch.equal(layer.weight, before)


# Layouts and gradients ----------------------------------------------------------------------------------------------


def test_errors_about_layouts_say_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"3 axes, and the tensor has 2\. Write a layout of axes that it has"):
        constrain(nn.Linear(3, 4), "weight", Stiefel, layout=BlockSpec.pattern("a b c -> a b c"))
    with pytest.raises(ValueError, match=r"Give all but one of them, as g=\.\.\., after the pattern\.$"):
        constrain(nn.Linear(3, 4), "weight", Stiefel, layout=BlockSpec.pattern("(g o) i -> g o i"))
    with pytest.raises(ValueError, match=r"square blocks\.$"):
        constrain(nn.GRU(5, 4), "weight_ih_l0", Orthogonal**3)
    with pytest.raises(ValueError, match=r"such as Orthogonal\*\*4\.$"):
        constrain(nn.Linear(4, 16), "weight", Orthogonal)


def test_a_sparse_gradient_names_the_option_that_makes_it() -> None:
    table = constrain(nn.Embedding(5, 3, sparse=True), "weight", Stiefel, Riemannian())
    optimizer = RiemannianSGD(table, lr=0.1)
    table(torch.tensor([1, 2])).sum().backward()
    said = r"sparse layout, and its rows are no points of Stiefel\. Nothing was changed\. Make its .* sparse=False\.$"
    with pytest.raises(ValueError, match=said):
        optimizer.step()


# On top of a trivialization -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["weight_norm", "orthogonal"])
def test_what_does_not_compose_is_refused_and_changes_nothing(other: str) -> None:
    layer = constrain(nn.Linear(4, 4), "weight", Stiefel)
    before, keys = layer.weight.detach().clone(), list(layer.state_dict())
    with pytest.raises(ValueError, match=r"weight of Linear.*does not\. Call unconstrain first"):
        getattr(nn.utils.parametrizations, other)(layer)
    assert torch.equal(layer.weight, before)
    assert list(layer.state_dict()) == keys
    unconstrain(layer, "weight")
    getattr(nn.utils.parametrizations, other)(layer)(torch.eye(4))


@pytest.mark.parametrize("manifold", [Stiefel, LowRank(2)], ids=str)
def test_nothing_is_no_value_of_a_computed_weight(manifold: Any) -> None:
    layer: Any = constrain(nn.Linear(4, 4), "weight", manifold)
    with pytest.raises(TypeError, match=r"got a numpy array of shape \(4, 4\)\. torch\.as_tensor"):
        layer.weight = layer.weight.detach().numpy()
    with pytest.raises(TypeError, match=r"is a tensor; got None\. To free it, call unconstrain"):
        layer.weight = None


def test_messages_of_both_engines_have_the_dotted_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^init of 0\.weight of Linear"):
        constrain(net, "0.weight", Stiefel, init=torch.ones(4, 4))
    constrain(net, "0.weight", Stiefel)
    with pytest.raises(ValueError, match=r"^0\.weight of Linear"):
        net[0].weight = torch.ones(4, 4)


@pytest.mark.parametrize("manifold", [Sphere, Stiefel, Euclidean])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_table_trains_as_a_dense_one(manifold: Any, kind: Any) -> None:
    """Also where the rows are those of a tied layer, and where the weight is used again, densely."""
    gradients = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table, head = kind(5, 3, sparse=sparse), nn.Linear(3, 5, bias=False)
        table.weight = head.weight
        constrain(head, "weight", manifold)
        (head(table(torch.tensor([[1, 2, 1]]))).square().sum() + table.weight[3].sum()).backward()
        gradients.append(head.parametrizations.weight.original.grad)
    assert gradients[0].layout == torch.strided
    torch.testing.assert_close(gradients[0], gradients[1])


FINITE: dict[str, tuple[Any, bool]] = {
    "a matrix": (Orthogonal, True),
    "a product": (Stiefel * Sphere, True),
    "a set without nearest points": (Simplex, True),
    "parts": (LowRank(2), True),
    "a free block": (Stiefel * Euclidean(ndim=2), False),  # which every named start keeps
    "a free tensor": (Euclidean, False),
}


@pytest.mark.parametrize("case", FINITE)
def test_a_fresh_start_is_advised_where_it_is_one(case: str) -> None:
    manifold, is_one = FINITE[case]
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="Give it finite values") as caught:
        constrain(layer, "weight", manifold)
    assert ("init='haar'" in str(caught.value)) == is_one
    if is_one:
        constrain(layer, "weight", manifold, init="haar")
    else:
        with pytest.raises(ValueError, match="as it is"):
            constrain(layer, "weight", manifold, init="haar")


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
@pytest.mark.parametrize("manifold", [Orthogonal, LowRank(2)], ids=str)
def test_no_start_is_advised_where_there_is_none(manifold: Any, method: Method) -> None:
    """A checkpoint and an assignment have no init."""
    layer = constrain(nn.Linear(4, 4), "weight", manifold, method)
    nan = torch.full((4, 4), float("nan"))
    acts: list[Any] = [lambda: layer.load_state_dict({"weight": nan, "bias": torch.zeros(4)})]
    if not isinstance(layer.weight, nn.Parameter):
        acts.append(lambda: setattr(layer, "weight", nan))
    for act in acts:
        with pytest.raises(ValueError, match=r"Give it finite values\.$"):
            act()


@pytest.mark.parametrize("manifold", [Orthogonal, LowRank(2)], ids=str)
@pytest.mark.parametrize("init", [[1, 2], 3.0, {"weight": 1}], ids=str)
def test_a_start_of_another_kind_is_a_type_error(manifold: Any, init: Any) -> None:
    with pytest.raises(TypeError, match=r"init of weight of Linear.*a tensor or a function"):
        constrain(nn.Linear(4, 4), "weight", manifold, init=init)


def test_an_average_that_is_no_point_says_what_to_do() -> None:
    layer = constrain(nn.Linear(4, 4), "weight", Orthogonal, init="identity")
    average = AveragedModel(layer)
    average.update_parameters(layer)
    layer.weight = -torch.eye(4)
    with pytest.raises(ValueError, match="no point is nearest to it; nothing was averaged"):
        average.update_parameters(layer)
    AveragedModel(layer).update_parameters(layer)  # the way out

    far = constrain(nn.Linear(4, 4), "weight", Hyperboloid, init="haar")
    average = AveragedModel(far)
    average.update_parameters(far)
    w1 = far.weight.detach().clone()
    far.weight = w2 = Hyperboloid().random(4, 4)
    with pytest.raises(ValueError, match="nothing was averaged") as caught:
        average.update_parameters(far)
    way = str(caught.value).rpartition("take a mean of them, ")[2].removesuffix(".")
    far.weight = eval(way, {"Hyperboloid": Hyperboloid, "torch": torch, "w1": w1, "w2": w2})


def test_a_packing_is_of_a_class_and_a_function() -> None:
    for kind, rule in (("Linear", lambda module, name: None), (nn.Linear, 3), (nn.Linear(2, 2), print), (dict, print)):
        with pytest.raises(TypeError, match="register_packing takes a class of modules"):
            register_packing(kind, rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got none"):
        Packing.stack()
