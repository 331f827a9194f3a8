"""Bad input is an error that names the tensor, the rule, the shape and the way out, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constraints import (
    BlockSpec,
    Riemannian,
    Trivialization,
    constrain,
    export_state_dict,
    param_groups,
    rebase,
    report,
    unconstrain,
)
from constraints.method import Method
from constraints.solve import minimize
from manifolds import (
    DoublyStochastic,
    Euclidean,
    Grassmann,
    Hyperboloid,
    LowRank,
    Manifold,
    Orthogonal,
    Orthostochastic,
    PoincareBall,
    ProductManifold,
    Scaled,
    Simplex,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

METHODS = [Trivialization(), Riemannian()]


def everything(module: nn.Module) -> dict[str, Any]:
    """All that a user could see of a module: values bit by bit, objects, classes and hooks."""
    seen: dict[str, Any] = {}
    for path, part in module.named_modules():
        seen[path] = (
            type(part),
            [(name, id(p), None if p is None else p.requires_grad) for name, p in part._parameters.items()],
            [(name, id(b)) for name, b in part._buffers.items()],
            list(part._modules),
            sorted(part.__dict__),
            len(part._forward_pre_hooks) + len(part._forward_hooks) + len(part._load_state_dict_pre_hooks),
        )
    for name, value in module.state_dict().items():
        seen[f"value of {name}"] = [] if value.is_meta else value.contiguous().view(torch.uint8).tolist()
    return seen


class Bare(nn.Module):
    """A module of one's own with one parameter, one buffer and one thing that is missing."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point() or weight.is_complex())
        self.register_buffer("mask", torch.ones(2, 2))
        self.register_parameter("absent", None)


def zero_block() -> nn.Module:
    gru = nn.GRU(3, 4)
    with torch.no_grad():
        gru.weight_hh_l0[4:8] = 0
    return gru


def deficient() -> nn.Module:
    gru = nn.GRU(3, 4)
    with torch.no_grad():
        gru.weight_hh_l0[9] = gru.weight_hh_l0[8]
    return gru


def with_nan() -> nn.Module:
    gru = nn.GRU(3, 4)
    with torch.no_grad():
        gru.weight_hh_l0[5, 2] = float("nan")
    return gru


def reflection(n: int) -> Tensor:
    return torch.diag(torch.tensor([-1.0] + [1.0] * (n - 1)))


def gru() -> nn.Module:
    return nn.GRU(3, 4)


def linear() -> nn.Module:
    return nn.Linear(6, 4)


