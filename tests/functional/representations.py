"""Pairs of representations for the tests here, and what every measure of them must do with difficult ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], Tensor]

HALF_CASES = list(itertools.product((torch.float16, torch.bfloat16), (0.0, 1000.0), (1e-4, 1.0, 1e4)))


def correlated_pair(n: int, p1: int, p2: int, seed: int = 0, *, shared: int = 3) -> tuple[Tensor, Tensor]:
    """Two float64 representations of full rank and moderate similarity, with means that are not zero."""
    generator = np.random.default_rng(seed)
    latent = generator.standard_normal((n, shared))
    x, y = (
        latent @ generator.standard_normal((shared, p))
        + generator.standard_normal((n, p))
        + generator.standard_normal(p)
        for p in (p1, p2)
    )
    return torch.from_numpy(x), torch.from_numpy(y)


def assert_half_precision_matches(
    measure: Measure, reference: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    """Half precision input gives, within 5e-3, what `reference` gives for the rounded numbers in float64.

    `reference` must not be the code under test. Where it is NaN, or where rounding has made both sides
    constant, the measure must be NaN with a warning.
    """
    for dtype, mean, scale in HALF_CASES:
        x, y = ((mean + scale * z / z.std()).to(dtype) for z in correlated_pair(60, 6, 4, seed=3))
        constant = all(bool((z == z[:1]).all()) for z in (x, y))
        expected = math.nan if constant else reference(x.double().numpy(), y.double().numpy())
        if math.isnan(expected):
            with pytest.warns(UserWarning, match="no variance" if constant else "the value is undefined"):
                assert measure(x, y).isnan()
            continue
        value = measure(x, y)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(expected, rel=5e-3, abs=5e-3), (dtype, mean, scale)


def assert_constant_sides_are_named(measure: Measure) -> None:
    """NaN and a warning that names the side, for exact constants and for constants up to rounding."""
    varied, _ = correlated_pair(20, 4, 3)
    same_value = torch.full((20, 3), 0.7, dtype=torch.float64)
    rounding = 0.7 * (
        1 + 1e-16 * torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for constant in (same_value, rounding, same_value.float()):
        for x, y, message in (
            (constant, varied, "^`x` has no variance"),
            (varied, constant, "^`y` has no variance"),
            (constant, constant, "^`x` and `y` has no variance"),
        ):
            with pytest.warns(UserWarning, match=message) as caught:
                value = measure(x, y)
            assert value.isnan()
            assert [warning.filename for warning in caught] == [__file__]  # the line of the caller


def assert_bad_input_is_refused(measure: Measure) -> None:
    """ValueError with the name of the argument and the shapes."""
    x, y = correlated_pair(20, 4, 3)
    with pytest.raises(ValueError, match=r"`x` and `y`.*\(20, 4\) and \(19, 3\)"):
        measure(x, y[:19])
    with pytest.raises(ValueError, match=r"`x` and `y` need at least \d rows.*\(1, 4\) and \(1, 3\)"):
        measure(x[:1], y[:1])
    with pytest.raises(ValueError, match=r"`y` must have shape.*\(20,\)"):
        measure(x, y[:, 0])
    with pytest.raises(ValueError, match=r"`x` must be floating-point.*int64.*\(20, 4\)"):
        measure(x.long(), y)
    with pytest.raises(ValueError, match=r"`y` of shape \(20, 3\) holds NaN"):
        measure(x, y.masked_fill(y == y.max(), torch.nan))
    with pytest.raises(ValueError, match=r"`x` must be a torch.Tensor"):
        measure(x.numpy(), y)  # type: ignore[arg-type]
