from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from lightning_sim.functional import mutual_knn, neighbors
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("mutual_knn")
METRICS = ("cosine", "euclidean", "inner_product")


def brute_force(x: np.ndarray, y: np.ndarray, k: int, metric: str) -> float:
    """Neighbours by a stable sort of all scores, one sample at a time."""
    if metric == "cosine":
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    total = 0
    for i in range(len(x)):
        near = []
        for z in (x, y):
            scores = -((z - z[i]) ** 2).sum(1) if metric == "euclidean" else (z * z[i]).sum(1)
            order = [j for j in np.argsort(-scores, kind="stable") if j != i]
            near.append(set(order[:k]))
        total += len(near[0] & near[1])
    return total / (len(x) * k)


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    return mutual_knn(*row.arrays(dtype), **row.params)


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: the scores are computed in float64.
    row.assert_reproduced_in_both_dtypes(reproduce, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 4, 29])
def test_brute_force(metric: str, k: int) -> None:
    x, y = correlated_pair(30, 5, 3)
    assert float(mutual_knn(x, y, k=k, metric=metric)) == pytest.approx(brute_force(x.numpy(), y.numpy(), k, metric))


def exact_order(rows: np.ndarray, i: int, metric: str) -> list[int]:
    """The other rows of an integer matrix from near to far in rational arithmetic, ties by index."""
    z = rows.astype(int)

    def score(j: int) -> Fraction:
        if metric == "euclidean":
            return Fraction(-int(((z[i] - z[j]) ** 2).sum()))
        product = int(z[i] @ z[j])
        if metric == "inner_product" or product == 0:
            return Fraction(product)
        return Fraction(product * abs(product), int(z[i] @ z[i]) * int(z[j] @ z[j]))  # the signed square

    return sorted((j for j in range(len(z)) if j != i), key=lambda j: (-score(j), j))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_ties_go_to_the_lower_index(metric: str, scale: float) -> None:
    # Few distinct rows, zeros among them: ties are everywhere, when scaled by 0.1 up to rounding only.
    generator = np.random.default_rng(0)
    for _ in range(10):
        x, y = generator.integers(-2, 3, (30, 2)), generator.integers(-2, 3, (30, 3))
        near = [[exact_order(z, i, metric) for i in range(30)] for z in (x, y)]
        for k in (1, 5, 20):
            expected = np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(*near, strict=True)])
            value = mutual_knn(torch.from_numpy(x * scale), torch.from_numpy(y * scale), k=k, metric=metric)
            assert float(value) == pytest.approx(expected)


def test_a_sample_is_not_its_own_neighbour() -> None:
    # Nearest in x: 1, 0, 3, 2; in y: 2, 3, 0, 1. If each sample counted itself, all would agree.
    x = torch.tensor([[0.0], [1.0], [50.0], [51.0]])
    y = torch.tensor([[0.0], [50.0], [1.0], [51.0]])
    assert mutual_knn(x, y, k=1, metric="euclidean") == 0


@pytest.mark.parametrize("entries", [1, 100, 1000])
def test_blocks_give_the_same_value_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    x, y = correlated_pair(50, 5, 3)
    expected = brute_force(x.numpy(), y.numpy(), 7, "euclidean")
    sizes = []
    search = neighbors._neighbors

    def spy(sought: neighbors._Search, block: torch.Tensor, k: int) -> torch.Tensor:
        sizes.append(len(block) * len(sought.rows))
        return search(sought, block, k)

    monkeypatch.setattr(neighbors, "_neighbors", spy)
    monkeypatch.setattr(neighbors, "_BLOCK_ENTRIES", entries)
    assert float(mutual_knn(x, y, k=7, metric="euclidean")) == pytest.approx(expected)
    assert max(sizes) <= max(entries, 50)  # at least one row of 50
    assert sum(sizes) == 2 * 50 * 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_half_precision(dtype: torch.dtype, metric: str, scale: float) -> None:
    # Not continuous, but exact for the rounded numbers as long as their scores are distinct.
    x, y = ((scale * z / z.std()).to(dtype) for z in correlated_pair(30, 5, 3))
    expected = brute_force(x.double().numpy(), y.double().numpy(), 5, metric)
    assert float(mutual_knn(x, y, k=5, metric=metric)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "mean", "dtype"),
    [("cosine", 1e3, torch.float32), ("euclidean", 1e3, torch.float32), ("euclidean", 1e7, torch.float64)],
)
def test_large_mean(metric: str, mean: float, dtype: torch.dtype) -> None:
    x, y = ((z + mean).to(dtype) for z in correlated_pair(60, 5, 3))
    expected = brute_force(x.double().numpy(), y.double().numpy(), 5, metric)
    assert float(mutual_knn(x, y, k=5, metric=metric)) == pytest.approx(expected, rel=1e-6)


def test_expected_value_for_independent_data() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        mutual_knn(torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator), k=6)
        for _ in range(200)
    ]
    # The standard error of the mean over 200 pairs is 0.0015.
    assert float(torch.stack(values).mean()) == pytest.approx(6 / 39, abs=0.006)


@pytest.mark.parametrize("metric", METRICS)
def test_constant_sides_are_named(metric: str) -> None:
    assert_constant_sides_are_named(partial(mutual_knn, metric=metric))


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(partial(mutual_knn, k=1))
    x, y = correlated_pair(20, 4, 3)
    for k in (0, -1, 2.0, "3", True, None):
        with pytest.raises(ValueError, match=f"`k` must be an integer, at least 1, got {k!r}"):
            mutual_knn(x, y, k=k)
    for k in (20, 21):
        with pytest.raises(ValueError, match=rf"`k` must be between 1 and 19.*20 samples, got {k} .*\(20, 4\)"):
            mutual_knn(x, y, k=k)
    with pytest.raises(ValueError, match=r"need at least 3 rows \(samples\), got shapes \(2, 4\)"):
        mutual_knn(x[:2], y[:2], k=1)  # each would be the other's neighbour, whatever they hold
    with pytest.raises(ValueError, match="`metric` must be one of 'cosine', 'euclidean', 'inner_product', got 'l2'"):
        mutual_knn(x, y, metric="l2")
