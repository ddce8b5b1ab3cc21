"""What the measures of weights and of outputs ignore, their range and their symmetry, on random data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_sim.functional import (
    jensen_shannon_divergence,
    pearson_correlation,
    prediction_agreement,
    rank_correlation,
    spearman_correlation,
    weight_centered_kernel_alignment,
)
from tests.functional.test_properties import bounded, replaced, seeds

# Weights


def chain(draw: np.random.Generator, inputs: int, depth: int) -> list[Tensor]:
    widths = [inputs, *draw.integers(3, 8, depth)]
    return [torch.from_numpy(draw.standard_normal(shape)) for shape in itertools.pairwise(widths)]


def relu_network(weights: list[Tensor], inputs: Tensor) -> Tensor:
    for weight in weights[:-1]:
        inputs = torch.relu(inputs @ weight)
    return inputs @ weights[-1]


two_chains = given(seed=seeds, depths=st.tuples(st.integers(2, 4), st.integers(1, 4)), center=st.booleans())


@bounded
@two_chains
def test_wcka_ignores_the_order_of_hidden_units(seed: int, depths: tuple[int, int], center: bool) -> None:
    draw = np.random.default_rng(seed)
    a, b = (chain(draw, 9, depth) for depth in depths)
    permuted, last = [], torch.arange(9)
    for weight in a[:-1]:
        order = torch.from_numpy(draw.permutation(weight.shape[1]))
        permuted.append(weight[last][:, order])
        last = order
    permuted.append(a[-1][last])
    inputs = torch.from_numpy(draw.standard_normal((5, 9)))
    torch.testing.assert_close(relu_network(permuted, inputs), relu_network(a, inputs))
    torch.testing.assert_close(
        weight_centered_kernel_alignment(permuted, b, center=center),
        weight_centered_kernel_alignment(a, b, center=center),
    )


@bounded
@two_chains
def test_wcka_ignores_rescalings_that_the_next_layer_undoes(seed: int, depths: tuple[int, int], center: bool) -> None:
    draw = np.random.default_rng(seed)
    a, b = (chain(draw, 9, depth) for depth in depths)
    layer = int(draw.integers(depths[0] - 1))
    scales = torch.from_numpy(np.geomspace(0.1, 10, a[layer].shape[1]))
    rescaled = replaced(replaced(a, layer, a[layer] * scales), layer + 1, a[layer + 1] / scales[:, None])
    inputs = torch.from_numpy(draw.standard_normal((5, 9)))
    torch.testing.assert_close(relu_network(rescaled, inputs), relu_network(a, inputs))
    before = weight_centered_kernel_alignment(a, b, center=center)
    after = weight_centered_kernel_alignment(rescaled, b, center=center)
    undone = [i for i in range(depths[0]) if i != layer]
    torch.testing.assert_close(after[undone], before[undone])
    # The prefix that ends between the two layers is another map of the inputs.
    assert (after[layer] - before[layer]).abs().max() > 1e-3


@bounded
@two_chains
def test_wcka_scale_symmetry_range_and_identity(seed: int, depths: tuple[int, int], center: bool) -> None:
    draw = np.random.default_rng(seed)
    a, b = (chain(draw, 9, depth) for depth in depths)
    value = weight_centered_kernel_alignment(a, b, center=center)
    assert value.shape == depths
    assert ((value >= 0) & (value <= 1)).all()
    torch.testing.assert_close(weight_centered_kernel_alignment(b, a, center=center), value.T)
    itself = weight_centered_kernel_alignment(a, a, center=center)
    torch.testing.assert_close(itself.diagonal(), torch.ones(depths[0], dtype=torch.float64))
    scaled = [weight * factor for weight, factor in zip(a, draw.uniform(-10, 10, depths[0]), strict=True)]
    torch.testing.assert_close(weight_centered_kernel_alignment(scaled, b, center=center), value)
    order = torch.from_numpy(draw.permutation(9))
    reordered = [[weights[0][order], *weights[1:]] for weights in (a, b)]
    torch.testing.assert_close(weight_centered_kernel_alignment(*reordered, center=center), value)


# Outputs


def two_logits(seed: int) -> tuple[Tensor, Tensor, np.random.Generator]:
    draw = np.random.default_rng(seed)
    shape = (int(draw.integers(1, 20)), int(draw.integers(2, 8)))
    a = draw.standard_normal(shape) * 10 ** draw.uniform(-2, 2)
    b = a * draw.choice([0.0, 1.0]) + draw.standard_normal(shape) * 10 ** draw.uniform(-2, 2)
    return torch.from_numpy(a), torch.from_numpy(b), draw


OUTPUTS = {
    "agreement": (prediction_agreement, 0.0, 1.0, 1.0),
    "divergence": (jensen_shannon_divergence, 0.0, math.log(2), 0.0),
    "divergence_in_bits": (partial(jensen_shannon_divergence, base=2), 0.0, 1.0, 0.0),
    "rank_correlation": (rank_correlation, -1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", OUTPUTS)
@settings(bounded, max_examples=30)
@given(seed=seeds)
def test_output_measures(name: str, seed: int) -> None:
    function, low, high, itself = OUTPUTS[name]
    a, b, draw = two_logits(seed)
    value = function(a, b)
    assert low <= float(value) <= high
    assert float(function(a, a)) == pytest.approx(itself, abs=1e-12)
    torch.testing.assert_close(function(b, a), value)
    samples, classes = (torch.from_numpy(draw.permutation(size)) for size in a.shape)
    torch.testing.assert_close(function(a[samples], b[samples]), value)
    torch.testing.assert_close(function(a[:, classes], b[:, classes]), value)
    # Softmax does not see a constant added to all logits of a sample.
    shifts = torch.from_numpy(draw.integers(-50, 50, (len(a), 1)))
    torch.testing.assert_close(function(a + shifts, b), value, rtol=1e-6, atol=1e-10)


@bounded
@given(seed=seeds)
def test_rankings_ignore_increasing_maps_of_the_logits(seed: int) -> None:
    a, b, _ = two_logits(seed)
    for function in (prediction_agreement, rank_correlation):
        assert function(a.sinh(), b) == function(a, b)
        assert function(a, 0.01 * b) == function(a, b)


def test_divergence_sees_what_rankings_ignore() -> None:
    changes = []
    for seed in range(8):
        a, b, _ = two_logits(seed)
        changes.append(abs(float(jensen_shannon_divergence(a, 0.01 * b) - jensen_shannon_divergence(a, b))))
    assert np.median(changes) > 1e-3


@bounded
@given(seed=seeds)
def test_divergence_is_largest_for_disjoint_predictions_and_bits_are_nats(seed: int) -> None:
    a, b, _ = two_logits(seed)
    nats, bits = jensen_shannon_divergence(a, b), jensen_shannon_divergence(a, b, base=2)
    torch.testing.assert_close(bits * math.log(2), nats)
    first, last = torch.full_like(a, -math.inf), torch.full_like(a, -math.inf)
    first[:, 0], last[:, -1] = 1, 1
    assert float(jensen_shannon_divergence(first, last)) == pytest.approx(math.log(2), rel=1e-12)


# Correlation of two measures


@pytest.mark.parametrize("correlation", [pearson_correlation, spearman_correlation])
@settings(bounded, max_examples=30)
@given(seed=seeds)
def test_correlation_of_measures(correlation: Callable[..., tuple[float, ...]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    a = torch.from_numpy(draw.standard_normal(int(draw.integers(5, 30))))
    b = a * draw.uniform(-2, 2) + torch.from_numpy(draw.standard_normal(len(a)))
    result = correlation(a, b)
    assert -1 <= result.low <= result.value <= result.high <= 1
    assert 0 <= result.p_value <= 1
    assert np.sign(result.slope) == np.sign(pearson_correlation(a, b).value)
    assert correlation(b, a)[:4] == pytest.approx(result[:4], rel=1e-9)
    assert correlation(3 * a + 7, b)[:4] == pytest.approx(result[:4], rel=1e-9)
    assert correlation(3 * a + 7, b).slope == pytest.approx(result.slope / 3, rel=1e-9)
    assert correlation(-a, b).value == pytest.approx(-result.value, rel=1e-9)
    assert (correlation(a.exp(), b).value == pytest.approx(result.value)) == (correlation is spearman_correlation)
