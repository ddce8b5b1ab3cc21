"""Representations that tell no samples apart have no unbiased CKA, whatever rounding and folds leave of it."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_sim.sketch import Sketch, centered_kernel_alignment_matrix
from tests.sketch import exact
from tests.sketch.data import related, sketched

NO_PAIRS = "tells no samples from others"


def one_differs(samples, width, draw, base=0.0):
    x = torch.zeros(samples, width) + base
    x[int(torch.randint(0, samples, (1,), generator=draw))] += torch.randn(width, generator=draw)
    return x


DEGENERATE = {
    "one differs": lambda n, p, draw: one_differs(n, p, draw),
    "one differs from a constant": lambda n, p, draw: one_differs(n, p, draw, 0.7),
    "one differs from a row": lambda n, p, draw: one_differs(n, p, draw, 1e3 * torch.randn(p, generator=draw)),
    "one differs, and rounding": lambda n, p, draw: (
        one_differs(n, p, draw, 0.7) * (1 + 1.2e-7 * torch.randint(-1, 2, (n, p), generator=draw))
    ),
    "equidistant": lambda n, p, draw: torch.eye(n, max(n, p)),
    "equidistant, far away": lambda n, p, draw: 3e5 * torch.eye(n, max(n, p)) + 2e6,
    "equidistant around a row": lambda n, p, draw: torch.eye(n, max(n, p)) + torch.randn(max(n, p), generator=draw),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("samples", [4, 5, 8, 64, 300, 512])
def test_nothing_but_rounding_is_no_number(samples, case):
    for seed, width in enumerate([1, 8, 700] * 2):
        draw = torch.Generator().manual_seed(seed)
        x = DEGENERATE[case](samples, width, draw)
        sketch = sketched(x, batch_size=77, seed=seed)
        other = sketched(torch.randn(samples, 6, generator=draw), seed=seed)
        values = centered_kernel_alignment_matrix([sketch, other], [sketch, other])
        assert values.isnan().tolist() == [[True, True], [True, False]]
        assert NO_PAIRS in sketch.cka_problem()
        assert other.cka_problem() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_nor_in_other_precisions(dtype):
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        x = one_differs(300, 8, draw, 0.7).to(dtype)
        sketch = sketched(x, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        assert math.isnan(sketch.cka(sketch))


# Folded, with samples that share buckets, and both: the noise of the sketch does not make a number of it either.
@pytest.mark.parametrize("case", ["one differs", "one differs from a row", "equidistant"])
@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (300, {"num_projections": 64}),
        (600, {"num_buckets": 128}),
        (700, {"num_buckets": 256, "num_projections": 64}),
        (9, {"num_buckets": 4}),
    ],
)
def test_nothing_but_noise_is_no_number(samples, sizes, case):
    for seed in range(6):
        x = DEGENERATE[case](samples, 200, torch.Generator().manual_seed(seed))
        sketch = sketched(x, seed=seed, **sizes)
        assert math.isnan(sketch.cka(sketch))
        assert sketch.cka_problem() is not None


def test_random_directions_that_folds_cannot_tell_apart_ask_for_more_columns():
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
    few, enough = (sketched(x, num_projections=projections) for projections in (256, 4096))
    for seed in range(10):  # of which some have a negative self-term
        assert "num_projections" in sketched(x, num_projections=256, seed=seed).cka_problem()
    assert math.isnan(few.cka(few))
    assert float(enough.cka(enough)) == pytest.approx(1)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(
    "sizes", [{}, {"num_projections": 256}, {"num_buckets": 128}, {"num_buckets": 128, "num_projections": 256}]
)
def test_products_of_which_one_sample_differs(sizes, offset):
    sketch, draw = Sketch(**sizes), torch.Generator().manual_seed(0)
    features = one_differs(200, 40, draw) + offset
    sketch.update(features, torch.arange(200), gradients=torch.ones(200, 30))
    assert math.isnan(sketch.cka(sketch))
    assert sketch.cka_problem() is not None


def near(samples, seed):
    """Of little variance between pairs, in which float64 loses a few digits only."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 30, generator=draw)
    dominated, tilted = x.clone(), torch.eye(samples, samples + 7)
    dominated[3] *= 1e4
    yield "one sample dominates", dominated
    yield "nearly equidistant", tilted + 1e-5 * torch.randn(tilted.shape, generator=draw)
    yield "two differ", torch.zeros(samples, 30).index_copy_(0, torch.tensor([1, 2]), x[:2])
    yield "rank one", x[:, :1] * x[:1]
    yield "little variance", 1e5 + x
    yield "clusters", torch.nn.functional.one_hot(torch.randint(0, 5, (samples,), generator=draw)).float()
    yield "many small columns", torch.cat([x[:, :1], 1e-6 * x], dim=1)
    yield "independent", torch.randn(samples, 900, generator=draw)


