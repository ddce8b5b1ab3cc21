"""What every measure ignores, what it does not, its range and its symmetry, on random data.

What HSIC, CKA, CCA, SVCCA, PWCCA and linear regression ignore is Table 1 of Kornblith et al. 2019. It is told here
for each argument by itself: PWCCA, for one, is sensitive to the side that gives the weights only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_sim.functional import (
    angular_procrustes_distance,
    canonical_correlation,
    centered_kernel_alignment,
    deconfounded_centered_kernel_alignment,
    hsic,
    linear_regression_r2,
    minibatch_centered_kernel_alignment,
    mutual_knn,
    normalized_bures_similarity,
    procrustes_distance,
    product_kernel_similarity,
    pwcca,
    representational_similarity_analysis,
    svcca,
)

bounded = settings(max_examples=10, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 2**32 - 1)

INVERTIBLE, ORTHOGONAL, SCALING, TRANSLATION = "invertible linear", "orthogonal", "isotropic scaling", "translation"
MAPS = (INVERTIBLE, ORTHOGONAL, SCALING, TRANSLATION)
ALL = {INVERTIBLE, ORTHOGONAL, SCALING, TRANSLATION}
SHAPE = {ORTHOGONAL, SCALING, TRANSLATION}


@dataclass(frozen=True)
class Measure:
    """A function of matrices with the same samples, and what is claimed of it."""

    function: Callable[..., Tensor]
    ignores: tuple[set[str], ...]  # which maps of each argument
    low: float
    high: float
    itself: float | None = 1.0  # the value for two equal sides
    symmetric: bool = True
    permutable: bool = True  # the order of the samples does not matter
    sides: tuple[tuple[int, ...], tuple[int, ...]] = ((0,), (1,))  # positions of the arguments of x and of y

    def swap(self, arguments: list[Tensor]) -> list[Tensor]:
        return self._replace(
            arguments, {**dict(zip(*self.sides, strict=True)), **dict(zip(*self.sides[::-1], strict=True))}
        )

    def equal_sides(self, arguments: list[Tensor]) -> list[Tensor]:
        return self._replace(arguments, dict(zip(*self.sides[::-1], strict=True)))

    def _replace(self, arguments: list[Tensor], sources: dict[int, int]) -> list[Tensor]:
        return [arguments[sources.get(position, position)] for position in range(len(arguments))]


cka, rsa, product = centered_kernel_alignment, representational_similarity_analysis, product_kernel_similarity
four = ((0, 1), (2, 3))
MEASURES = {
    "hsic_unbiased": Measure(hsic, ({ORTHOGONAL, TRANSLATION},) * 2, -math.inf, math.inf, None),
    "hsic_biased": Measure(partial(hsic, estimator="biased"), ({ORTHOGONAL, TRANSLATION},) * 2, 0, math.inf, None),
    "cka": Measure(cka, (SHAPE,) * 2, -1, 1),
    "cka_biased": Measure(partial(cka, estimator="biased"), (SHAPE,) * 2, 0, 1),
    "cka_uncentred": Measure(partial(cka, estimator="biased", center=False), ({ORTHOGONAL, SCALING},) * 2, 0, 1),
    "cka_rbf": Measure(partial(cka, kernel="rbf", bandwidth=0.5), (SHAPE,) * 2, -1, 1),
    "cka_rbf_biased": Measure(
        partial(cka, kernel="rbf", estimator="biased", bandwidth_rule="median_squared"), (SHAPE,) * 2, 0, 1
    ),
    "cka_minibatch": Measure(
        partial(minibatch_centered_kernel_alignment, batch_size=6), (SHAPE,) * 2, -1, 1, permutable=False
    ),
    "cka_deconfounded": Measure(deconfounded_centered_kernel_alignment, (SHAPE,) * 3, 0, 1),
    "cka_deconfounded_unprojected": Measure(
        partial(deconfounded_centered_kernel_alignment, project_psd=False), (SHAPE,) * 3, -1, 1
    ),
    "nbs": Measure(normalized_bures_similarity, (SHAPE,) * 2, 0, 1),
    "product_cka": Measure(product, ({ORTHOGONAL, SCALING},) * 4, -1, 1, sides=four),
    "product_cka_of_centred_factors": Measure(
        partial(product, center_factors=True, estimator="biased"), (SHAPE,) * 4, 0, 1, sides=four
    ),
    "product_nbs": Measure(partial(product, measure="nbs"), ({ORTHOGONAL, SCALING},) * 4, 0, 1, sides=four),
    "cca_mean": Measure(canonical_correlation, (ALL,) * 2, 0, 1),
    "cca_mean_squared": Measure(partial(canonical_correlation, summary="mean_squared"), (ALL,) * 2, 0, 1),
    "cca_min_rank": Measure(partial(canonical_correlation, divisor="min_rank"), (ALL,) * 2, 0, 1),
    "svcca": Measure(partial(svcca, variance=0.9), (SHAPE,) * 2, 0, 1),
    "svcca_mean_squared": Measure(partial(svcca, variance=0.9, summary="mean_squared"), (SHAPE,) * 2, 0, 1),
    "pwcca": Measure(pwcca, ({SCALING, TRANSLATION}, ALL), 0, 1, symmetric=False),
    "pwcca_from_y": Measure(partial(pwcca, weights_from="y"), (ALL, {SCALING, TRANSLATION}), 0, 1, symmetric=False),
    "linear_regression": Measure(linear_regression_r2, (SHAPE, ALL), 0, 1, symmetric=False),
    "procrustes": Measure(procrustes_distance, (SHAPE,) * 2, 0, math.sqrt(2), 0),
    "procrustes_squared": Measure(partial(procrustes_distance, squared=True), (SHAPE,) * 2, 0, 2, 0),
    "procrustes_size_and_shape": Measure(
        partial(procrustes_distance, normalize=False), ({ORTHOGONAL, TRANSLATION},) * 2, 0, math.inf, 0
    ),
    "procrustes_uncentred": Measure(
        partial(procrustes_distance, center=False), ({ORTHOGONAL, SCALING},) * 2, 0, math.sqrt(2), 0
    ),
    "procrustes_angular": Measure(angular_procrustes_distance, (SHAPE,) * 2, 0, math.pi / 2, 0),
    "procrustes_angular_uncentred": Measure(
        partial(angular_procrustes_distance, center=False), ({ORTHOGONAL, SCALING},) * 2, 0, math.pi / 2, 0
    ),
    "knn_cosine": Measure(partial(mutual_knn, k=3), ({ORTHOGONAL, SCALING},) * 2, 0, 1),
    "knn_euclidean": Measure(partial(mutual_knn, k=3, metric="euclidean"), (SHAPE,) * 2, 0, 1),
    "knn_inner_product": Measure(partial(mutual_knn, k=3, metric="inner_product"), ({ORTHOGONAL, SCALING},) * 2, 0, 1),
    "rsa_correlation": Measure(rsa, ({SCALING},) * 2, -1, 1),
    "rsa_correlation_pearson": Measure(partial(rsa, compare="pearson"), ({SCALING},) * 2, -1, 1),
    "rsa_euclidean": Measure(partial(rsa, dissimilarity="euclidean"), (SHAPE,) * 2, -1, 1),
    "rsa_euclidean_pearson": Measure(partial(rsa, dissimilarity="euclidean", compare="pearson"), (SHAPE,) * 2, -1, 1),
}
PAIR = MEASURES["cka"]  # for tests that need any two representations
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def arguments_of(measure: Measure, draw: np.random.Generator) -> list[Tensor]:
    """Matrices of full rank with shared factors, widths 3 to 6 and means that are not zero."""
    n = int(draw.integers(14, 25))
    factors = draw.standard_normal((n, 3))
    widths = draw.integers(3, 7, len(measure.ignores))
    return [
        torch.from_numpy(
            factors @ draw.standard_normal((3, p)) + draw.standard_normal((n, p)) + draw.standard_normal(p)
        )
        for p in widths
    ]


def mapped(x: Tensor, kind: str, draw: np.random.Generator) -> Tensor:
    p = x.shape[1]
    if kind == SCALING:
        return x * float(draw.choice([-1, 1]) * 10 ** draw.uniform(-3, 3))
    if kind == TRANSLATION:
        return x + torch.from_numpy(10 * draw.standard_normal(p))
    left, right = (np.linalg.qr(draw.standard_normal((p, p)))[0] for _ in range(2))
    stretch = np.ones(p) if kind == ORTHOGONAL else np.geomspace(0.1, 10, p)
    return x @ torch.from_numpy(left * stretch @ right)


def replaced(arguments: list[Tensor], position: int, by: Tensor) -> list[Tensor]:
    return [*arguments[:position], by, *arguments[position + 1 :]]


def joint_permutation(arguments: list[Tensor], draw: np.random.Generator) -> list[Tensor]:
    order = torch.from_numpy(draw.permutation(len(arguments[0])))
    return [argument[order] for argument in arguments]


def one_side_permuted(measure: Measure, arguments: list[Tensor], draw: np.random.Generator) -> list[Tensor]:
    order = torch.from_numpy(draw.permutation(len(arguments[0])))
    for position in measure.sides[0]:
        arguments = replaced(arguments, position, arguments[position][order])
    return arguments


def changed_arguments(
    measure: Measure, arguments: list[Tensor], draw: np.random.Generator
) -> Iterator[tuple[str, bool, list[Tensor]]]:
    """What is done to the arguments, whether the measure ignores it, and the arguments afterwards."""
    for position, ignored in enumerate(measure.ignores):
        for kind in MAPS:
            changed = replaced(arguments, position, mapped(arguments[position], kind, draw))
            yield f"{kind} map of argument {position}", kind in ignored, changed
    yield "swapped sides", measure.symmetric, measure.swap(arguments)
    yield "another order of the samples", measure.permutable, joint_permutation(arguments, draw)
    # A measure of each side by itself would be seen through here alone.
    yield "another order of one side's samples", False, one_side_permuted(measure, arguments, draw)


@every_measure
@bounded
@given(seed=seeds)
def test_what_it_ignores(measure: Measure, seed: int) -> None:
    draw = np.random.default_rng(seed)
    arguments = arguments_of(measure, draw)
    value = float(measure.function(*arguments))
    for change, ignored, changed in changed_arguments(measure, arguments, draw):
        if ignored:
            assert float(measure.function(*changed)) == pytest.approx(value, rel=1e-8, abs=1e-8), change


@every_measure
def test_what_it_does_not_ignore(measure: Measure) -> None:
    relative_changes: dict[str, list[float]] = {}
    for seed in range(8):
        draw = np.random.default_rng(seed)
        arguments = arguments_of(measure, draw)
        value = float(measure.function(*arguments))
        for change, ignored, changed in changed_arguments(measure, arguments, draw):
            if not ignored:
                relative_changes.setdefault(change, []).append(abs(float(measure.function(*changed)) / value - 1))
    # Not on a rare example: typically, and by far more than rounding.
    assert {change: found for change, found in relative_changes.items() if not np.median(found) > 1e-3} == {}
    assert np.median(relative_changes["another order of one side's samples"]) > 1e-2


@every_measure
@bounded
@given(seed=seeds)
def test_range_and_the_value_of_equal_sides(measure: Measure, seed: int) -> None:
    draw = np.random.default_rng(seed)
    arguments = arguments_of(measure, draw)
    unrelated = [torch.from_numpy(draw.standard_normal(argument.shape)) for argument in arguments]
    equal = float(measure.function(*measure.equal_sides(arguments)))
    for value in (equal, float(measure.function(*arguments)), float(measure.function(*unrelated))):
        assert measure.low <= value <= measure.high
    if measure.itself is None:
        assert equal > 0
    else:
        assert equal == pytest.approx(measure.itself, abs=1e-10)


@bounded
@given(seed=seeds)
def test_cosine_neighbours_ignore_the_length_of_each_sample(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = arguments_of(PAIR, draw)
    lengths = torch.from_numpy(draw.uniform(0.1, 10, (len(x), 1)))
    assert mutual_knn(lengths * x, y, k=3) == mutual_knn(x, y, k=3)
    assert mutual_knn(lengths * x, x, k=3, metric="inner_product") < 1
    assert mutual_knn(lengths * x, x, k=3, metric="euclidean") < 1


@every_measure
def test_the_least_samples_that_are_accepted_have_a_value(measure: Measure) -> None:
    arguments = arguments_of(measure, np.random.default_rng(0))
    for samples in range(1, 8):
        few = [argument[:samples] for argument in arguments]
        with contextlib.suppress(ValueError):  # NaN would warn
            assert not measure.function(*few).isnan()
            assert samples > 1
            return
    pytest.fail("refuses 7 samples")