# name of the case: (module, name, manifold, options, what the message says)
CASES: dict[str, tuple[Callable[[], nn.Module], str, Any, dict[str, Any], list[str]]] = {
    "a plain manifold on packed gates": (
        gru,
        "weight_hh_l0",
        Stiefel,
        {},
        [
            "weight_hh_l0 of GRU(3, 4)",
            "3 gate matrices (r, z, n)",
            "(12, 4)",
            "Stiefel**3",
            "BlockSpec(rows=1, axis=0)",
        ],
    ),
    "Orthogonal on packed gates": (gru, "weight_hh_l0", Orthogonal, {}, ["3 gate matrices", "write Orthogonal**3"]),
    "a factor count that contradicts the module": (
        gru,
        "weight_hh_l0",
        Stiefel**4,
        {},
        ["weight_hh_l0 of GRU(3, 4)", "Stiefel**4 would cut it into 4 blocks", "Stiefel**3"],
    ),
    "rows that do not divide": (
        linear,
        "weight",
        Stiefel**3,
        {},
        ["weight of Linear", "(4, 6)", "3 equal blocks", "length 4"],
    ),
    "sizes that do not add up": (
        linear,
        "weight",
        Stiefel,
        {"layout": BlockSpec(rows=(3, 2))},
        ["weight of Linear", "(4, 6)", "length 5", "length 4"],
    ),
    "a pattern that does not fit": (
        linear,
        "weight",
        Stiefel,
        {"layout": BlockSpec.pattern("(a b) c -> a b c", a=3)},
        ["weight of Linear", "(a b) c -> a b c", "a=3", "length 4"],
    ),
    "a pattern with other axes": (
        linear,
        "weight",
        Stiefel,
        {"layout": BlockSpec.pattern("a b c -> a b c")},
        ["weight of Linear", "3 axes", "(4, 6)"],
    ),
    "more factors than blocks": (
        linear,
        "weight",
        Stiefel**3,
        {"layout": BlockSpec(rows=2)},
        ["weight of Linear", "3 factors", "2 blocks"],
    ),
    "two layouts": (
        linear,
        "weight",
        ProductManifold((Stiefel, Stiefel), BlockSpec(rows=2, axis=1)),
        {"layout": BlockSpec(rows=2)},
        ["weight of Linear", "layout of its own"],
    ),
    "an axis from the first one, with batch axes": (
        lambda: Bare(torch.randn(4, 6, 4)),
        "weight",
        Stiefel**2,
        {},
        ["weight of Bare", "(4, 6, 4)", "ambiguous", "axis=-2", "axis=-3", "BlockSpec.pattern"],
    ),
    "an axis that a vector does not have": (
        linear,
        "weight",
        Sphere**2,
        {},
        ["weight of Linear", "(4, 6)", "ambiguous", "axis=-2"],
    ),
    "a name that does not exist": (gru, "weight_hh_l7", Stiefel**3, {}, ["GRU", "'weight_hh_l7'", "weight_hh_l0"]),
    "a dotted name that does not exist": (
        lambda: nn.Sequential(nn.Linear(2, 2)),
        "0.wieght",
        Stiefel,
        {},
        ["Sequential", "'0.wieght'", "0.weight"],
    ),
    "a glob without a match": (gru, "wieght_*", Stiefel**3, {}, ["GRU", "'wieght_*'", "weight_hh_l0"]),
    "a module": (lambda: nn.Sequential(nn.Linear(2, 2)), "0", Stiefel, {}, ["is a module", "0.weight"]),
    "a buffer": (lambda: Bare(torch.eye(2)), "mask", Stiefel, {}, ["mask of Bare", "is a buffer", "weight"]),
    "a parameter that is None": (lambda: Bare(torch.eye(2)), "absent", Stiefel, {}, ["absent of Bare", "is None"]),
    "a bias that is None": (lambda: nn.Linear(2, 2, bias=False), "bias", Sphere, {}, ["bias of Linear", "is None"]),
    "Orthogonal on a matrix that is not square": (
        linear,
        "weight",
        Orthogonal,
        {},
        ["weight of Linear", "(4, 6)", "square", "Stiefel"],
    ),
    "Orthogonal on blocks that are not square": (
        gru,
        "weight_ih_l0",
        Orthogonal**3,
        {},
        ["weight_ih_l0 of GRU(3, 4)", "(12, 3)", "square", "Stiefel"],
    ),
    "a matrix manifold on a vector": (linear, "bias", Stiefel, {}, ["bias of Linear", "(4,)", "2 axes"]),
    "integers": (lambda: Bare(torch.eye(2, dtype=torch.int64)), "weight", Stiefel, {}, ["int64", "(2, 2)", "float32"]),
    "float8": (
        lambda: Bare(torch.eye(2).to(torch.float8_e4m3fn)),
        "weight",
        Stiefel,
        {},
        ["float8_e4m3fn", "(2, 2)", "float32"],
    ),
    "a tensor without a value": (lambda: nn.Linear(2, 2, device="meta"), "weight", Stiefel, {}, ["no value yet"]),
    "a lazy module": (lambda: nn.LazyLinear(2), "weight", Stiefel, {}, ["no value yet"]),
    "NaN in a weight": (
        with_nan,
        "weight_hh_l0",
        Stiefel**3,
        {},
        ["weight_hh_l0 of GRU(3, 4)", "NaN", "1 of 48", "init"],
    ),
    "NaN in an init": (
        linear,
        "weight",
        Stiefel,
        {"init": torch.full((4, 6), float("nan"))},
        ["init of weight of Linear", "NaN", "(4, 6)"],
    ),
    "Inf from an init": (
        linear,
        "weight",
        Stiefel,
        {"init": lambda x: x / 0},
        ["init of weight of Linear", "infinite", "(4, 6)"],
    ),
    "an init of another shape": (linear, "weight", Stiefel, {"init": torch.eye(6)}, ["(4, 6)", "(6, 6)"]),
    "a complex init": (
        linear,
        "weight",
        Stiefel,
        {"init": torch.eye(4, 6, dtype=torch.complex64)},
        ["float32", "complex64"],
    ),
    "an init off the manifold": (
        linear,
        "weight",
        Stiefel,
        {"init": torch.ones(4, 6)},
        ["init of weight of Linear", "is not on Stiefel", "(4, 6)", "nearest"],
    ),
    "an init function that returns nothing": (
        linear,
        "weight",
        Stiefel,
        {"init": lambda x: None},
        ["init function of weight of Linear", "(4, 6)", "returned None"],
    ),
    "an init that is no word": (linear, "weight", Stiefel, {"init": "harr"}, ["'haar'", "'harr'"]),
    "identity for vectors": (linear, "weight", Sphere, {"init": "identity"}, ["matrices", "haar"]),
    "torus for complex numbers": (
        lambda: Bare(torch.eye(2, dtype=torch.complex64)),
        "weight",
        Stiefel,
        {"init": "torus"},
        ["real matrices", "complex64"],
    ),
    "a zero block": (
        zero_block,
        "weight_hh_l0",
        Stiefel**3,
        {},
        ["weight_hh_l0 of GRU(3, 4)", "block 1 of 3", "(4, 4)", "deficient rank", "init='haar'"],
    ),
    "a block of deficient rank": (
        deficient,
        "weight_hh_l0",
        Orthogonal**3,
        {},
        ["weight_hh_l0 of GRU(3, 4)", "block 2 of 3", "deficient rank", "init='haar'"],
    ),
    "a zero vector": (
        lambda: Bare(torch.zeros(3, 4)),
        "weight",
        Sphere,
        {},
        ["weight of Bare", "(3, 4)", "zero vector"],
    ),
    "det < 0 as an initial value": (
        lambda: nn.Linear(4, 4),
        "weight",
        SpecialOrthogonal,
        {"init": reflection(4)},
        ["is not on SpecialOrthogonal", "(4, 4)", "1 of 1 matrices have determinant -1", "Orthogonal"],
    ),
    "a weight under weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
        "weight",
        Stiefel,
        {},
        ["weight of Linear", "another parametrization", "_WeightNorm", "remove_parametrizations"],
    ),
    "a weight under torch's orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
        "weight",
        Stiefel,
        {},
        ["weight of Linear", "another parametrization", "_Orthogonal", "remove_parametrizations"],
    ),
}


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_constrain_refuses_and_changes_nothing(case: str, method: Method) -> None:
    make, name, manifold, options, words = CASES[case]
    module = make()
    if case == "a lazy module":
        with pytest.raises(ValueError, match="no value yet"):
            constrain(module, name, manifold, method, **options)
        return
    before = everything(module)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words below are the match)
        constrain(module, name, manifold, method, **options)
    assert everything(module) == before
    for word in words:
        assert word.lower() in str(caught.value).lower()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_one_bad_tensor_of_many_leaves_all_as_they_were(method: Method) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    before = everything(module)
    with pytest.raises(ValueError, match="square"):
        constrain(module, "*.weight", Orthogonal, method)
    assert everything(module) == before


