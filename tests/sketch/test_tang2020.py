"""The published algorithm, the transport-map kernel, and sketches of different samples."""

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch

from lightning_sim.sketch import (
    Sketch,
    Tang2020Sketch,
    TransportMap,
    centered_kernel_alignment_matrix,
    compare_unpaired,
    normalized_bures_similarity,
    transport_map_kernel,
)
from lightning_sim.sketch.hashing import random_buckets
from tests.sketch import exact
from tests.sketch.data import related, sketched
from tests.sketch.test_product_kernel import latent


def added(make, features, gradients=None, batch_size=300):
    sketch = make()
    for ids in torch.arange(len(features)).split(batch_size):
        sketch.update(features[ids], ids, gradients=None if gradients is None else gradients[ids])
    return sketch


def sign_matrix(samples, num_buckets, buckets_per_sample, seed):
    """S (M, N) as a matrix."""
    matrix = np.zeros((num_buckets, samples))
    size = num_buckets // buckets_per_sample
    for part in range(buckets_per_sample):
        buckets, signs = random_buckets(torch.arange(samples), size, part, seed)
        matrix[buckets.numpy() + part * size, np.arange(samples)] = signs.numpy() / buckets_per_sample**0.5
    return matrix


@pytest.mark.parametrize("buckets_per_sample", [1, 4])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_published_algorithm_by_matrices(buckets_per_sample, with_gradients):
    x, y = related(200, 30, rank=5, correlation=0.6, seed=0)
    g, h = related(200, 12, rank=3, correlation=0.6, seed=1)
    settings = {"num_buckets": 64, "buckets_per_sample": buckets_per_sample, "seed": 3}
    s = sign_matrix(200, **settings)
    centring = np.eye(64) - 1 / 64
    kernels = []
    for features, gradients in ((x, g), (y, h)):
        kernel = s @ features.double().numpy() @ features.double().numpy().T @ s.T
        if with_gradients:
            kernel *= s @ gradients.double().numpy() @ gradients.double().numpy().T @ s.T
        kernels.append(centring @ kernel @ centring)
    a, b = (
        added(lambda: Tang2020Sketch(**settings), f, z if with_gradients else None, batch_size=33)
        for f, z in ((x, g), (y, h))
    )
    k, other = kernels
    cka = (k * other).sum() / (np.linalg.norm(k) * np.linalg.norm(other))
    assert float(a.cka(b)) == pytest.approx(cka, abs=1e-5)
    root = np.real(scipy.linalg.sqrtm(k + 1e-9 * np.trace(k) * np.eye(64)))
    nbs = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum() / np.sqrt(np.trace(k) * np.trace(other))
    assert float(a.nbs(b)) == pytest.approx(nbs, abs=1e-3)


def test_the_published_algorithm_is_biased_where_the_sketch_is_not():
    x, y, truth = latent(3000, 10, 0.0, seed=0)
    errors = {}
    for make in (Sketch, Tang2020Sketch):
        pairs = [[added(partial(make, num_buckets=512, seed=seed), *z) for z in (x, y)] for seed in range(2)]
        errors[make] = np.mean([float(a.cka(b)) for a, b in pairs]) - truth
    assert abs(errors[Sketch]) < 0.03
    assert errors[Tang2020Sketch] > 0.1


def test_buckets_are_uniform_and_signs_even():
    buckets, signs = random_buckets(torch.arange(40_000), 16, 0, seed=0)
    counts = buckets.bincount(minlength=16).double()
    assert ((counts - 2500) ** 2 / 2500).sum() < 37.7  # chi square, 15 degrees, one in a thousand
    assert abs(int(signs.sum())) < 4 * 200
    other, _ = random_buckets(torch.arange(40_000), 16, 1, seed=0)
    assert abs(float((buckets == other).double().mean()) - 1 / 16) < 0.006


def test_published_sketches_merge_and_return_from_their_state():
    x, y = related(100, 8, rank=3, correlation=0.6, seed=0)
    whole, merged = added(lambda: Tang2020Sketch(64), x), Tang2020Sketch(64)
    for ids in torch.arange(100).split(30):
        part = Tang2020Sketch(64)
        part.update(x[ids], ids)
        merged.merge(part)
    other = added(lambda: Tang2020Sketch(64), y)
    assert float(merged.cka(other)) == pytest.approx(float(whole.cka(other)), abs=1e-6)
    again = Tang2020Sketch.from_state_dict(whole.state_dict())
    assert torch.equal(again.cka(other), whole.cka(other))