@pytest.mark.parametrize("samples", [8, 64, 300, 512])
def test_what_has_a_value_keeps_it(samples):
    for (name, x), (_, y) in zip(near(samples, 0), near(samples, 1), strict=True):
        y = x + 0.5 * y if name != "little variance" else y
        a, b = (sketched(z) for z in (x, y))
        assert a.cka_problem() is None, name
        assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(x, y), abs=2e-3), name
        assert float(a.cka(a)) == pytest.approx(1, abs=1e-4), name


@pytest.mark.parametrize("sizes", [{}, {"num_buckets": 256, "num_projections": 32}])
def test_digits_and_layers_of_a_network_all_have_values(sizes):
    images = torch.tensor(load_digits().data[:600], dtype=torch.float32)
    torch.manual_seed(0)
    layers = [images, images / 16, images - 8, images[:, 2:5], images**3, images[:, 20:21] * 1e-6]
    network = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 10), nn.Softmax(1))
    for layer in network:
        images = layer(images).detach()
        layers.append(images)
    values = centered_kernel_alignment_matrix(*[[sketched(x, **sizes) for x in layers]] * 2)
    truth = torch.tensor([[exact.cka_unbiased(x, y) for y in layers] for x in layers])
    assert (values - truth).abs().max() < (1e-4 if not sizes else 0.15)


def test_a_dominating_sample_among_colliding_ones_leaves_the_others_visible():
    x, y = related(2000, 20, rank=10, correlation=0.8, seed=0)
    x, y = (torch.cat([1e4 * z[:1], z[1:]]) for z in (x, y))
    truth = exact.cka_unbiased(x, y)
    values = [float(sketched(x, seed=s, num_buckets=512).cka(sketched(y, seed=s, num_buckets=512))) for s in range(8)]
    assert np.abs(np.array(values) - truth).max() < 0.15


def test_values_stay_within_the_range_and_are_nan_where_one_sample_differs_only():
    draw = torch.Generator().manual_seed(0)
    for seed in range(30):
        count = int(torch.randint(1, 4, (1,), generator=draw))
        x = torch.zeros(200, 600)
        x[torch.randperm(200, generator=draw)[:count]] = torch.rand(count, 600, generator=draw)
        layers = [x, x + 1e-4 * torch.randn(200, 600, generator=draw), x.relu() @ torch.randn(600, 600, generator=draw)]
        sketches = [sketched(z, num_projections=64, num_buckets=128, seed=seed) for z in layers]
        values = centered_kernel_alignment_matrix(sketches, sketches)
        assert values.isnan().tolist() == [[count == 1] * 3] * 3
        if count > 1:  # float64 finds 0.999 and more
            assert bool((values <= 1).all())
            assert float(values.min()) == pytest.approx(1, abs=0.01)


def test_more_samples_than_buckets_change_nothing_on_average():
    # HSIC_1 of the sketched Gram with n in the place of the ones' length, as a formula of its own.
    x, y = related(1500, 40, rank=30, correlation=0.6, seed=3)
    truth = exact.cka_unbiased(x, y)
    sizes = {"num_buckets": 256, "batch_size": 1500}
    values = [float(sketched(x, seed=seed, **sizes).cka(sketched(y, seed=seed, **sizes))) for seed in range(40)]
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / 40**0.5)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (lambda x: torch.cat([x, torch.full((300, 1), 1e8)], 1), None),
        (lambda x: x / x.abs().max() * 3e37, None),
        (lambda x: x + 1e6, None),
        (lambda x: x + 3e7, "is constant over the samples up to rounding.*of its mean.*float32.*subtract"),
        (lambda x: torch.full_like(x, 1e8), "is constant over the samples$"),
        (lambda x: x / 0, "holds NaN or infinite features, or finite ones too large for its sums$"),
    ],
)
def test_large_features_are_measured_or_named_for_what_they_are(features, problem):
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    y = features(x)
    sketch = sketched(y)
    if problem is None:
        assert sketch.problem() is None
        value, truth = float(sketch.cka(sketched(x))), exact.cka_unbiased(y.double(), x.double())
        assert value == pytest.approx(truth, abs=1e-4)
        assert float(sketch.nbs(sketched(x))) == pytest.approx(exact.nbs(y.double(), x.double()), abs=1e-2)
    else:
        assert re.search(problem, sketch.problem())


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 130])
def test_means_err_by_no_more_than_two_eps(samples):
    x = torch.randn(samples, 50, generator=torch.Generator().manual_seed(0)) + 100
    _, _, means = sketched(x).uncentered()
    torch.testing.assert_close(means[0], x.double().mean(0), rtol=2.4e-7, atol=0)


def test_sums_that_overflow_are_not_called_infinite_features():
    x = torch.rand(600, 16, generator=torch.Generator().manual_seed(0)) * 3e38
    assert "too large for its sums" in sketched(x, num_buckets=64).problem()
    wide = torch.full((300, 9000), 3e38)
    assert "finite ones too large for its folds" in sketched(wide).problem()
    assert sketched(x.double(), num_buckets=64, dtype=torch.float64).problem() is None
