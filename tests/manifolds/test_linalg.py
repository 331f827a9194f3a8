"""The kernels against dense formulas, with derivatives in both directions, and LU on a batch of large matrices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from manifolds.kernels.determinant import determinant_phase
from manifolds.kernels.linalg import (
    inverse_sqrt,
    lyapunov,
    newton_schulz,
    orthogonality_error,
    skew,
    sym,
)
from manifolds.kernels.resolvent import resolvent

ROOT = Path(__file__).parent.parent.parent
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)


def close(a: Tensor, b: Tensor | np.ndarray, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b), rtol=0, atol=atol)


def positive(p: int, dtype: torch.dtype, spread: float, batch: int = 4) -> Tensor:
    """Hermitian, eigenvalues from 1 to 1 + spread."""
    q = torch.linalg.qr(torch.randn(batch, p, p, dtype=dtype)).Q
    return sym((q * torch.linspace(1, 1 + spread, p, dtype=torch.float64)) @ q.mH)


def tilted(p: int, dtype: torch.dtype, size: float, batch: int = 4) -> Tensor:
    """Skew, of this norm."""
    a = skew(torch.randn(batch, p, p, dtype=dtype))
    return size * a / torch.linalg.matrix_norm(a).clamp_min(1e-300)[:, None, None]


# Values ------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("p", [1, 2, 3, 5, 130])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 30.0])
def test_resolvent_is_the_inverse(dtype: torch.dtype, p: int, size: float) -> None:
    a = tilted(p, dtype, size)
    close(resolvent(a), np.linalg.inv(np.eye(p) - a.numpy() / 2))
    close(resolvent(a[0]), np.linalg.inv(np.eye(p) - a[0].numpy() / 2))


@dtypes
@pytest.mark.parametrize("p", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-3, 0.1, 1.0, 100.0])
def test_inverse_sqrt_is_that_of_scipy(dtype: torch.dtype, p: int, spread: float) -> None:
    s = positive(p, dtype, spread)
    close(inverse_sqrt(s), np.stack([np.linalg.inv(scipy.linalg.sqrtm(m)) for m in s.numpy()]))


@dtypes
@pytest.mark.parametrize("p", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0])
def test_lyapunov_solves_its_equation_as_scipy_does(dtype: torch.dtype, p: int, spread: float) -> None:
    y, c = positive(p, dtype, spread), sym(torch.randn(4, p, p, dtype=dtype))
    z = lyapunov(y, c)
    close(y @ z + z @ y, c)
    close(z, np.stack([scipy.linalg.solve_sylvester(a, a, b) for a, b in zip(y.numpy(), c.numpy(), strict=True)]))


@dtypes
@pytest.mark.parametrize("p", [1, 3, 130])
def test_determinant_is_that_of_numpy(dtype: torch.dtype, p: int) -> None:
    x = torch.linalg.qr(torch.randn(2, 3, p, p, dtype=dtype)).Q
    close(determinant_phase(x), np.linalg.slogdet(x.numpy())[0])
    close(determinant_phase(x[0, 0]), np.linalg.slogdet(x[0, 0].numpy())[0])


@dtypes
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)], ids=str)
def test_newton_schulz_squares_the_error(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """e becomes 3/4 e^2, measured in the spectral norm."""
    w, _, vh = torch.linalg.svd(torch.randn(*shape, dtype=dtype), full_matrices=False)
    for e in (1e-2, 1e-4):
        s = torch.full((min(shape),), (1 + e) ** 0.5, dtype=torch.float64)
        y = newton_schulz((w * s) @ vh)
        gram = y.mH @ y if shape[0] >= shape[1] else y @ y.mH
        after = float(torch.linalg.matrix_norm(gram - torch.eye(min(shape), dtype=dtype), 2))
        assert abs(after / e**2 - 0.75) < 0.75 * e + 1e-15 / e**2


def test_orthogonality_error_is_the_largest_entry_and_shows_nan() -> None:
    x = torch.eye(3, 2, dtype=torch.float64)
    x[0, 0] = 2
    close(orthogonality_error(x), torch.tensor(3.0, dtype=torch.float64))
    close(orthogonality_error(x.mT), torch.tensor(3.0, dtype=torch.float64))
    x[1, 1] = torch.nan
    assert orthogonality_error(x).isnan()
    assert orthogonality_error(x.mT).isnan()


# Derivatives -------------------------------------------------------------------------------------------------

Kernel = Callable[..., Tensor]


def kernels(dtype: torch.dtype, p: int, size: float) -> dict[str, tuple[Kernel, tuple[Tensor, ...]]]:
    """Each as a function of any tensors: its own domain is reached by skew, or by sym and a shift."""

    def shifted(m: Tensor) -> Tensor:
        return sym(m) + 2 * torch.eye(p, dtype=dtype)

    m, c = (size * torch.randn(p, p, dtype=dtype) / p for _ in range(2))
    return {
        "skew": (lambda m: skew(m) @ m, (m,)),
        "resolvent": (lambda m: resolvent(skew(m)), (m,)),
        "inverse_sqrt": (lambda m: inverse_sqrt(shifted(m) / 2), (m,)),
        "lyapunov": (lambda m, c: lyapunov(shifted(m), sym(c)), (m, c)),
    }


KERNELS = ["skew", "resolvent", "inverse_sqrt", "lyapunov"]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
@dtypes
def test_first_and_second_derivatives(name: str, p: int, size: float, dtype: torch.dtype) -> None:
    """Also where eigenvalues coincide, at size 0."""
    kernel, inputs = kernels(dtype, p, size)[name]
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(kernel, inputs)
    assert torch.autograd.gradgradcheck(kernel, inputs, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
@dtypes
def test_vmap_equals_a_batch_and_a_loop(name: str, dtype: torch.dtype) -> None:
    pairs = [kernels(dtype, 4, 1.0)[name] for _ in range(5)]
    kernel, inputs = pairs[0][0], tuple(torch.stack(column) for column in zip(*(i for _, i in pairs), strict=True))
    mapped = torch.func.vmap(kernel)(*inputs)
    close(mapped, torch.stack([kernel(*i) for _, i in pairs]))
    close(kernel(*inputs), mapped)
    gradients = torch.func.vmap(torch.func.grad(lambda *i: kernel(*i).abs().square().sum()))(*inputs)
    alone = torch.stack([torch.func.grad(lambda *i: kernel(*i).abs().square().sum())(*i) for _, i in pairs])
    close(gradients, alone)


# Batched LU on CPU is broken in torch 2.13 after torch.set_num_threads, for n >= 256: wrong pivots, messages, hangs --

AFTER_SET_NUM_THREADS = """
import numpy as np
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
from manifolds import Orthogonal, Stiefel
from manifolds.engine import engine
from manifolds.kernels.determinant import determinant_phase
from manifolds.kernels.linalg import skew
from manifolds.kernels.resolvent import resolvent

