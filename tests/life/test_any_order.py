"""Anything may be done to a model in any order: random lives, with what a model owes its user after every deed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from constraints import constrain, export_state_dict, load_checked, rebase, report, unconstrain
from constraints.held import held
from constraints.method import Method

from .subjects import ENGINES, SUBJECTS, Subject, adam, batch, bits, memory, objective, residual, same, sgd, weights

OURS = (ValueError, TypeError, RuntimeError)
HALF = torch.bfloat16


class Living:
    """A model, and what a training script keeps beside it."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.optimizer: Any = None
        self.rounded = False  # it has been in half precision, and plain weights lost their digits there

    @property
    def dtype(self) -> torch.dtype:
        return self.net.head.weight.dtype  # type: ignore[no-any-return]

    @property
    def held(self) -> bool:
        return any(True for _ in held(self.net))

    def output(self) -> Tensor:
        with torch.no_grad():
            return self.net(batch().to(self.dtype)).double()  # type: ignore[no-any-return]

    @property
    def tolerance(self) -> float:
        return 0.15 if self.rounded or self.dtype == HALF else 2e-5


def close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool((first - second).abs().max() <= tolerance * (1 + second.abs().max()))


def attempt(deed: Callable[[], Any]) -> Exception | None:
    """The error that the deed is refused with, None if it is done."""
    try:
        deed()
    except OURS as error:
        return error
    return None