@pytest.mark.parametrize("second", METHODS, ids=repr)
@pytest.mark.parametrize("first", METHODS, ids=repr)
def test_a_second_constraint_is_refused(first: Method, second: Method) -> None:
    module = constrain(nn.Linear(4, 4), "weight", Stiefel, first)
    before = everything(module)
    with pytest.raises(ValueError, match=r"weight of Linear.*constrained already.*unconstrain"):
        constrain(module, "weight", Orthogonal, second)
    assert everything(module) == before


@pytest.mark.parametrize(
    ("manifold", "value", "words"),
    [
        (Stiefel, torch.ones(4, 4), ["weight of Linear", "not on Stiefel", "(4, 4)", "nearest"]),
        (Stiefel, 1.01 * torch.eye(4), ["not on Stiefel", "(4, 4)"]),
        (
            SpecialOrthogonal,
            reflection(4),
            ["not on SpecialOrthogonal", "1 of 1 matrices have determinant -1", "Orthogonal"],
        ),
        (Stiefel, torch.eye(3), ["(4, 4)", "(3, 3)"]),
        (Stiefel, torch.full((4, 4), float("nan")), ["weight of Linear", "NaN", "(4, 4)"]),
        (Stiefel, torch.eye(4, dtype=torch.int64), ["float32", "int64"]),
        (Stiefel, torch.eye(4, dtype=torch.complex64), ["float32", "complex64"]),
    ],
)
def test_a_bad_value_is_not_assigned(manifold: type[Manifold], value: Tensor, words: list[str]) -> None:
    module = constrain(nn.Linear(4, 4), "weight", manifold)
    with torch.no_grad():
        module.parametrizations.weight.original.normal_()
    before = everything(module)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        module.weight = value
    assert everything(module) == before
    for word in words:
        assert word.lower() in str(caught.value).lower()


