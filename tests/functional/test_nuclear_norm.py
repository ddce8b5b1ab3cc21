from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sim.functional.nuclear_norm import nuclear_norm, nuclear_norm_and_polar_factor

SPECTRA = {
    "white": lambda i: np.ones_like(i),
    "power": lambda i: i**-1.0,
    "steep": lambda i: i**-4.0,
    "exponential": lambda i: np.exp(-i / 10),
    "low rank": lambda i: (i <= 90) + 0.0,
    "few classes": lambda i: (i <= 9) + 0.0,
    "one massive direction": lambda i: np.where(i == 1, 4e6, 1.0),
}


def with_spectrum(name: str, rows: int = 320, columns: int = 300) -> np.ndarray:
    generator = np.random.default_rng(0)
    u, v = (np.linalg.qr(generator.standard_normal((n, columns)))[0] for n in (rows, columns))
    matrix = (u * SPECTRA[name](np.arange(1.0, columns + 1))) @ v.T
    return matrix / np.linalg.norm(matrix)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-7), (torch.float32, 3e-3)])
def test_sum_of_singular_values(name: str, dtype: torch.dtype, error: float) -> None:
    # Roots of the eigenvalues of C'C alone err by up to 300 roots of an eps: 5e-6 in float64, and 0.1 in float32.
    matrix = with_spectrum(name)
    expected = scipy.linalg.svdvals(matrix).sum()
    for given in (matrix, matrix.T):
        assert float(nuclear_norm(torch.from_numpy(given).to(dtype))) == pytest.approx(expected, abs=error, rel=error)


class Decompositions(TorchDispatchMode):
    """Names and shapes of the decompositions that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if "linalg" in name and isinstance(args[0], Tensor) and ("svd" in name or "eigh" in name or "qr" in name):
            self.found.append((name, tuple(args[0].shape)))
        return function(*args, **(kwargs or {}))


def test_no_singular_values_where_eigenvalues_do() -> None:
    matrix = torch.from_numpy(with_spectrum("power"))
    with Decompositions() as decompositions:
        nuclear_norm(matrix)
    assert decompositions.found == [("_linalg_eigh", (300, 300))]


@pytest.mark.parametrize("name", ["white", "power", "low rank"])
def test_polar_factor(name: str) -> None:
    matrix = with_spectrum(name)
    value, polar = nuclear_norm_and_polar_factor(torch.from_numpy(matrix))
    u, values, vt = scipy.linalg.svd(matrix, full_matrices=False)
    rank = int((values > 1e-12).sum())
    assert float(value) == pytest.approx(values.sum())
    np.testing.assert_allclose(polar, u[:, :rank] @ vt[:rank], atol=1e-9)
