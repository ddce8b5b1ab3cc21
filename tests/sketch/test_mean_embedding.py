import math

import pytest
import torch

from lightning_sim.functional import kernel_mean_embedding_norm
from lightning_sim.sketch import Sketch, Tang2020Sketch, mean_embedding_norm

FORMS = (None, "diagonal", "frobenius")


def features(samples, width, *, rank=20, seed=0, spread=0.3):
    """Of low rank, with a mean, and samples of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, rank, generator=draw) @ torch.randn(rank, width, generator=draw) / rank**0.5
    x = x + 0.4 * torch.randn(width, generator=draw)
    return x * torch.exp(spread * torch.randn(samples, 1, generator=draw))


def sketched(x, ids=None, gradients=None, **sizes):
    sketch = Sketch(**sizes)
    ids = torch.arange(len(x)) if ids is None else ids
    for rows in torch.arange(len(x)).split(300):
        sketch.update(x[rows], ids[rows], gradients=None if gradients is None else gradients[rows])
    return sketch


@pytest.mark.parametrize("normalization", FORMS)
@pytest.mark.parametrize("samples", [1, 2, 100, 512])
def test_it_is_exact_without_collisions_and_folds(samples, normalization):
    x = features(samples, 60)
    expected = float(kernel_mean_embedding_norm(x.double(), normalization=normalization))
    value = float(mean_embedding_norm(sketched(x, num_buckets=512, num_projections=64), normalization=normalization))
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalization", FORMS)
def test_of_features_and_gradients_it_is_that_of_the_product_kernel(normalization):
    x, g = features(200, 30), features(200, 6, seed=1)
    exact = float(kernel_mean_embedding_norm(x.double(), g.double(), normalization=normalization))
    unfolded = sketched(x, gradients=g, num_projections=180)
    assert float(mean_embedding_norm(unfolded, normalization=normalization)) == pytest.approx(exact, rel=1e-5)
    folded = [sketched(x, gradients=g, num_projections=128, seed=seed) for seed in range(40)]
    values = [float(mean_embedding_norm(sketch, normalization=normalization)) for sketch in folded]
    assert sum(values) / 40 == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize("normalization", FORMS)
@pytest.mark.parametrize(("rank", "spread"), [(20, 0.3), (300, 1.0)])
def test_with_collisions_and_folds_it_is_right_on_average(rank, spread, normalization):
    x = features(2000, 300, rank=rank, spread=spread)
    expected = float(kernel_mean_embedding_norm(x.double(), normalization=normalization))
    values = []
    for seed in range(20):
        order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
        sketch = sketched(x, order, num_buckets=256, num_projections=128, seed=seed)
        values.append(float(mean_embedding_norm(sketch, normalization=normalization)))
    # The standard error of the mean of 20 is 0.012 for the first two, and 0.023 for the third.
    assert torch.tensor(values).mean().item() == pytest.approx(expected, rel=0.06)
    assert max(abs(value / expected - 1) for value in values) < 0.4


def test_hashed_ids_collide_also_where_there_are_fewer_samples_than_buckets():
    x = features(400, 60, spread=1.0)
    expected = float(kernel_mean_embedding_norm(x.double(), normalization="frobenius"))
    values = []
    for seed in range(20):
        ids = torch.randint(0, 2**40, (400,), generator=torch.Generator().manual_seed(seed))
        sketch = sketched(x, ids, num_buckets=512, num_projections=64, seed=seed)
        assert int((sketch.uncentered()[1] != 0).sum()) < 400
        values.append(float(mean_embedding_norm(sketch, normalization="frobenius")))
    assert sum(values) / 20 == pytest.approx(expected, rel=0.03)


def test_shares_of_the_samples_add_up():
    x = features(100, 60)
    a, b = sketched(x[:30]), sketched(x[30:], torch.arange(30, 100))
    a.merge(b)
    for normalization in FORMS:
        expected = float(kernel_mean_embedding_norm(x.double(), normalization=normalization))
        assert float(mean_embedding_norm(a, normalization=normalization)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalization", FORMS[1:])
def test_normalised_forms_are_one_for_equal_samples_and_undefined_for_zeros(normalization):
    x = features(1, 60).expand(100, 60)
    assert float(mean_embedding_norm(sketched(x), normalization=normalization)) == pytest.approx(1, abs=1e-6)
    zero = sketched(torch.zeros(100, 60))
    assert math.isnan(mean_embedding_norm(zero, normalization=normalization))
    assert float(mean_embedding_norm(zero)) == 0


@pytest.mark.parametrize("normalization", FORMS)
def test_nan_features_give_nan(normalization):
    x = features(100, 60)
    x[3, 7] = math.nan
    assert math.isnan(mean_embedding_norm(sketched(x), normalization=normalization))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`normalization`.*'trace'"):
        mean_embedding_norm(sketched(features(5, 3)), normalization="trace")
    with pytest.raises(ValueError, match="at least 1 sample"):
        mean_embedding_norm(Sketch())
    published = Tang2020Sketch()
    published.update(features(5, 3), torch.arange(5))
    with pytest.raises(ValueError, match="as published"):
        mean_embedding_norm(published)