def test_an_off_manifold_gate_is_not_assigned() -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", Stiefel * Euclidean**2)
    before = everything(gru)
    with pytest.raises(ValueError, match="not on Stiefel"):
        gru.weight_hh_l0 = torch.ones(12, 4)
    assert everything(gru) == before


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.outside = nn.Linear(4, 4)
        self.outside.weight = self.inside.weight


def test_trivialization_does_not_untie() -> None:
    module = constrain(Tied(), "inside.weight", Stiefel)
    assert module.inside.parametrizations.weight.original is module.outside.parametrizations.weight.original
    with torch.no_grad():
        module.inside.parametrizations.weight.original.normal_()
    assert torch.equal(module.inside.weight, module.outside.weight)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("weight", "Stiefel"), {}, "needs a manifold"),
        (("weight", Stiefel, "riemannian"), {}, "Trivialization"),
        (("weight", Stiefel), {"layout": 3}, "BlockSpec"),
    ],
)
def test_arguments_of_another_kind(arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    module = nn.Linear(4, 4)
    before = everything(module)
    with pytest.raises(TypeError, match=words):
        constrain(module, *arguments, **options)
    assert everything(module) == before


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_rebase_every_is_a_positive_number(steps: Any) -> None:
    with pytest.raises(ValueError, match="rebase_every"):
        Trivialization(rebase_every=steps)


@pytest.mark.parametrize(
    ("name", "words"), [("0.weight", r"Constrained are: 1\.weight"), ("1.wieght", r"Near names: 1\.weight")]
)
def test_unconstrain_says_what_is_constrained(name: str, words: str) -> None:
    module = constrain(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "1.weight", Stiefel)
    before = everything(module)
    with pytest.raises(ValueError, match=words):
        unconstrain(module, name)
    assert everything(module) == before


def test_unconstrain_of_a_free_module_says_so() -> None:
    with pytest.raises(ValueError, match="Nothing in this module is"):
        unconstrain(nn.Linear(4, 4), "*")


@pytest.mark.parametrize("name", ["keys", "values", "items", "pop", "update", "clear"])
def test_a_name_that_torch_cannot_hold_is_refused_and_nothing_changed(name: str) -> None:
    module = torch.nn.Module()
    module.register_parameter(name, torch.nn.Parameter(torch.eye(3)))
    before, kind = getattr(module, name), type(module)
    for manifold, method in ((Stiefel(), Trivialization()), (LowRank(2), Riemannian())):
        with pytest.raises(ValueError, match="another name, or hold it"):
            constrain(module, name, manifold, method)
        assert type(module) is kind
        assert getattr(module, name) is before
    assert report(constrain(module, name, Stiefel, Riemannian()))[0].ok


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)
@pytest.mark.parametrize(
    ("manifold", "shape"), [(Grassmann(), (4, 4)), (Sphere(), (3, 1)), (SpecialOrthogonal(), (1, 1))]
)
def test_a_set_of_single_points_is_refused(manifold: Any, shape: tuple[int, ...], method: Any) -> None:
    """It would be held, reported as right, and never train."""
    layer = nn.Linear(shape[1], shape[0])
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        constrain(layer, "weight", manifold, method)
    assert type(layer.weight) is nn.Parameter


