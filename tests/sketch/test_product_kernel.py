"""The kernel of features and gradients at once, by tensor sketch."""

import numpy as np
import pytest
import torch

from lightning_sim.sketch import Sketch, Tang2020Sketch
from lightning_sim.sketch.hashing import sample_buckets, sample_signs
from lightning_sim.sketch.tensor_sketch import tensor_sketch
from tests.golden import reference_rows
from tests.sketch import exact

WIDTH = 256


def sketched(features, gradients, *, make=Sketch, batch_size=2000, **settings):
    sketch = make(**settings)
    for start in range(0, len(features), batch_size):
        rows = slice(start, start + batch_size)
        sketch.update(features[rows], torch.arange(len(features))[rows], gradients=gradients[rows])
    return sketch


def outer_products(features, gradients):
    return torch.einsum("bi,bj->bij", features.double(), gradients.double()).flatten(1).numpy()


def latent(samples, rank, correlation, seed):
    """Features and gradients of two networks, `rank` latent variables each, of which the two networks share some.

    Returns them as ((features, gradients), (features, gradients)) of width 256, and the exact CKA of their product
    kernels, computed from the outer products of coordinates in the few dimensions that they span.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    networks, products = [[], []], []
    for mean in (1.0, 0.0):  # of features and of gradients
        shared, private = draw(samples, rank), draw(samples, rank)
        other = correlation * shared + (1 - correlation**2) ** 0.5 * private
        for network, variables in zip(networks, (shared, other), strict=True):
            network.append(variables @ draw(rank, WIDTH) / rank**0.5 + mean * draw(1, WIDTH))
    for features, gradients in networks:
        coordinates = [z @ torch.linalg.svd(z, full_matrices=False)[2][: rank + 1].T for z in (features, gradients)]
        products.append(outer_products(*coordinates))
    pairs = [tuple(z.float() for z in network) for network in networks]
    return (*pairs, exact.cka_unbiased(*products))


def errors(rank, correlation, seeds, samples=8000, **settings):
    x, y, truth = latent(samples, rank, correlation, seed=rank)
    pairs = [(sketched(*x, seed=seed, **settings), sketched(*y, seed=seed, **settings)) for seed in range(seeds)]
    return np.array([float(a.cka(b)) for a, b in pairs]) - truth, truth


@pytest.mark.parametrize("row", [row for m in ("cka_hadamard", "nbs_hadamard") for row in reference_rows(m)], ids=str)
def test_golden(row):
    arrays = row.arrays()
    if row.params["center_factors"]:
        arrays = [z - z.mean(0) for z in arrays]
    widest = max(f.shape[1] * g.shape[1] for f, g in (arrays[:2], arrays[2:]))
    settings = {"num_buckets": 2048, "num_projections": 2 * widest, "dtype": torch.float64}
    a, b = sketched(*arrays[:2], **settings), sketched(*arrays[2:], **settings)
    if row.measure == "nbs_hadamard":
        value = a.nbs(b)
    else:
        value = a.cka(b, estimator="unbiased" if row.params.get("unbiased") else "biased")
    row.assert_reproduced_by(value)


def test_golden_values_are_there():
    assert len(reference_rows("cka_hadamard")) >= 4
    assert len(reference_rows("nbs_hadamard")) >= 2


@pytest.mark.parametrize(("rank", "correlation"), [(10, 0.6), (40, 0.9)])
def test_sketched_products_stay_close_to_exact(rank, correlation):
    found, _ = errors(rank, correlation, seeds=6, samples=1500, num_buckets=256, num_projections=4096)
    assert abs(found.mean()) < 0.015
    assert np.abs(found).max() < 0.05


@pytest.mark.study
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("rank", [10, 40])
@pytest.mark.parametrize("correlation", [0, 0.6, 0.9])
def test_sketched_products_of_many_seeds(rank, correlation):
    found, truth = errors(rank, correlation, seeds=20, num_buckets=512, num_projections=4096)
    published, _ = errors(rank, correlation, seeds=3, make=Tang2020Sketch, num_buckets=512)
    print(
        f"rank {rank}, correlation {correlation}: exact {truth:.4f}, mean error {found.mean():+.4f} "
        f"(sd {found.std():.4f}), largest {np.abs(found).max():.4f}; as published {published.mean():+.4f}"
    )
    assert abs(found.mean()) < 0.01
    assert np.abs(found).max() < 0.06


def test_inner_products_are_those_of_outer_products():
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(2, width, generator=generator, dtype=torch.float64) for width in (300, 40))
    truth = (f[0] @ f[1]) * (g[0] @ g[1])
    values = torch.stack([part[0] @ part[1] for seed in range(400) for part in tensor_sketch(f, g, 512, seed, f.dtype)])
    assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5
    # The two halves of one sketch are independent of each other.
    halves = values.view(-1, 2) - truth
    correlation = (halves[:, 0] * halves[:, 1]).mean() / values.var()
    assert abs(correlation) < 4 / 400**0.5


def test_the_convolution_is_a_fold_of_the_outer_product():
    # Every entry (i, j) goes with one sign to one column, so that the sketch of basis vectors has one entry, +1 or -1.
    f, g = torch.eye(20, dtype=torch.float64), torch.eye(9, dtype=torch.float64)
    rows = tensor_sketch(f.repeat_interleave(9, 0), g.repeat(20, 1), 64, seed=3, dtype=f.dtype)
    for half in rows:
        assert torch.allclose(half.abs().sum(1), torch.ones(180, dtype=torch.float64))
        assert torch.allclose(half.abs().amax(1), torch.ones(180, dtype=torch.float64))
        columns = half.abs().argmax(1).view(20, 9)
        assert columns.flatten().bincount(minlength=32).max() < 20  # all columns are used
        square = columns[:9, :9]
        assert (square == square.T).float().mean() < 0.4  # (i, j) and (j, i) go to different columns


def test_narrow_products_are_exact():
    x, y, _ = latent(300, 3, 0.6, seed=0)
    x, y = ([z[:, :16] for z in network] for network in (x, y))
    a, b = sketched(*x), sketched(*y)
    assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(outer_products(*x), outer_products(*y)), abs=1e-5)
    assert float(a.nbs(b)) == pytest.approx(exact.nbs(outer_products(*x), outer_products(*y)), abs=1e-5)


def test_any_batching_and_merging_gives_the_same_sketch():
    x, _, _ = latent(500, 5, 0.6, seed=0)
    whole = sketched(*x, num_buckets=64, batch_size=500)
    merged = Sketch(num_buckets=64)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    for part in order.split([300, 1, 199]):
        other = Sketch(num_buckets=64)
        other.update(x[0][part], part, gradients=x[1][part])
        merged.merge(other)
    for mine, theirs in zip(merged.sums(), whole.sums(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))
    again = Sketch.from_state_dict(whole.state_dict())
    assert torch.equal(again.cka(merged), whole.cka(merged))


@pytest.mark.parametrize("widths", [(500, 524), (1000, 24), (3, 900)])
def test_products_are_exact_while_features_and_gradients_fit_side_by_side(widths):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(600, 30, generator=generator, dtype=torch.float64)

    def network():
        drawn = [shared @ torch.randn(30, width, generator=generator, dtype=torch.float64) for width in widths]
        return (drawn[0] + 20).float(), (drawn[1] * shared[:, :1] + 5).float()

    def kernel(features, gradients):
        product = (features.double() @ features.double().T) * (gradients.double() @ gradients.double().T)
        centred = product - product.mean(0) - product.mean(1, keepdim=True) + product.mean()
        values, vectors = np.linalg.eigh(centred.numpy())
        return vectors * np.sqrt(values.clip(0))  # features of which this is the linear kernel

    x, y = network(), network()
    a, b = sketched(*x, batch_size=100), sketched(*y, batch_size=256)
    assert a.keeps_factors
    assert sum(value.numel() for value in a.sums()) <= 1024 * 1025
    truth = kernel(*x), kernel(*y)
    assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(*truth), abs=1e-5)
    assert float(a.cka(b, estimator="biased")) == pytest.approx(exact.cka_biased(*truth), abs=1e-5)
    assert float(a.nbs(b)) == pytest.approx(exact.nbs(*truth), abs=1e-5)


def test_factors_become_a_tensor_sketch_when_two_samples_share_a_bucket():
    x, _, _ = latent(100, 5, 0.6, seed=0)
    ids = torch.arange(100)
    few = sketched(*(z[:64] for z in x), num_buckets=64)
    assert few.keeps_factors
    few.update(x[0][64:], ids[64:], gradients=x[1][64:])
    assert not few.keeps_factors
    # As if every sample had been tensor sketched.
    buckets, signs = sample_buckets(ids, 64), sample_signs(ids, 0)
    for index, rows in enumerate(tensor_sketch(*(z.double() for z in x), 1024, seed=0, dtype=torch.float64)):
        added = torch.zeros(64, 512, dtype=torch.float64).index_add_(0, buckets, rows * signs[:, None])
        tolerance = 1e-5 * float(added.abs().max())
        assert torch.allclose(few.uncentered()[0][index].double(), added, rtol=0, atol=tolerance)
        assert torch.allclose(few.uncentered()[2][index], rows.mean(0), rtol=0, atol=1e-5 * float(rows.abs().max()))
    repeated = sketched(*(z[:8] for z in x), num_buckets=64)
    repeated.update(x[0][:8], ids[:8], gradients=x[1][:8])  # the same samples again
    assert not repeated.keeps_factors


def test_merging_factors_keeps_them_where_no_bucket_is_shared():
    x, y, _ = latent(120, 5, 0.6, seed=0)

    def part(network, rows, **settings):
        sketch = Sketch(num_buckets=64, **settings)
        sketch.update(network[0][rows], torch.arange(120)[rows], gradients=network[1][rows])
        return sketch

    merged = part(x, slice(0, 30))
    merged.merge(part(x, slice(30, 64)))
    whole = part(x, slice(0, 64))
    assert merged.keeps_factors
    assert torch.equal(merged.cka(part(y, slice(0, 64))), whole.cka(part(y, slice(0, 64))))
    for cut in (64, 110, 4):
        merged = part(x, slice(0, cut))
        merged.merge(part(x, slice(cut, 120)))
        assert not merged.keeps_factors
        for mine, theirs in zip(merged.sums(), part(x, slice(0, 120)).sums(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_constant_products_and_those_with_nan_are_named():
    ids, g = torch.arange(50), torch.randn(50, 600, generator=torch.Generator().manual_seed(0))
    for f, g_, problem in (
        (torch.full((50, 300), 7.0), torch.full((50, 600), 0.3), "is constant over the samples"),
        (torch.full((50, 300), torch.nan), g, "holds NaN or infinite features"),
        (torch.full((50, 300), 7.0), g, None),
    ):
        sketch = Sketch()
        sketch.update(f, ids, gradients=g_)
        assert sketch.keeps_factors
        assert sketch.problem() == problem


def test_kinds_are_not_mixed():
    x, g, ids = torch.randn(8, 4), torch.randn(8, 6), torch.arange(8)
    with_gradients, without = Sketch(), Sketch()
    with_gradients.update(x, ids, gradients=g)
    without.update(x, ids)
    with pytest.raises(ValueError, match="with `gradients` so far, and now without"):
        with_gradients.update(x, ids + 8)
    with pytest.raises(ValueError, match="without `gradients` so far, and now with"):
        without.update(x, ids + 8, gradients=g)
    with pytest.raises(ValueError, match=r"different layers or kinds.*gradients of width 6 and 0"):
        with_gradients.merge(without)
    with pytest.raises(ValueError, match="`gradients` must keep their width: 6 so far, now 5"):
        with_gradients.update(x, ids + 8, gradients=g[:, :5])
    with pytest.raises(ValueError, match=r"8 integers, one for each row|`sample_ids` must be 7"):
        Sketch().update(x, ids, gradients=g[:7])