for n, batch in ((256, 8), (512, 2)):
    a = skew(torch.randn(batch, n, n, dtype=torch.float64)) / n**0.5
    p = np.linalg.inv(np.eye(n) - a.numpy() / 2)
    assert np.abs(resolvent(a).numpy() - p).max() < 1e-12, "resolvent"
    x = torch.linalg.qr(torch.randn(batch, n, n, dtype=torch.float64)).Q
    y = x.numpy() @ (2 * p - np.eye(n))
    grads = []
    for m in (Orthogonal(), Stiefel()):
        c = a.clone().requires_grad_()
        moved = engine(m).move(x, c)
        assert np.abs(moved.detach().numpy() - y).max() < 1e-12, m
        (grad,) = torch.autograd.grad((moved * x.mT).sum(), c)
        grads.append(grad)
        assert grad.isfinite().all(), m
    v = x @ a
    assert np.abs(Orthogonal().retract(x, v).numpy() - y).max() < 1e-12, "retract"
    # dY = (Y + X)/2 dA P
    expected = ((y + x.numpy()) / 2).transpose(0, 2, 1) @ x.mT.numpy() @ p.transpose(0, 2, 1)
    expected = (expected - expected.transpose(0, 2, 1)) / 2
    for grad in grads:
        assert np.abs(skew(grad).numpy() - expected).max() < 1e-11, "gradient"
    for phase in (determinant_phase, torch.vmap(determinant_phase)):
        assert np.abs(phase(x).numpy() - np.linalg.slogdet(x.numpy())[0]).max() < 1e-10, "determinant"
    along = torch.vmap(lambda a, e: torch.func.jvp(resolvent, (a,), (e,)))
    for found, right in zip(along(a, a), (p, p @ a.numpy() @ p / 2), strict=True):
        assert np.abs(found.numpy() - right).max() < 1e-11, "forward derivative in vmap"
print("right")
"""


def test_a_batch_of_large_matrices_is_right_after_set_num_threads() -> None:
    """In a process of its own: the number of threads belongs to the process."""
    done = subprocess.run(
        # torch 2.14 says of its own rules for forward derivatives that they are to be compiled in another way
        [sys.executable, "-W", "ignore:`torch.jit.script`:FutureWarning", "-c", AFTER_SET_NUM_THREADS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # waiting threads leave the processor to others
    )
    assert (done.stdout, done.stderr) == ("right\n", "")