def arrays() -> dict[str, Any]:
    """What takes a tensor, given a numpy array."""
    array: Any = np.eye(4, dtype=np.float32)

    def constrained(manifold: Any = Stiefel) -> Any:
        return constrain(nn.Linear(4, 4), "weight", manifold, init="haar")

    return {
        "init": lambda: constrain(nn.Linear(4, 4), "weight", Stiefel, init=array),
        "init of parts": lambda: constrain(nn.Linear(4, 4), "weight", Scaled(Stiefel), init=array),
        "assignment": lambda: setattr(constrained(), "weight", array),
        "assignment to parts": lambda: setattr(constrained(Scaled(Stiefel)), "weight", array),
        "checkpoint": lambda: constrained().load_state_dict({"weight": array}, strict=False),
        "checkpoint of parts": lambda: constrained(Scaled(Stiefel)).load_state_dict({"weight": array}, strict=False),
        "start": lambda: minimize(lambda x: x.sum(), array, Stiefel),
    }


@pytest.mark.parametrize("place", arrays())
def test_an_array_is_no_tensor(place: str) -> None:
    kind = ValueError if "checkpoint" in place else TypeError
    with pytest.raises(kind, match=r"tensor.*; got a numpy array of shape \(4.*torch.as_tensor makes"):
        arrays()[place]()


@pytest.mark.parametrize("manifold", [Stiefel, Scaled(Stiefel)], ids=str)
def test_a_function_that_returns_an_array_is_told(manifold: Any) -> None:
    def init(w: Any) -> Any:
        return w.detach().numpy()

    with pytest.raises((TypeError, ValueError), match=r"tensor.* a numpy array of shape \(4, 4\).*torch.as_tensor"):
        constrain(nn.Linear(4, 4), "weight", manifold, init=init)


REAL_ONLY = [Simplex(), Hyperboloid(), PoincareBall(), DoublyStochastic(), Scaled(Simplex()), Orthostochastic()]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("init", [None, "haar"])
@pytest.mark.parametrize("manifold", REAL_ONLY, ids=str)
def test_a_complex_weight_on_a_real_set_is_told_by_its_name(manifold: Any, init: Any, method: Method) -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^0\.weight of Linear.*, shape \(4, 4\): points of .* are real; got dtype"):
        constrain(model, "0.weight", manifold, method, init=init)
    assert type(model[0].weight) is nn.Parameter
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]


def test_an_error_of_a_start_names_the_tensor_and_is_not_changed_where_it_does() -> None:
    def init(w: torch.Tensor) -> torch.Tensor:
        raise ValueError(text)

    text = "no data for this layer"
    with pytest.raises(ValueError, match=r"^weight of Linear.*, shape \(4, 4\): no data for this layer$"):
        constrain(nn.Linear(4, 4), "weight", Stiefel, init=init)
    text = "weight of Linear(in_features=4, out_features=4, bias=True) has no data"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        constrain(nn.Linear(4, 4), "weight", Stiefel, init=init)


@pytest.mark.parametrize("call", [report, param_groups, rebase, export_state_dict], ids=lambda f: f.__name__)
@pytest.mark.parametrize("given", [{"weight": 1}, iter(())], ids=["a state dict", "parameters"])
def test_what_is_no_model_is_told(given: Any, call: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{call.__name__} takes a torch\.nn\.Module; got a \w+\.$"):
        call(given)
