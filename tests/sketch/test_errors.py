"""Standard errors, chance levels and carriers of sketches: as the functions have them, and with hashes and folds."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_sim import Sketch, functional
from lightning_sim.functional.estimate import standard_error
from lightning_sim.sketch import alignments, centered_kernel_alignment_matrix
from tests.benchmarks.live_bytes import peak_bytes
from tests.digits import digits, features, layer, shifted_digits
from tests.sketch.data import related, sketched

MEASURES: tuple[Any, ...] = ("cka", "nbs")


def two_sketches(x: torch.Tensor, y: torch.Tensor, **settings: Any) -> tuple[Sketch, Sketch]:
    return sketched(x, **settings), sketched(y, **settings)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("samples", [100, 300, 512])
def test_without_collisions_and_folds_errors_and_chance_are_those_of_the_features(measure: Any, samples: int) -> None:
    x, y = (features()[name][:samples] for name in "fk")
    a, b = two_sketches(x, y, num_buckets=512, num_projections=64, dtype=torch.float64)
    found, expected = a.estimate(b, measure=measure), functional.estimate(x, y, measure=measure)
    assert torch.stack(found).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-8)
    assert found.value == getattr(a, measure)(b)
    assert a.null(b, measure=measure) == pytest.approx(functional.permutation_null(x, y, measure=measure), rel=1e-5)


def test_float32_has_the_same_errors() -> None:
    x, y = (features()[name][:600].float() for name in "hk")
    a, b = two_sketches(x, y, num_projections=64)
    for measure in MEASURES:
        found, expected = a.estimate(b, measure=measure), functional.estimate(x, y, measure=measure)
        assert found.standard_error.dtype == torch.float32
        assert float(found.standard_error) == pytest.approx(float(expected.standard_error), rel=1e-3)
    biased = a.estimate(b, estimator="biased")
    assert biased.value == a.cka(b, estimator="biased")
    assert float(biased.standard_error) == pytest.approx(float(a.estimate(b).standard_error), rel=0.1)


@pytest.mark.parametrize("measure", MEASURES)
def test_products_have_the_errors_of_their_outer_products(measure: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(80, 12, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 2, 80, 12, generator=generator, dtype=torch.float64)
    sides = shared + 0.4 * noise  # of either network features and gradients
    expected = functional.estimate(*(torch.einsum("bi,bj->bij", f, g).flatten(1) for f, g in sides), measure=measure)
    found = {}
    for kind, num_projections in {"formed": 144, "factors": 128, "tensor sketches": 128}.items():
        sketches = [Sketch(128, num_projections, dtype=torch.float64) for _ in sides]
        for sketch, (f, g) in zip(sketches, sides, strict=True):
            sketch.update(f, torch.arange(80), gradients=g)
            if kind == "tensor sketches":
                sketch.sketch_factors()
        found[kind] = torch.stack(sketches[0].estimate(sketches[1], measure=measure)).tolist()
        null = sketches[0].null(sketches[1], measure=measure)
        assert null.value == found[kind][0]
        assert null.p_text == "< 0.001"
    assert found["formed"] == pytest.approx(torch.stack(expected).tolist(), rel=1e-6)
    assert found["factors"] == pytest.approx(torch.stack(expected).tolist(), rel=1e-6)
    value, error = found["tensor sketches"]
    assert error > float(expected.standard_error)
    assert value == pytest.approx(float(expected.value), abs=4 * error)


def test_errors_take_the_memory_of_a_block() -> None:
    layers = [[sketched(wide(name, 400)[:512].float() + index, num_buckets=512, num_projections=256)
               for index in range(5)] for name in ("even", "other")]  # fmt: skip
    alone = peak_bytes(lambda: alignments(*layers))
    with_errors = peak_bytes(lambda: alignments(*layers, pairs=[(index, index) for index in range(5)]))
    assert with_errors - alone <= 10 * 128 * 512 * 4


def test_pairs_of_a_matrix_have_the_errors_they_have_alone() -> None:
    layers = [sketched(z[:300], num_buckets=512, num_projections=32) for z in features().values()]
    found = alignments(layers, layers, pairs=[(0, 1), (2, 2)])
    assert torch.equal(found.values, centered_kernel_alignment_matrix(layers, layers))
    assert float(found.standard_errors[0, 1]) == pytest.approx(
        float(layers[0].estimate(layers[1]).standard_error), rel=1e-6
    )
    assert float(found.standard_errors[2, 2]) == pytest.approx(0, abs=1e-6)
    assert int(found.standard_errors.isnan().sum()) == 7
    assert float(found.shares[0, 1].sum()) == pytest.approx(1)
    assert found.units.tolist() == list(range(300))
    assert float(standard_error(found.influences[0, 1])) <= float(found.standard_errors[0, 1]) + 1e-9


def test_a_layer_without_a_value_has_no_error() -> None:
    x, y = related(64, 8, rank=4, correlation=0.5, seed=0)
    a, b = two_sketches(x, torch.ones_like(y))
    for measure in MEASURES:
        assert a.estimate(b, measure=measure).standard_error.isnan()
        assert math.isnan(a.null(b, measure=measure).p_value)
    assert math.isnan(a.carriers(b).effective_number)
    with pytest.raises(ValueError, match="`measure` must be one of 'cka', 'nbs', got 'rv'"):
        a.estimate(b, measure="rv")  # type: ignore[arg-type]


@pytest.mark.parametrize("folded", [False, True])
def test_one_large_sample_is_named(folded: bool) -> None:
    first = layer(digits()[0][:512], 128, seed=0)
    pair = [first, layer(first, 64, seed=1)]
    settings = {"num_projections": 60 if folded else 128, "num_buckets": 512}
    factors = torch.ones(512, 1, dtype=torch.float64)
    factors[137] = 30
    sides = ((*pair, False), (*(factors * z for z in pair), True))
    for a, b, spoiled in sides:
        by_sketch = sketched(a, **settings).carriers(sketched(b, **settings))
        for found in (by_sketch,) if folded else (by_sketch, functional.carriers(a, b)):
            assert found.few is spoiled
            if spoiled:
                assert found.effective_number < 5
                assert found.sample_ids[0] == 137
                assert found.shares[0] > 0.4
            else:
                assert found.effective_number > 100
    ids = torch.arange(512) * 3 + 1
    assert functional.carriers(*sides[1][:2], sample_ids=ids).sample_ids[0] == 3 * 137 + 1


def test_shares_of_the_first_direction_are_those_of_singular_vectors() -> None:
    x, y = (features()[name][:200].numpy() for name in "fk")
    x, y = x - x.mean(0), y - y.mean(0)
    cross = x.T @ y
    first_x, first_y = (np.linalg.svd(z)[2][0] for z in (x, y))
    expected = [(first_x @ cross) ** 2, (cross @ first_y) ** 2]
    found = functional.carriers(torch.from_numpy(x), torch.from_numpy(y)).first_direction
    assert found == pytest.approx([part.sum() / (cross**2).sum() for part in expected], rel=1e-6)


@functools.cache
def wide(name: str, width: int) -> torch.Tensor:
    """Layers whose units are all alike, or of very different sizes, as those of trained networks are."""
    images = shifted_digits()[0][:: 3 if width > 1000 else 1]  # of a few thousand, the truth takes a second or two
    sizes = torch.exp(torch.randn(width, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    inside = {"even": layer(images, 100, seed=11), "other": layer(images, 60, seed=13)}[name.removesuffix("+")]
    return layer(inside, width, seed=12) * (sizes if name.endswith("+") else 1)


def coverage(pair: tuple[str, str], width: int, n: int, draws: int, **settings: Any) -> tuple[float, float]:
    """Share of draws of samples, hashes and folds whose interval holds the truth; the mean error over the deviation."""
    x, y = (wide(name, width) for name in pair)
    truth = float(functional.centered_kernel_alignment(x, y))
    generator = torch.Generator().manual_seed(n)
    found = []
    for seed in range(draws):
        rows = torch.randperm(len(x), generator=generator)[:n]
        a, b = two_sketches(x[rows].float(), y[rows].float(), seed=seed, **settings)
        found.append(torch.stack(a.estimate(b)).double())
    values, errors = torch.stack(found).T
    share = float(((values - truth).abs() <= 1.96 * errors).double().mean())
    ratio = float(errors.mean() / values.std())
    print(
        f"{pair} {settings} n={n}: {truth:.3f}, mean {values.mean():.4f}, sd {values.std():.4f}, "
        f"mean SE {errors.mean():.4f}, coverage {share:.3f}"
    )
    return share, ratio


def test_intervals_cover_folds() -> None:
    share, ratio = coverage(("even", "other+"), 400, 128, 60, num_buckets=128, num_projections=64)
    assert share >= 52 / 60
    assert 0.75 < ratio < 2


def test_folds_widen_the_error_of_nbs() -> None:
    x, y = (wide(name, 400) for name in ("even", "other"))
    generator, found = torch.Generator().manual_seed(0), []
    for seed in range(40):
        rows = torch.randperm(len(x), generator=generator)[:128]
        a, b = two_sketches(x[rows].float(), y[rows].float(), seed=seed, num_buckets=128, num_projections=64)
        found.append(torch.stack(a.estimate(b, measure="nbs")).double())
    values, errors = torch.stack(found).T
    assert 0.75 < float(errors.mean() / values.std()) < 1.5


def test_intervals_cover_collisions() -> None:
    share, ratio = coverage(("even", "other"), 100, 512, 60, num_buckets=128, num_projections=100)
    assert share >= 52 / 60
    assert 0.7 < ratio < 2


@pytest.mark.study
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_projections", [256, 1024])
@pytest.mark.parametrize("n", [256, 1024])
@pytest.mark.parametrize("pair", [("even", "other"), ("even+", "other+")])
def test_two_hundred_intervals_cover_folds(pair: tuple[str, str], n: int, num_projections: int) -> None:
    share, ratio = coverage(pair, 2000, n, 200 if n == 256 else 100, num_buckets=n, num_projections=num_projections)
    assert 0.92 <= share <= 1.0
    assert ratio <= 1.7


@pytest.mark.study
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [1024, 2048])
def test_two_hundred_intervals_cover_collisions(n: int) -> None:
    share, _ = coverage(("even", "other"), 100, n, 200, num_buckets=n // 4, num_projections=100)
    assert 0.90 <= share <= 0.99


@pytest.mark.study
@pytest.mark.parametrize("settings", [(128, 256, 256), (800, 128, 512)], ids=["folds", "collisions"])
def test_chance_of_hashes_is_that_of_random_pairings(settings: tuple[int, int, int]) -> None:
    num_projections, num_buckets, n = settings
    sizes = {"num_projections": num_projections, "num_buckets": num_buckets}
    x, y = (wide(name, 800)[::20][:n].float() for name in ("even+", "other"))
    generator = torch.Generator().manual_seed(1)
    values = []
    for seed in range(400):
        a, b = two_sketches(x, y[torch.randperm(n, generator=generator)], seed=seed, **sizes)
        values.append(float(a.cka(b)))
    a, b = two_sketches(x, y, **sizes)
    found = a.null(b)
    print(f"{settings}: {np.mean(values):.5f} ± {np.std(values):.5f}, skewness {scipy.stats.skew(values):.2f}; {found}")
    assert np.mean(values) == pytest.approx(0, abs=4 * found.standard_deviation / 20)
    assert np.std(values) == pytest.approx(found.standard_deviation, rel=0.15)
    assert scipy.stats.skew(values) == pytest.approx(found.skewness, abs=0.5)


@pytest.mark.study
def test_errors_of_cka_cost_less_than_a_tenth_of_a_measurement() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = [64] * 3 + [128] * 3 + [256] * 2 + [512] * 2
    layers = [[torch.randn(1024, width, generator=generator) for width in widths] for _ in range(2)]
    pairs = [(index, index) for index in range(10)]
    took: dict[str, list[float]] = {"measurement": [], "errors": []}
    for _ in range(7):
        start = time.thread_time()
        rows, columns = ([sketched(z, batch_size=1024) for z in side] for side in layers)
        middle = time.thread_time()
        alignments(rows, columns)
        alone = time.thread_time()
        alignments(rows, columns, pairs=pairs)
        both = time.thread_time()
        for a, b in zip(rows, columns, strict=True):
            a.nbs(b)
        end = time.thread_time()
        took["errors"].append((both - alone) - (alone - middle))
        took["measurement"].append((end - both) + (alone - start))
    share = np.median(took["errors"]) / np.median(took["measurement"])
    print(f"errors took {share:.3f} of a measurement of {np.median(took['measurement']):.3f} s")
    assert share < 0.1
