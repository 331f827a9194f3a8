"""The run that is prepared for an accelerator, on a CPU that plays one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import manifolds
from benchmarks.accelerator import report
from benchmarks.accelerator.__main__ import SECONDS, all_checks, main
from benchmarks.accelerator.checks import Check, Place, require, run_all, write
from benchmarks.accelerator.pretend import Waits, pretended
from benchmarks.accelerator.waiting import POINTS
from manifolds import FixedRank, Oblique, Orthogonal, Sphere, Stiefel
from manifolds.kernels.linalg import may_wait

# The peers give warnings of their own, which are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Place(torch.device("cpu"), True, Waits)


@pytest.mark.timeout(240)
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="fully_shard of torch 2.6 has no CPU")
def test_the_run_goes_through_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is wrong, nothing is left out, and the file says where and with what."""
    assert main(["--pretend", "--out", str(tmp_path / "found.json")]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pretended"]
    assert found["machine"]["cpu"]
    assert "torch" in found["versions"]
    assert [each["state"] for each in found["checks"]] == ["ok"] * len(all_checks())
    assert {each["section"] for each in found["checks"]} == SECONDS.keys()


def test_a_section_that_is_out_of_time_says_so_and_the_next_one_runs() -> None:
    """Each section has a clock of its own; an exception is a finding, and so is what was found before it."""
    now = [0.0]

    def takes(seconds: float) -> Any:
        def run(place: Place) -> dict[str, Any]:
            now[0] += seconds
            require(seconds < 9, "too long")
            return {"seconds": seconds}

        return run

    checks = [
        Check("a", "1", takes(3)),
        Check("a", "2", takes(3)),
        Check("b", "3", takes(9)),
        Check("a", "4", takes(1)),
    ]
    found = list(run_all(checks, HERE, {"a": 5, "b": 5}, clock=lambda: now[0]))
    assert [each.state for each in found] == ["ok", "ok", "WRONG", "not run"]
    assert "too long" in found[2].why
    assert "test_accelerator.py" in found[2].why
    assert found[1].numbers == {"seconds": 3}


def test_what_was_found_is_written_at_once(tmp_path: Path) -> None:
    """A NaN is written as a word, for JSON has none."""
    check = Check("a", "1", lambda place: {"x": float("nan")})
    write(tmp_path / "found.json", {"date": "today"}, list(run_all([check], HERE, {"a": 1})))
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["checks"][0]["numbers"] == {"x": "nan"}
    assert written["date"] == "today"


def test_a_read_is_seen_where_waiting_is_forbidden() -> None:
    x = torch.ones(3)
    with Waits(), pytest.raises(RuntimeError, match="waits for the device"):
        float(x[:2].sum().reshape(1).item())


def test_a_factorization_that_is_checked_is_seen_too() -> None:
    with Waits(), pytest.raises(RuntimeError, match="waits for the device"):
        torch.linalg.cholesky(torch.eye(2))


def test_every_set_is_asked_whether_it_waits() -> None:
    concrete = {
        getattr(manifolds, name)
        for name in manifolds.__all__
        if isinstance(getattr(manifolds, name), type)
        and issubclass(getattr(manifolds, name), manifolds.Manifold)
        and not inspect.isabstract(getattr(manifolds, name))
    }
    asked = {manifolds.ProductManifold} | {type(manifold) for manifold, _ in POINTS.values()}
    assert concrete - asked == set()


def test_what_may_wait_is_seen_where_waiting_is_forbidden() -> None:
    """A logarithm looks at values, on a pretended device too, and so raises its errors; in a step it is refused."""
    x = torch.eye(4, 2)
    with pretended():
        with pytest.raises(ValueError, match="no path on Orthogonal"):
            Orthogonal().log(torch.eye(3), -torch.eye(3))
        with Waits(), pytest.raises(RuntimeError, match="may be waited for"):
            Sphere().nearest(x)
    assert not may_wait(x.to("meta"))
    with Waits():  # or any other mode, as of what records a graph
        assert not may_wait(x)


NOWHERE: dict[str, Callable[[], object]] = {
    "zero vector": lambda: Sphere().nearest(torch.zeros(3)),
    "zero column": lambda: Oblique().nearest(torch.zeros(3, 2)),
    "rank below 2": lambda: FixedRank(2).nearest(torch.ones(3, 3)),
    "rank below 1": lambda: FixedRank(1).retract(torch.ones(9, 9), -torch.ones(9, 9)),
    "no nearest orthonormal": lambda: Stiefel().nearest(torch.zeros(4, 2)),
    "no path": lambda: Orthogonal().log(torch.eye(3), -torch.eye(3)),
    "finite": lambda: Sphere().mean(torch.full((3, 4), torch.nan)),
}


@pytest.mark.parametrize("why", NOWHERE)
def test_an_accelerator_raises_the_errors_of_a_cpu(why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("column", "vector")) as plain:
        NOWHERE[why]()
    with pretended(), pytest.raises(ValueError, match=why.replace("column", "vector")) as found:
        NOWHERE[why]()
    assert str(found.value) == str(plain.value)


def test_what_is_pretended_is_undone() -> None:
    from constraints.optim.step import bucket

    with pretended():
        assert not bucket.can_look(torch.device("cpu"))
    assert bucket.can_look(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_run_without_a_device_says_so() -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        main([])


def test_the_page_shows_the_run_that_is_kept() -> None:
    text = (report.DOCS / "accelerators.md").read_text()
    assert report.docs(report.kept()) in text


def test_without_a_run_nothing_is_claimed() -> None:
    assert report.docs(None).startswith("*Not measured*")
    assert report.docs({"pretended": True}).startswith("*Not measured*")
