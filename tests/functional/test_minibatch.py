from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from lightning_sim.functional import minibatch_centered_kernel_alignment
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.functional.test_hsic import hsic_by_definition
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("cka_minibatch")


def minibatch_cka_by_definition(x: np.ndarray, y: np.ndarray, size: int) -> float:
    starts = range(0, len(x) - 3, size)
    sums = [
        sum(hsic_by_definition(a[i : i + size], b[i : i + size], "unbiased") for i in starts)
        for a, b in ((x, y), (x, x), (y, y))
    ]
    return sums[0] / math.sqrt(sums[1] * sums[2])


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    return minibatch_centered_kernel_alignment(*row.arrays(dtype), batch_size=row.params["batch_size"])


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(reproduce)


@pytest.mark.parametrize(("n", "size"), [(40, 10), (44, 10), (43, 10), (41, 10), (40, 4), (40, 100)])
@pytest.mark.parametrize("widths", [(3, 2), (30, 40)])
def test_a_last_batch_counts_when_it_has_four_samples(n: int, size: int, widths: tuple[int, int]) -> None:
    x, y = correlated_pair(n, *widths)
    expected = minibatch_cka_by_definition(x.numpy(), y.numpy(), size)
    value = minibatch_centered_kernel_alignment(x, y, batch_size=size)
    assert float(value) == pytest.approx(expected, rel=1e-9)
    if n % size in (1, 2, 3):
        shorter = minibatch_centered_kernel_alignment(x[: n - n % size], y[: n - n % size], batch_size=size)
        assert float(value) == pytest.approx(float(shorter), rel=1e-9)


def test_batches_far_apart_keep_their_digits() -> None:
    # Without a centre of its own, every batch would be a difference of numbers near 1e12.
    x, y = correlated_pair(40, 3, 2)
    shifts = torch.arange(4, dtype=torch.float64).repeat_interleave(10)[:, None] * 1e6
    expected = minibatch_cka_by_definition(x.numpy(), y.numpy(), 10)
    value = minibatch_centered_kernel_alignment(x + shifts, y - shifts, batch_size=10)
    assert float(value) == pytest.approx(expected, rel=1e-7)


def test_constant_sides_are_named() -> None:
    assert_constant_sides_are_named(partial(minibatch_centered_kernel_alignment, batch_size=5))


@pytest.mark.parametrize("width", [2, 30])
def test_constant_within_every_batch(width: int) -> None:
    x = torch.arange(4.0)[:, None].repeat_interleave(10, 0).expand(40, width) + 0.7
    y = correlated_pair(40, 3, width)[1].float()
    with pytest.warns(UserWarning, match="among the samples of `x` has no variance"):
        assert minibatch_centered_kernel_alignment(x, y, batch_size=10).isnan()


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(partial(minibatch_centered_kernel_alignment, batch_size=5))
    x, y = correlated_pair(20, 3, 2)
    for size in (3, 0, -1):
        with pytest.raises(ValueError, match=f"`batch_size` must be an integer, at least 4, got {size}"):
            minibatch_centered_kernel_alignment(x, y, batch_size=size)


def test_half_precision() -> None:
    assert_half_precision_matches(
        partial(minibatch_centered_kernel_alignment, batch_size=20),
        partial(minibatch_cka_by_definition, size=20),
    )


@pytest.mark.parametrize("widths", [(3, 2), (14, 9)])
def test_gradients(widths: tuple[int, int]) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(12, *widths))
    assert torch.autograd.gradcheck(partial(minibatch_centered_kernel_alignment, batch_size=6), (x, y))
