"""A step with its hooks, with a record for profilers only where one runs."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch._dynamo.testing import CompileCounter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Stiefel


def point() -> nn.Parameter:
    p = nn.Parameter(torch.eye(4, 2))
    p.grad = torch.zeros_like(p)
    return p


@pytest.mark.parametrize("profiled", [False, True])
def test_hooks_are_called_as_torch_calls_them(profiled: bool) -> None:
    """With what they are given and may change, in one order, and under a profiler the step has torch's name."""

    def told(kind: type[torch.optim.Optimizer]) -> list[Any]:
        p = point()
        optimizer, seen = kind([p] if kind is torch.optim.Adam else [{"params": [p], "manifold": Stiefel()}]), []

        def hook(name: str, changes: Any = None) -> Any:
            def call(of: Any, args: Any, kwargs: Any) -> Any:
                seen.append((name, of is optimizer, args[0] is optimizer, len(args), sorted(kwargs)))
                return changes

            return call

        places = [
            register_optimizer_step_pre_hook(hook("all, before")),
            register_optimizer_step_post_hook(hook("all, after", "is not looked at")),
            optimizer.register_step_pre_hook(
                hook("before", ((optimizer,), {"closure": lambda: seen.append("closure")}))
            ),
            optimizer.register_step_pre_hook(hook("once more")),
            optimizer.register_step_post_hook(hook("after")),
        ]
        try:
            optimizer.step(lambda: seen.append("the closure that was given"))
            optimizer.register_step_pre_hook(hook("nonsense", ("too", "many", "things")))
            with pytest.raises(RuntimeError, match="None"):
                optimizer.step()
        finally:
            for place in places:
                place.remove()
        return seen

    with torch.profiler.profile() if profiled else nullcontext() as found:
        assert told(RiemannianAdam) == told(torch.optim.Adam)
    if profiled:
        names = {event.name for event in found.events()}
        assert {"Optimizer.step#RiemannianAdam.step", "Optimizer.step#Adam.step"} <= names


def test_without_a_profiler_a_step_leaves_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take most of the time of a small one; also of a subclass, and of a step that is a class's own."""

    class Mine(RiemannianAdam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    made: list[object] = []
    monkeypatch.setattr(torch.autograd.profiler, "record_function", lambda *a: made.append(a) or nullcontext())
    for kind in (RiemannianAdam, RiemannianSGD, Mine):
        p = point()
        kind([{"params": [p], "manifold": Stiefel()}], lr=0.1).step()
    assert not made
    torch.optim.Adam([point()]).step()
    assert made


@pytest.mark.filterwarnings("ignore")  # of what the compiler does not know
@pytest.mark.parametrize("inherits", [True, False])
def test_within_torch_compile_a_step_and_its_hooks_run_once(inherits: bool) -> None:
    """And make no graph; also of a subclass that steps by its parent's step."""

    class Mine(RiemannianAdam):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            return super().step(closure)

    RiemannianAdam([point()])
    p, seen, graphs = point(), [], CompileCounter()
    optimizer = (Mine if inherits else RiemannianAdam)([{"params": [p], "manifold": Stiefel()}])
    optimizer.register_step_pre_hook(lambda *a: seen.append("before"))
    optimizer.register_step_post_hook(lambda *a: seen.append("after"))
    torch.compile(lambda: optimizer.step(), backend=graphs)()
    # a step by the parent's step calls hooks again, as in torch
    assert seen == (["before"] * 2 + ["after"] * 2 if inherits else ["before", "after"])
    assert getattr(optimizer, "steps", 1) == 1
    assert optimizer.state[p]["step"] == 1
    assert graphs.frame_count == 0


def test_a_profiler_of_all_threads_sees_steps_of_all() -> None:
    p = point()
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}])
    try:
        all_threads = _ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        pytest.skip("no profiler of this torch asks other threads")
    with torch.profiler.profile(experimental_config=all_threads) as found:
        optimizer.step()
        thread = Thread(target=optimizer.step)
        thread.start()
        thread.join()
    assert [event.name for event in found.events()].count("Optimizer.step#RiemannianAdam.step") == 2
