from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_sim.functional import (
    centered_kernel_alignment,
    normalized_bures_similarity,
    product_kernel_similarity,
)
from tests.functional.representations import HALF_CASES, correlated_pair
from tests.functional.test_centered_kernel_alignment import cka_by_definition
from tests.functional.test_normalized_bures_similarity import nbs_by_definition
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("nbs_hadamard") + reference_rows("cka_hadamard")
MEASURES = [("cka", "unbiased"), ("cka", "biased"), ("nbs", "unbiased")]


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    return product_kernel_similarity(
        *row.arrays(dtype),
        measure=row.measure.removesuffix("_hadamard"),
        estimator="unbiased" if row.params.get("unbiased") else "biased",
        center_factors=row.params["center_factors"],
    )


def factors(n: int) -> list[Tensor]:
    """Features and gradients of two networks, correlated over the networks."""
    features, gradients = correlated_pair(n, 4, 6), correlated_pair(n, 2, 3, seed=1)
    return [features[0], gradients[0], features[1], gradients[1]]


def outer_products(features: Tensor, gradients: Tensor) -> Tensor:
    """What the product kernel is the linear kernel of: (n, p_f p_g)."""
    return torch.einsum("ni,nj->nij", features, gradients).flatten(1)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row.measure}-{row}")
def test_golden_values(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(reproduce)


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("center_factors", [True, False])
def test_linear_kernel_of_outer_products(n: int, center_factors: bool) -> None:
    # On both sides of n = 24 = the width of the outer products of y.
    given = factors(n)
    used = [z - z.mean(0) for z in given] if center_factors else given
    x, y = outer_products(*used[:2]).numpy(), outer_products(*used[2:]).numpy()
    for measure, estimator in MEASURES:
        value = product_kernel_similarity(
            *given, measure=measure, estimator=estimator, center_factors=center_factors
        )
        expected = nbs_by_definition(x, y) if measure == "nbs" else cka_by_definition(x, y, estimator)
        assert float(value) == pytest.approx(expected, rel=1e-7)


def test_constant_gradients_leave_the_features() -> None:
    x, y = correlated_pair(30, 4, 6)
    ones = torch.full((30, 1), 0.7, dtype=torch.float64)
    assert float(product_kernel_similarity(x, ones, y, -3 * ones)) == pytest.approx(
        float(centered_kernel_alignment(x, y)), rel=1e-10
    )
    assert float(product_kernel_similarity(x, ones, y, -3 * ones, measure="nbs")) == pytest.approx(
        float(normalized_bures_similarity(x, y)), rel=1e-7
    )


@pytest.mark.parametrize(("measure", "estimator"), MEASURES)
def test_a_kernel_without_variance_is_named(measure: str, estimator: str) -> None:
    similarity = partial(product_kernel_similarity, measure=measure, estimator=estimator)
    features_x, gradients_x, features_y, gradients_y = factors(20)
    constant = correlated_pair(1, 33, 1)[0].expand(20, 33)
    dead = torch.zeros_like(gradients_y)
    for given, options, side in (
        ((constant, constant, features_y, gradients_y), {}, "x"),
        ((features_x, gradients_x, features_y, dead), {}, "y"),
        ((features_x, constant, features_y, gradients_y), {"center_factors": True}, "x"),
    ):
        message = f"`features_{side}`.*`gradients_{side}` has no variance"
        with pytest.warns(UserWarning, match=message) as caught:
            assert similarity(*given, **options).isnan()
        assert [warning.filename for warning in caught] == [__file__]


def test_bad_input_is_refused() -> None:
    features_x, gradients_x, features_y, gradients_y = factors(20)
    with pytest.raises(ValueError, match=r"`features_x` and `gradients_y` must hold.*\(19, 3\)"):
        product_kernel_similarity(features_x, gradients_x, features_y, gradients_y[:19])
    with pytest.raises(ValueError, match=r"`features_y` of shape \(20, 6\) holds NaN"):
        product_kernel_similarity(features_x, gradients_x, features_y * torch.nan, gradients_y)
    with pytest.raises(ValueError, match="need at least 4 rows"):
        product_kernel_similarity(*(z[:3] for z in factors(20)))
    assert product_kernel_similarity(*(z[:3] for z in factors(20)), measure="nbs").isfinite()
    with pytest.raises(ValueError, match="`measure` must be one of 'cka', 'nbs', got 'rsa'"):
        product_kernel_similarity(*factors(20), measure="rsa")
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        product_kernel_similarity(*factors(20), estimator="debiased")


@pytest.mark.parametrize(("measure", "estimator"), MEASURES)
@pytest.mark.parametrize("center_factors", [True, False])
def test_half_precision(measure: str, estimator: str, center_factors: bool) -> None:
    measured = 0
    for dtype, mean, scale in HALF_CASES:
        given = [(mean + scale * z / z.std()).to(dtype) for z in factors(60)]
        if mean / scale > 1e3:  # the rounded values are constant
            continue
        value = product_kernel_similarity(
            *given, measure=measure, estimator=estimator, center_factors=center_factors
        )
        wide = [z.double() for z in given]
        used = [z - z.mean(0) for z in wide] if center_factors else wide
        x, y = outer_products(*used[:2]).numpy(), outer_products(*used[2:]).numpy()
        expected = nbs_by_definition(x, y) if measure == "nbs" else cka_by_definition(x, y, estimator)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(expected, rel=5e-3, abs=1e-6), (dtype, mean, scale)
        measured += 1
    assert measured == 10


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_gradients(estimator: str) -> None:
    given = [z.requires_grad_() for z in factors(7)]
    assert torch.autograd.gradcheck(partial(product_kernel_similarity, estimator=estimator), given)
    assert not product_kernel_similarity(*given, measure="nbs").requires_grad