def test_published_sketches_are_not_mixed_with_others():
    x = torch.randn(20, 4)
    published = added(lambda: Tang2020Sketch(64), x)
    with pytest.raises(ValueError, match=r"only be compared with each other.*1 and None"):
        published.cka(added(lambda: Sketch(64), x))
    with pytest.raises(ValueError, match="1 and 2"):
        published.nbs(added(lambda: Tang2020Sketch(64, 2), x))
    for combine in (added(lambda: Sketch(64), x).merge, added(lambda: Sketch(64), x).cka):
        with pytest.raises(ValueError, match="Sketch can only be combined with another, got Tang2020Sketch"):
            combine(published)
    for wrong in ("a", None, 1.5):
        with pytest.raises(ValueError, match="`buckets_per_sample` must be an integer"):
            Tang2020Sketch(64, wrong)
    for wrong in (0, 3, 64):
        with pytest.raises(ValueError, match="`buckets_per_sample`"):
            Tang2020Sketch(64, wrong)


def test_published_sketches_have_no_other_estimator_and_no_matrix():
    published = added(lambda: Tang2020Sketch(64), torch.randn(20, 4))
    for wrong in ("unbiased", "debiased", None):
        for method, arguments in ((published.cka, [published]), (published.cka_problem, [])):
            with pytest.raises(ValueError, match=f"`estimator` must be one of 'biased', got {wrong!r}"):
                method(*arguments, estimator=wrong)
    assert float(published.cka(published, estimator="biased")) == pytest.approx(1)
    for estimator in ("unbiased", "biased"):
        with pytest.raises(ValueError, match=r"as published keeps no sum.*its own cka\(\)"):
            centered_kernel_alignment_matrix([published], [published], estimator=estimator)
    with pytest.raises(ValueError, match="as published keeps no sum"):
        normalized_bures_similarity(published, published)


def test_transport_map_carries_one_covariance_to_the_other():
    x, _ = related(60, 80, rank=50, correlation=1, seed=0)
    g, _ = related(60, 80, rank=50, correlation=1, seed=1)
    features, gradients = (sketched(z, num_buckets=64, num_projections=128, dtype=torch.float64) for z in (x, g))
    mapping = transport_map_kernel(features, gradients)
    assert torch.allclose(mapping, mapping.T, atol=1e-10)
    assert torch.linalg.eigvalsh(mapping)[0] > -1e-8
    carried, wanted = mapping @ features.kernel() @ mapping, gradients.kernel()
    assert torch.allclose(carried, wanted, atol=1e-7 * float(wanted.abs().max()))


def test_transport_map_similarities():
    x, y = related(60, 40, rank=10, correlation=0.8, seed=0)
    g, h = related(60, 40, rank=10, correlation=0.8, seed=1)
    settings = {"num_buckets": 64, "num_projections": 64, "dtype": torch.float64}
    one, two = [tuple(sketched(z, **settings) for z in pair) for pair in ((x, g), (y, h))]
    turned = TransportMap(*(sketched(3 * z.flip(1) + 1, **settings) for z in (x, g)))
    dead = TransportMap(one[0], sketched(torch.ones(60, 40), **settings))
    for measure in ("cka", "nbs"):
        compare = getattr(TransportMap, measure)
        assert compare(TransportMap(*one), turned) == pytest.approx(1, abs=1e-4)  # invariant to rotation and scale
        assert compare(TransportMap(*two), TransportMap(*two)) == pytest.approx(1, abs=1e-4)
        assert 0 < compare(TransportMap(*one), TransportMap(*two)) < 0.99
    assert dead.problem() == "is constant over the samples"
    assert TransportMap(*one).problem() is None
    with pytest.raises(ValueError, match="no features of single samples"):
        dead.rows()
    kernels = [transport_map_kernel(*pair).numpy() for pair in (one, two)]
    cka = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(k) for k in kernels])
    assert float(TransportMap(*one).cka(TransportMap(*two))) == pytest.approx(cka, abs=1e-9)


