from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sim.functional import centered_kernel_alignment, deconfounded_centered_kernel_alignment
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("cka_deconfounded")


def inputs_for(n: int) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def dcka_by_definition(x: np.ndarray, y: np.ndarray, inputs: np.ndarray, project_psd: bool) -> float:
    """Least squares over all entries of the centred kernels, by numpy."""
    kernel_x, kernel_y, k0 = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y, inputs))
    residuals = []
    for kernel in (kernel_x, kernel_y):
        slope = np.linalg.lstsq(k0.reshape(-1, 1), kernel.ravel(), rcond=None)[0]
        residual = kernel - slope * k0
        if project_psd:
            values, vectors = np.linalg.eigh(residual)
            residual = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
        residuals.append(residual / np.linalg.norm(residual))
    return float((residuals[0] * residuals[1]).sum())


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    inputs, x, y = row.arrays(dtype)
    return deconfounded_centered_kernel_alignment(x, y, inputs, project_psd=row.params["project_psd"])


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(reproduce)


def test_inputs_that_explain_nothing_change_nothing() -> None:
    # Inputs in directions of sample space that neither side has leave nothing to regress out.
    x, y = correlated_pair(40, 4, 3)
    spanned = torch.linalg.qr(torch.cat([torch.ones(40, 1, dtype=torch.float64), x, y], 1)).Q
    inputs = inputs_for(40)
    inputs = inputs - spanned @ (spanned.T @ inputs)
    expected = centered_kernel_alignment(x, y, estimator="biased")
    for project_psd in (True, False):
        value = deconfounded_centered_kernel_alignment(x, y, inputs, project_psd=project_psd)
        assert float(value) == pytest.approx(float(expected), rel=1e-10)


def test_similarity_that_is_only_that_of_the_inputs_is_removed() -> None:
    # Kernels of two random linear layers scatter about that of the inputs, independently of each other.
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(100):
        inputs = torch.randn(50, 10, generator=generator)
        x, y = (inputs @ torch.randn(10, 30, generator=generator) for _ in range(2))
        assert centered_kernel_alignment(x, y) > 0.4
        values.append(deconfounded_centered_kernel_alignment(x, y, inputs, project_psd=False))
    # The standard deviation of one value is about 0.17, that of the mean 0.017.
    assert abs(float(torch.stack(values).mean())) < 0.06


@pytest.mark.parametrize("project_psd", [True, False])
def test_constant_sides_are_named(project_psd: bool) -> None:
    measure = partial(deconfounded_centered_kernel_alignment, inputs=inputs_for(20), project_psd=project_psd)
    assert_constant_sides_are_named(measure)
    x, y = correlated_pair(20, 4, 3)
    with pytest.warns(UserWarning, match="^`inputs` has no variance"):
        assert measure(x, y, inputs=torch.full((20, 3), 0.7)).isnan()


@pytest.mark.parametrize("project_psd", [True, False])
def test_a_side_that_is_the_inputs_rotated_is_named(project_psd: bool) -> None:
    inputs, (_, y) = inputs_for(20), correlated_pair(20, 4, 3)
    rotated = 3 * inputs.flip(1) + 1
    with pytest.warns(UserWarning, match="^`x` has no variance that `inputs` do not explain"):
        assert deconfounded_centered_kernel_alignment(rotated, y, inputs, project_psd=project_psd).isnan()
    with pytest.warns(UserWarning, match="^`y` has no variance that `inputs` do not explain"):
        assert deconfounded_centered_kernel_alignment(y, rotated, inputs, project_psd=project_psd).isnan()


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(partial(deconfounded_centered_kernel_alignment, inputs=inputs_for(20)))
    x, y = correlated_pair(20, 4, 3)
    with pytest.raises(ValueError, match=r"`x` and `inputs` must hold.*\(20, 4\) and \(19, 5\)"):
        deconfounded_centered_kernel_alignment(x, y, inputs_for(19))
    with pytest.raises(ValueError, match=r"`inputs` must have shape.*\(20, 1, 5, 1\)"):
        deconfounded_centered_kernel_alignment(x, y, inputs_for(20)[:, None, :, None])


@pytest.mark.parametrize("project_psd", [True, False])
def test_half_precision(project_psd: bool) -> None:
    inputs = inputs_for(60)
    assert_half_precision_matches(
        partial(deconfounded_centered_kernel_alignment, inputs=inputs, project_psd=project_psd),
        partial(dcka_by_definition, inputs=inputs.numpy(), project_psd=project_psd),
    )


def test_gradients() -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(8, 3, 2))
    inputs = inputs_for(8).requires_grad_()
    assert torch.autograd.gradcheck(
        partial(deconfounded_centered_kernel_alignment, project_psd=False), (x, y, inputs)
    )
    # Rather no gradient than that of a projection which has none.
    assert not deconfounded_centered_kernel_alignment(x, y, inputs).requires_grad