class Life(RuleBasedStateMachine):
    """A few models of one kind, and their checkpoints."""

    @initialize(subject=st.sampled_from(SUBJECTS), method=st.sampled_from([None, *ENGINES]))
    def birth(self, subject: Subject, method: Method | None) -> None:
        torch.manual_seed(0)
        self.subject = subject
        net = subject.plain()
        self.models = [Living(net if method is None else subject.constrain(net, method))]
        self.files: list[tuple[bytes, Tensor, float, bool]] = []
        self.before: list[dict[str, Tensor]] = []
        self.touched = self.models[0]
        self.remember()

    def remember(self) -> None:
        self.before = [bits(living.net) for living in self.models]

    def pick(self, i: int) -> Living:
        self.touched = self.models[i % len(self.models)]
        return self.touched

    def refuses(self, living: Living, deed: Any, *errors: type[Exception]) -> None:
        """The deed is an error with a message, and leaves every tensor as it was."""
        before = bits(living.net)
        with pytest.raises(errors or OURS) as caught:
            deed()
        assert len(str(caught.value)) > 20
        assert same(bits(living.net), before)

    # A training script ------------------------------------------------------------------------------------

    @rule(i=st.integers(0, 3), training=st.booleans())
    def forward(self, i: int, training: bool) -> None:
        living = self.pick(i)
        living.net.train(training)
        assert living.net(batch().to(living.dtype)).isfinite().all()

    @rule(i=st.integers(0, 3))
    def backward(self, i: int) -> None:
        living = self.pick(i)
        loss = objective(living.net, batch().to(living.dtype))
        if loss.requires_grad:
            loss.backward()

    @rule(i=st.integers(0, 3), kind=st.sampled_from([adam, sgd]), rate=st.sampled_from([1e-3, 0.1]))
    def new_optimizer(self, i: int, kind: Any, rate: float) -> None:
        living = self.pick(i)
        error = attempt(lambda: setattr(living, "optimizer", kind(living.net, rate)))
        if error is not None:
            # a weight that was rounded to half precision is off its manifold in float32
            assert living.rounded, error
            assert "nearest" in str(error)

    @rule(i=st.integers(0, 3), count=st.integers(1, 3))
    def step(self, i: int, count: int) -> None:
        living = self.pick(i)
        if living.optimizer is None:
            return
        for _ in range(count):
            before = bits(living.net)
            error = attempt(living.optimizer.step)
            if error is not None:
                assert len(str(error)) > 20
                assert same(bits(living.net), before)
                living.optimizer = None
                return

    @rule(i=st.integers(0, 3), to_none=st.booleans())
    def zero_grad(self, i: int, to_none: bool) -> None:
        self.pick(i).net.zero_grad(set_to_none=to_none)

    @rule(i=st.integers(0, 3), part=st.sampled_from(["", "core", "head"]), flag=st.booleans())
    def freeze(self, i: int, part: str, flag: bool) -> None:
        living = self.pick(i)
        before, output = bits(living.net), living.output()
        living.net.get_submodule(part).requires_grad_(flag)
        assert same(bits(living.net), before)
        # torch has another kernel for attention whose weights need no gradient
        assert close(living.output(), output, living.tolerance)

    # Constraints ------------------------------------------------------------------------------------------

    @rule(i=st.integers(0, 3), method=st.sampled_from(ENGINES))
    def constrain(self, i: int, method: Method) -> None:
        living = self.pick(i)
        if living.held:
            if all(r.method == method for r in report(living.net)):
                output = living.output()  # a Riemannian one comes back where it was moved off; nothing else changes
                self.subject.constrain(living.net, method)
                assert close(living.output(), output, living.tolerance)
                return
            self.refuses(living, lambda: self.subject.constrain(living.net, method), ValueError)
            return
        self.subject.constrain(living.net, method)
        living.rounded = living.dtype == HALF

    @rule(i=st.integers(0, 3))
    def unconstrain(self, i: int) -> None:
        living = self.pick(i)
        if not living.held:
            self.refuses(living, lambda: unconstrain(living.net, "*"), ValueError)
            return
        before, output = weights(living.net), living.output()
        unconstrain(living.net, "*")
        assert close(living.output(), output, living.tolerance)
        for name, weight in before.items():
            assert torch.equal(living.net.get_parameter(name), weight)

    @rule(i=st.integers(0, 3), method=st.sampled_from(ENGINES))
    def switch_engine(self, i: int, method: Method) -> None:
        living = self.pick(i)
        if living.held:
            output = living.output()
            unconstrain(living.net, "*")
            self.subject.constrain(living.net, method)
            assert close(living.output(), output, living.tolerance)

    @rule(i=st.integers(0, 3))
    def rebase(self, i: int) -> None:
        living = self.pick(i)
        output = living.output()
        rebase(living.net, living.optimizer)
        assert close(living.output(), output, living.tolerance)

    @rule(i=st.integers(0, 3))
    def constrain_what_is_not_there(self, i: int) -> None:
        living = self.pick(i)
        manifold = self.subject.constraints[0][1]
        self.refuses(living, lambda: constrain(living.net, "core.wieght", manifold), ValueError)

    # Copies, places and files -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.models) < 4)
    @rule(i=st.integers(0, 3), way=st.sampled_from(["deepcopy", "pickle", "save", "with its optimizer"]))
    def copy(self, i: int, way: str) -> None:
        living = self.pick(i)
        output, file = living.output(), io.BytesIO()
        if way == "with its optimizer":
            net, optimizer = copy.deepcopy((living.net, living.optimizer))
        else:
            optimizer = None
            if way == "deepcopy":
                net = copy.deepcopy(living.net)
            elif way == "pickle":
                net = pickle.loads(pickle.dumps(living.net))
            else:
                torch.save(living.net, file)
                file.seek(0)
                net = torch.load(file, weights_only=False)
        twin = Living(net)
        twin.optimizer, twin.rounded = optimizer, living.rounded
        assert torch.equal(twin.output(), output)
        assert same(bits(net), bits(living.net))
        self.models.append(twin)
        self.before.append(bits(net))

    @precondition(lambda self: len(self.models) > 1)
    @rule(i=st.integers(0, 3))
    def forget(self, i: int) -> None:
        i %= len(self.models)
        del self.models[i], self.before[i]

    @rule(i=st.integers(0, 3), dtype=st.sampled_from([torch.float32, torch.float64, HALF]))
    def move(self, i: int, dtype: torch.dtype) -> None:
        living = self.pick(i)
        output = living.output()
        living.rounded = living.rounded or HALF in (dtype, living.dtype)
        living.net.to(dtype)
        assert {p.dtype for p in (getattr(e.owner, e.attribute) for e in held(living.net))} <= {dtype}
        assert close(living.output(), output, living.tolerance)

    @rule(i=st.integers(0, 3))
    def through_meta(self, i: int) -> None:
        living = self.pick(i)
        state, output = bits(living.net), living.output()
        off = living.rounded and residual(living.net) > 1e-4 if living.held else False
        living.net.to("meta").to_empty(device="cpu")
        living.net.zero_grad()  # gradients have no value either
        if attempt(lambda: living.net.load_state_dict(state)) is not None:
            assert off
            for e in held(living.net):
                state[e.name] = e.manifold.nearest(state[e.name].float())
            living.net.load_state_dict(state)
        assert close(living.output(), output, living.tolerance)

    @rule(i=st.integers(0, 3), plain=st.booleans())
    def save(self, i: int, plain: bool) -> None:
        living = self.pick(i)
        file = io.BytesIO()
        torch.save(export_state_dict(living.net) if plain else living.net.state_dict(), file)
        self.files = [*self.files[-2:], (file.getvalue(), living.output(), living.tolerance, living.held)]

    @precondition(lambda self: self.files)
    @rule(i=st.integers(0, 3), k=st.integers(0, 2), load=st.sampled_from([nn.Module.load_state_dict, load_checked]))
    def load(self, i: int, k: int, load: Any) -> None:
        living = self.pick(i)
        content, output, tolerance, on = self.files[k % len(self.files)]
        state = torch.load(io.BytesIO(content), weights_only=True)
        own = any("parametrizations" in key for key in state)
        if own and not living.held:
            self.refuses(living, lambda: load_checked(living.net, state), RuntimeError)
            return
        if living.held and (not on or tolerance > 1e-2):
            # a plain model may have left the manifold, and one that was rounded is off it in float32
            before = bits(living.net)
            error = attempt(lambda: load(living.net, state))
            if error is not None:
                assert "nearest" in str(error)
                assert same(bits(living.net), before)
                return
        else:
            load(living.net, state)
        living.rounded = living.rounded or tolerance > 1e-2
        assert close(living.output(), output, max(tolerance, living.tolerance))

    @precondition(lambda self: self.files)
    @rule(i=st.integers(0, 3), k=st.integers(0, 2), harm=st.sampled_from(["nan", "off", "shape", "key"]))
    def load_a_bad_file(self, i: int, k: int, harm: str) -> None:
        living = self.pick(i)
        if not living.held:
            return
        content, *_ = self.files[k % len(self.files)]
        state = torch.load(io.BytesIO(content), weights_only=True)
        name = next(iter(weights(living.net)))
        owner, _, attribute = name.rpartition(".")
        key = name if name in state else f"{owner}.parametrizations.{attribute}.0.base_point"
        if harm == "key":
            del state[key]
        elif harm == "shape":
            state[key] = state[key][1:]
        else:
            state[key] = state[key] + (torch.nan if harm == "nan" else 0.5)
        self.refuses(living, lambda: load_checked(living.net, state), ValueError, RuntimeError)

    # What must hold ---------------------------------------------------------------------------------------

    @invariant()
    def every_constraint_holds(self) -> None:
        for living in getattr(self, "models", []):
            if living.held:
                eps = torch.finfo(torch.bfloat16).eps
                # a rounded weight is a rounded point: each entry is off by half a unit in its last place
                assert residual(living.net) < (8 * eps if living.rounded or living.dtype == HALF else 1e-5)

    @invariant()
    def only_the_touched_model_changed(self) -> None:
        for living, before in zip(getattr(self, "models", []), getattr(self, "before", []), strict=True):
            if living is not self.touched:
                assert same(bits(living.net), before)
        if hasattr(self, "models"):
            self.remember()

    @invariant()
    def no_memory_is_shared(self) -> None:
        found: set[int] = set()
        for living in getattr(self, "models", []):
            mine = memory(living.net)
            assert not found & mine
            found |= mine


class LongLife(Life):
    """The same, longer."""


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=20)
TestLongLife = pytest.mark.slow(pytest.mark.timeout(1500)(LongLife.TestCase))
TestLongLife.settings = settings(max_examples=1000, stateful_step_count=40)