@pytest.mark.parametrize("mean", [100.0, 1000.0])
def test_transport_map_leaves_out_what_rounding_adds(mean):
    draw = torch.Generator().manual_seed(0)
    low, other, *gradients = (torch.randn(200, 4, generator=draw) @ torch.randn(4, 40, generator=draw) for _ in "1234")
    values = []
    for offset in (0.0, mean):
        pairs = [
            tuple(sketched(z, num_buckets=256) for z in pair)
            for pair in ((low + offset, gradients[0]), (low + 0.3 * other + offset, gradients[1]))
        ]
        values.append(float(TransportMap(*pairs[0]).cka(TransportMap(*pairs[1]))))
    assert values[1] == pytest.approx(values[0], abs=1e-3)


def with_spectrum(samples, eigenvalues, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, len(eigenvalues), generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double()).Q
    return x * eigenvalues.sqrt() @ rotation + 2


def test_unpaired_values_follow_from_the_spectra():
    flat, steep = torch.ones(50, dtype=torch.float64), torch.arange(1, 51, dtype=torch.float64) ** -1
    dimension = {id(z): float(z.sum() ** 2 / z.square().sum()) for z in (flat, steep)}
    for first, second in ((flat, flat), (flat, steep), (steep, steep)):
        expected = np.prod([(1 + 256 / dimension[id(z)]) ** -0.5 for z in (first, second)])
        values = []
        for trial in range(8):
            a = sketched(with_spectrum(3000, first, trial), num_buckets=256, seed=trial)
            b = sketched(with_spectrum(2000, second, trial + 50), num_buckets=256, seed=trial + 50)
            values.append(float(compare_unpaired(a, b, measure="cka")))
        assert np.mean(values) == pytest.approx(expected, rel=0.1)


def test_unpaired_values_do_not_know_what_is_shared():
    x, unrelated = (with_spectrum(2000, torch.arange(1, 41).double() ** -1, seed) for seed in (0, 1))
    for measure in ("cka", "nbs"):
        same, other = ([], [])
        for seed in range(6):
            a = sketched(x, num_buckets=128, seed=seed)
            same.append(float(compare_unpaired(a, sketched(x, num_buckets=128, seed=seed + 20), measure=measure)))
            b = sketched(unrelated, num_buckets=128, seed=seed + 20)
            other.append(float(compare_unpaired(a, b, measure=measure)))
        assert np.mean(same) == pytest.approx(np.mean(other), rel=0.1)
        assert np.mean(same) < 0.8  # a network with itself


def test_unpaired_takes_any_sizes_and_kinds_but_not_equal_hashes():
    x, g = torch.randn(100, 8), torch.randn(100, 8)
    product = added(lambda: Sketch(64, seed=1), x, g)
    published = added(lambda: Tang2020Sketch(64, seed=2), x[:70], g[:70])
    assert 0 < float(compare_unpaired(product, published)) < 1
    with pytest.raises(ValueError, match="both sketches have `seed` 1"):
        compare_unpaired(product, added(lambda: Sketch(64, seed=1), x))
    with pytest.raises(ValueError, match="64 and 128"):
        compare_unpaired(product, added(lambda: Sketch(128, seed=2), x))
    for broken in (x * torch.nan, torch.full_like(x, 0.7)):
        assert compare_unpaired(product, added(lambda: Sketch(64, seed=3), broken)).isnan()


def test_kernel_of_a_sketch_is_the_centred_gram():
    x, _ = related(50, 8, rank=3, correlation=1, seed=0)
    eigenvalues = torch.linalg.eigvalsh(sketched(x, num_buckets=64, dtype=torch.float64).kernel())
    truth = np.linalg.eigvalsh(exact.centered(x) @ exact.centered(x).T)
    assert np.allclose(eigenvalues[-8:], truth[-8:])


def test_unknown_measures_are_refused_and_published_sketches_not_saved(tmp_path):
    a, b = (added(partial(Tang2020Sketch, 64, seed=seed), torch.randn(20, 4)) for seed in (1, 2))
    with pytest.raises(ValueError, match=r"`measure` must be.*'rsa'"):
        compare_unpaired(a, b, measure="rsa")
    with pytest.raises(ValueError, match="cannot be saved"):
        a.save(tmp_path / "sketch.safetensors")
