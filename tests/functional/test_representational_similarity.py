from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import pdist

from lightning_sim.functional import representational_similarity_analysis
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("rsa")
OPTIONS = list(itertools.product(("correlation", "euclidean"), ("spearman", "pearson")))


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    return representational_similarity_analysis(
        *row.arrays(dtype), dissimilarity=row.params["rdm"], compare=row.params["compare"]
    )


def by_scipy(x: np.ndarray, y: np.ndarray, dissimilarity: str, compare: str) -> float:
    a, b = (pdist(z, dissimilarity) for z in (x, y))
    if not np.isfinite((a, b)).all():  # which older versions of SciPy refuse
        return np.nan
    if compare == "pearson":
        return float(scipy.stats.pearsonr(a, b).statistic)
    # Without this the rounding in pdist ranks pairs that are equally dissimilar.
    return float(scipy.stats.spearmanr(*(np.round(d / d.max(), 12) for d in (a, b))).statistic)


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(reproduce)


@pytest.mark.parametrize(("dissimilarity", "compare"), OPTIONS)
def test_scipy(dissimilarity: str, compare: str) -> None:
    x, y = correlated_pair(25, 5, 4)
    value = representational_similarity_analysis(x, y, dissimilarity=dissimilarity, compare=compare)
    assert float(value) == pytest.approx(by_scipy(x.numpy(), y.numpy(), dissimilarity, compare), rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("p", [1, 6])
def test_ties_get_average_ranks(p: int, shift: float) -> None:
    # Squared distances of binary rows are integers, most of them tied; after the shift, up to rounding.
    x, y = np.random.default_rng(0).integers(0, 2, (2, 15, p)).astype(float)
    squared_distances = [pdist(z, "sqeuclidean").round() for z in (x, y)]
    value = representational_similarity_analysis(
        torch.from_numpy(x + shift * np.arange(p)), torch.from_numpy(y), dissimilarity="euclidean"
    )
    assert float(value) == pytest.approx(scipy.stats.spearmanr(*squared_distances).statistic, rel=1e-12)


def test_ties_of_correlations_get_average_ranks() -> None:
    # Rows with two ones of six, each scaled and shifted as a whole: correlations are -1/2, 1/4 up to rounding.
    draw = np.random.default_rng(0)
    rows = np.array([[float(j in pair) for j in range(6)] for pair in itertools.combinations(range(6), 2)])
    x, y = rows, rows[draw.permutation(len(rows))]
    overlaps = [(z @ z.T)[np.triu_indices(len(z), 1)] for z in (x, y)]
    x, y = (z * draw.uniform(0.1, 10, (len(z), 1)) + draw.standard_normal((len(z), 1)) for z in (x, y))
    value = representational_similarity_analysis(torch.from_numpy(x), torch.from_numpy(y))
    assert float(value) == pytest.approx(scipy.stats.spearmanr(*overlaps).statistic, rel=1e-12)


@pytest.mark.parametrize(("dissimilarity", "compare"), OPTIONS)
def test_half_precision(dissimilarity: str, compare: str) -> None:
    assert_half_precision_matches(
        partial(representational_similarity_analysis, dissimilarity=dissimilarity, compare=compare),
        partial(by_scipy, dissimilarity=dissimilarity, compare=compare),
    )


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
def test_constant_sides_are_named(dissimilarity: str) -> None:
    assert_constant_sides_are_named(partial(representational_similarity_analysis, dissimilarity=dissimilarity))


def test_undefined_dissimilarities_are_named() -> None:
    x, y = correlated_pair(10, 4, 3)
    with pytest.warns(UserWarning, match="`y` holds samples with the same value in all features"):
        assert representational_similarity_analysis(x, y[:, :1]).isnan()
    dead = x.clone()
    dead[3] = 0
    with pytest.warns(UserWarning, match="`x` holds samples with the same value in all features"):
        assert representational_similarity_analysis(dead, y).isnan()
    assert representational_similarity_analysis(dead, y, dissimilarity="euclidean").isfinite()
    simplex = torch.eye(10)
    for compare in ("spearman", "pearson"):
        with pytest.warns(UserWarning, match="`y` has only equally dissimilar pairs of samples"):
            assert representational_similarity_analysis(x, simplex, dissimilarity="euclidean", compare=compare).isnan()


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(representational_similarity_analysis)
    x, y = correlated_pair(20, 4, 3)
    with pytest.raises(ValueError, match="at least 3 rows"):
        representational_similarity_analysis(x[:2], y[:2])
    with pytest.raises(ValueError, match="`dissimilarity` must be one of 'correlation', 'euclidean', got 'cosine'"):
        representational_similarity_analysis(x, y, dissimilarity="cosine")
    with pytest.raises(ValueError, match="`compare` must be one of 'spearman', 'pearson', got 'kendall'"):
        representational_similarity_analysis(x, y, compare="kendall")


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
def test_gradients(dissimilarity: str) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(8, 4, 3))
    assert torch.autograd.gradcheck(
        partial(representational_similarity_analysis, dissimilarity=dissimilarity, compare="pearson"), (x, y)
    )
