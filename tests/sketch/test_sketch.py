import itertools
import warnings

import numpy as np
import pytest
import torch

from lightning_sim.sketch import Sketch, Tang2020Sketch, centered_kernel_alignment_matrix
from lightning_sim.sketch.folding import fold
from lightning_sim.sketch.hashing import sample_buckets, sample_signs
from tests.benchmarks.live_bytes import peak_bytes
from tests.golden import reference_rows
from tests.sketch import exact
from tests.sketch.data import related, sketched

SMALL = {"num_buckets": 256, "num_projections": 256}


def nested(rows, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        return torch.nested.nested_tensor([torch.ones(width)] * rows, layout=torch.strided)


@pytest.mark.parametrize(("samples", "width"), [(8, 3), (30, 5), (300, 512), (500, 1024), (1024, 64)])
def test_without_collisions_and_folds_everything_is_exact(samples, width):
    x, y = related(samples, width, rank=4, correlation=0.7, seed=samples)
    a, b = sketched(x), sketched(y)
    assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(x, y), abs=1e-5)
    assert float(a.cka(b, estimator="biased")) == pytest.approx(exact.cka_biased(x, y), abs=1e-5)
    assert float(a.nbs(b)) == pytest.approx(exact.nbs(x, y), abs=1e-5)


# In float64 the sketch reproduces third-party values as tightly as a direct implementation does.
@pytest.mark.parametrize("row", [row for row in reference_rows("cka_linear") if row.params["center"]], ids=str)
def test_golden_cka(row):
    x, y = row.arrays()[-2:]  # some rows also hold the network's input
    a, b = (sketched(z, num_buckets=2048, num_projections=4096, dtype=torch.float64) for z in (x, y))
    value = a.cka(b, estimator="unbiased" if row.params["unbiased"] else "biased")
    row.assert_reproduced_by(value)


@pytest.mark.parametrize("row", reference_rows("nbs_linear"), ids=str)
def test_golden_nbs(row):
    x, y = row.arrays()
    a, b = (sketched(z, num_buckets=2048, num_projections=4096, dtype=torch.float64) for z in (x, y))
    row.assert_reproduced_by(a.nbs(b))


def test_golden_values_are_there():
    assert len(reference_rows("cka_linear")) >= 40
    assert len(reference_rows("nbs_linear")) >= 15


@pytest.mark.parametrize(("width", "rank", "correlation"), [(8192, 50, 0.9), (8192, 300, 0.6), (25_088, 150, 0.8)])
def test_folded_features_stay_close_to_exact(width, rank, correlation):
    x, y = related(512, width, rank=rank, correlation=correlation, seed=rank)
    truth = exact.cka_unbiased(x, y)
    sizes = {"num_buckets": 512}
    errors = [float(sketched(x, seed=seed, **sizes).cka(sketched(y, seed=seed, **sizes))) - truth for seed in range(20)]
    assert abs(np.mean(errors)) < 0.004
    assert np.abs(errors).max() < 0.02


@pytest.mark.parametrize(("width", "rank", "correlation"), [(512, 50, 0.9), (1280, 300, 0.6)])
def test_colliding_samples_stay_close_to_exact(width, rank, correlation):
    x, y = related(5000, width, rank=rank, correlation=correlation, seed=rank)
    truth = exact.cka_unbiased(x, y)
    sizes = {"num_buckets": 512, "num_projections": 1024, "batch_size": 2500}
    errors = [float(sketched(x, seed=seed, **sizes).cka(sketched(y, seed=seed, **sizes))) - truth for seed in range(20)]
    assert abs(np.mean(errors)) < 0.004
    assert np.abs(errors).max() < 0.03


def test_independent_features_with_a_mean_read_zero():
    # Centring the sketched kernel instead of the data reads 0.59 here (see the class docstring).
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, 300, generator=generator) + 3 for _ in range(2))
    sketches = [[sketched(z, seed=seed, num_buckets=512) for z in (x, y)] for seed in range(10)]
    values = [float(a.cka(b)) for a, b in sketches]
    assert abs(np.mean(values)) < 0.01


def test_nbs_of_folded_features_loses_its_first_order_bias():
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, 201) ** -0.5
    x, other = (torch.randn(256, 200, generator=generator) * scales for _ in range(2))
    y = (0.8 * x + 0.6 * other) @ torch.randn(200, 1024, generator=generator)
    x = x @ torch.randn(200, 1024, generator=generator)
    truth = exact.nbs(x, y)
    sizes = {"num_projections": 512}
    errors = [float(sketched(x, seed=seed, **sizes).nbs(sketched(y, seed=seed, **sizes))) - truth for seed in range(3)]
    assert abs(np.mean(errors)) < 0.006  # -0.02 without the correction
    assert float(sketched(x, **sizes).nbs(sketched(x, **sizes))) == pytest.approx(1, abs=1e-6)


def test_any_order_batching_and_split_gives_the_same_sketch():
    x, y = related(700, 2000, rank=10, correlation=0.5, seed=0)
    whole, other = sketched(x, batch_size=700, **SMALL), sketched(y, **SMALL)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    parts = [sketched(x[part], ids=part, batch_size=33, **SMALL) for part in order.split([0, 1, 299, 400])]
    for merged_order in itertools.permutations(parts):
        merged = Sketch(**SMALL)
        for part in merged_order:
            merged.merge(part)
        assert float(merged.cka(other)) == pytest.approx(float(whole.cka(other)), abs=1e-6)
        assert float(merged.nbs(other)) == pytest.approx(float(whole.nbs(other)), abs=1e-6)


def test_a_bucket_in_which_signs_cancel_still_counts():
    x, y = related(40, 30, rank=5, correlation=0.9, seed=0)
    # 0 and 1024 share a bucket; take a seed that gives them opposite signs, so that the sketched ones cancel there.
    ids = torch.cat([torch.arange(39), torch.tensor([1024])])
    seed = next(seed for seed in range(50) if int(sample_signs(ids, seed)[[0, 39]].sum()) == 0)
    matrix = np.zeros((1024, 40))
    matrix[sample_buckets(ids, 1024), np.arange(40)] = sample_signs(ids, seed)
    left, right = (matrix @ exact.centered(z) for z in (x, y))
    value = np.linalg.svd(left.T @ right, compute_uv=False).sum() / (np.linalg.norm(left) * np.linalg.norm(right))
    assert float(sketched(x, ids=ids, seed=seed).nbs(sketched(y, ids=ids, seed=seed))) == pytest.approx(value, abs=1e-5)


def test_shuffled_batches_are_paired_by_their_ids():
    x, y = related(400, 50, rank=5, correlation=0.9, seed=0)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    assert float(sketched(x).cka(sketched(y[order], ids=order))) == pytest.approx(exact.cka_unbiased(x, y), abs=1e-5)


@pytest.mark.parametrize("width", [10, 1024, 25_088])
def test_state_does_not_grow_with_the_samples(width):
    sizes = []
    for samples in (100, 3000):
        sketch = sketched(torch.ones(samples, width))
        sizes.append(sum(value.numel() * value.element_size() for value in sketch.sums()))
    assert sizes[0] == sizes[1] <= 4.3e6


@pytest.mark.parametrize("scale", [1e-18, 1e-4, 1e4, 1e17])
def test_scale_does_not_matter(scale):
    x, y = related(200, 30, rank=5, correlation=0.8, seed=0)
    assert float(sketched(x * scale).cka(sketched(y))) == pytest.approx(exact.cka_unbiased(x, y), abs=1e-5)
    assert float(sketched(x * scale).nbs(sketched(y))) == pytest.approx(exact.nbs(x, y), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_summed_in_float32(dtype):
    x, y = (z.to(dtype) for z in related(600, 3000, rank=20, correlation=0.8, seed=0))
    a, b = sketched(x), sketched(y)
    assert all(value.dtype in (torch.float32, torch.float64) for value in a.sums())
    assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(x.double(), y.double()), abs=0.01)


def test_updating_under_inference_mode_and_going_on_outside():
    x, y = related(100, 2000, rank=5, correlation=0.8, seed=0)
    sketch = Sketch()
    with torch.inference_mode():
        sketch.update(x[:50] * 1, torch.arange(50))
    sketch.update(x[50:], torch.arange(50, 100))
    assert float(sketch.cka(sketched(y))) == pytest.approx(float(sketched(x).cka(sketched(y))), abs=1e-6)


def test_features_keep_no_graph():
    x = torch.randn(10, 2000, requires_grad=True)
    sketch = Sketch()
    sketch.update(x * 2, torch.arange(10))
    assert not any(value.requires_grad for value in sketch.sums())


def test_fold_is_unbiased_in_inner_products():
    x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = torch.stack([part[0] @ part[1] for seed in range(300) for part in fold(x, 256, seed, x.dtype)])
    standard_error = products.std() / len(products) ** 0.5
    assert abs(products.mean() - x[0] @ x[1]) < 4 * standard_error


def test_fold_of_a_width_that_is_no_multiple():
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, 24))
    for short, long in zip(fold(x, 512, 0, x.dtype), fold(padded, 512, 0, x.dtype), strict=True):
        assert torch.allclose(short, long)


def test_constant_and_broken_features_are_named_and_read_nan():
    x, _ = related(50, 8, rank=2, correlation=1, seed=0)
    healthy, constant = sketched(x), sketched(torch.full((50, 8), 0.7))
    broken, infinite = sketched(x.clone().index_fill_(0, torch.tensor([3]), torch.nan)), sketched(x / 0)
    assert healthy.problem() is None
    assert constant.problem() == "is constant over the samples"
    assert "NaN" in broken.problem()
    assert "infinite" in infinite.problem()
    assert Sketch().problem() == "holds no samples"
    for sketch in (constant, broken, infinite):
        assert torch.isnan(healthy.cka(sketch))
        assert torch.isnan(sketch.nbs(healthy))


def test_state_dict_round_trip():
    x, y = related(100, 3000, rank=5, correlation=0.8, seed=0)
    sketch = Sketch.from_state_dict(sketched(x).state_dict())
    assert torch.equal(sketch.cka(sketched(y)), sketched(x).cka(sketched(y)))
    sketch.update(x, torch.arange(100, 200))
    assert sketch.count == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_buckets": 1000}, "power of two.*1000"),
        ({"num_buckets": 2}, "at least 4"),
        ({"num_projections": 7}, "even number.*7"),
        ({"dtype": torch.float16}, "float16"),
        ({"num_buckets": 1000.5}, "`num_buckets` must be an integer.*1000.5"),
        ({"num_buckets": "64"}, "`num_buckets` must be an integer.*'64'"),
        ({"num_projections": None}, "`num_projections` must be an integer.*None"),
        ({"seed": "a"}, "`seed` must be an integer.*'a'"),
        ({"seed": None}, "`seed` must be an integer.*None"),
        ({"seed": True}, "`seed` must be an integer.*True"),
        ({"seed": 2**64}, f"`seed` must be an integer.* at most {2**63 - 1}, got {2**64}"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sketch(**settings)


@pytest.mark.parametrize(
    ("features", "ids", "message"),
    [
        (torch.randn(4), torch.arange(4), r"\(batch, \.\.\.\).*\(4,\)"),
        (torch.ones(4, 3, dtype=torch.int64), torch.arange(4), "floating-point.*int64"),
        (torch.randn(4, 3), torch.arange(5), r"4 integers.*\(5,\)"),
        (torch.randn(4, 3), torch.randn(4), "integers.*float32"),
        (torch.randn(4, 9), torch.arange(4), "width: 8 so far, now 9"),
        ([[1.0, 2.0]], torch.arange(1), "`features` must be a torch.Tensor.*got list"),
        (np.ones((4, 8)), torch.arange(4), "`features` must be a torch.Tensor.*got ndarray"),
        (torch.randn(4, 8).to("meta"), torch.arange(4), r"`features` of shape \(4, 8\) is on the meta device"),
        (torch.eye(8).to_sparse(), torch.arange(8), "`features` must be a dense.*of torch.sparse_coo"),
        (torch.ones(4, 0), torch.arange(4), r"\(batch, \.\.\.\).*\(4, 0\)"),
        (torch.randn(4, 8), [0, 1, 2, 3], r"`sample_ids` must be a torch.Tensor of shape \(4,\), got list"),
        (torch.randn(4, 8), np.arange(4), "`sample_ids` must be a torch.Tensor.*got ndarray"),
        (torch.randn(4, 8), torch.ones(4, dtype=torch.bool), "4 integers.*got torch.bool"),
        (torch.randn(4, 8), torch.arange(4).to("meta"), "`sample_ids` .*meta device"),
        (torch.randn(4, 8), torch.arange(4).to_sparse(), "`sample_ids` must be a dense.*of torch.sparse_coo"),
        (nested(4, 8), torch.arange(4), "`features` must be a dense tensor, got a nested"),
        (torch.ones(4, 8).to(torch.float8_e5m2), torch.arange(4), "`features` must be floating-point.*float8_e5m2"),
    ],
)
def test_bad_updates_are_refused(features, ids, message):
    sketch = sketched(torch.randn(10, 8))
    with pytest.raises(ValueError, match=message):
        sketch.update(features, ids)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda x: sketched(x, seed=1), "`seed`.*0 and 1"),
        (lambda x: sketched(x, num_buckets=64), "`num_buckets`"),
        (lambda x: sketched(x, num_projections=64), "`num_projections`"),
        (lambda x: sketched(x, dtype=torch.float64), "`dtype`"),
        (lambda x: sketched(x[:-1]), "different samples.*20 and 19"),
        (lambda x: sketched(x, ids=torch.arange(1, 21)), "different samples"),
        (lambda x: Sketch(), "at least 4 samples"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, message):
    x = torch.randn(20, 8)
    with pytest.raises(ValueError, match=message):
        sketched(x).cka(other(x))
    with pytest.raises(ValueError, match=message):
        sketched(x).nbs(other(x))


@pytest.mark.parametrize("make", [Sketch, Tang2020Sketch])
def test_an_empty_sketch_says_so(make):
    for method in ("kernel", "centered", "uncentered", "occupied", "ones", "rows"):
        with pytest.raises(ValueError, match="holds no samples" if make is Sketch else "no samples|as published"):
            getattr(make(), method)()
    for measure in ("cka", "nbs"):
        with pytest.raises(ValueError, match="at least 4 samples"):
            getattr(make(), measure)(make())
    assert make().problem() == make().cka_problem() == "holds no samples"
    with pytest.raises(ValueError, match="at least one sketch"):
        centered_kernel_alignment_matrix([], [])


@pytest.mark.parametrize("seed", [2**62, -(2**63), 2**63 - 1])
def test_seeds_of_64_bits_work(seed):
    x, y = related(50, 3000, rank=5, correlation=0.8, seed=0)
    a, b = (sketched(z, seed=seed) for z in (x, y))
    assert float(a.cka(b)) == pytest.approx(exact.cka_unbiased(x, y), abs=0.02)


def test_merging_other_layers_is_refused():
    with pytest.raises(ValueError, match="width 8 and 9"):
        sketched(torch.randn(20, 8)).merge(sketched(torch.randn(20, 9), ids=torch.arange(20, 40)))


def test_unknown_estimator_is_refused():
    sketch = sketched(torch.randn(20, 8))
    with pytest.raises(ValueError, match=r"unbiased.*'debiased'"):
        sketch.cka(sketch, estimator="debiased")
    sketch.cka(sketch)
    for made in (Sketch(), sketch):  # one without samples has its problem at hand, the other found it
        with pytest.raises(ValueError, match=r"`estimator` must be one of 'unbiased', 'biased', got 'debiased'"):
            made.cka_problem("debiased")


@pytest.mark.parametrize("widths", [(8,), (2000,), (8, 9), (600, 300), (2000, 10)])
def test_a_cleared_sketch_is_as_new(widths):
    draw = torch.Generator().manual_seed(0)

    def update(sketch, ids):
        features, *gradients = (torch.randn(len(ids), width, generator=draw) for width in widths)
        sketch.update(features, ids, gradients=gradients[0] if gradients else None)
        return sketch

    sketch = update(update(Sketch(num_buckets=64), torch.arange(60)), torch.arange(60, 90))  # some share buckets
    assert sketch.clear() is sketch
    assert sketch.count == sketch.fingerprint == 0
    assert sketch.problem() is not None
    state = draw.get_state()
    update(sketch, torch.arange(10))
    draw.set_state(state)
    new = update(Sketch(num_buckets=64), torch.arange(10))
    assert sketch.keeps_factors == new.keeps_factors
    assert (sketch.count, sketch.fingerprint) == (new.count, new.fingerprint)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(sketch.sums(), new.sums(), strict=True))
    sketch.clear().update(torch.randn(5, 33), torch.arange(5))  # of another layer
    assert sketch.width == 33
    assert sketch.sums()[0].shape == (1, 64, 33)


@pytest.mark.parametrize("samples", [200, 512, 900])
@pytest.mark.parametrize("width", [512, 3000])
def test_a_matrix_takes_little_memory_beside_the_sketches(samples, width):
    sketches = [Sketch(num_buckets=512, num_projections=512) for _ in range(16)]
    for index, sketch in enumerate(sketches):
        draw = torch.Generator().manual_seed(index % 10)
        sketch.update(torch.randn(samples, 9, generator=draw) @ torch.randn(9, width), torch.arange(samples))
    state = sum(value.nbytes for sketch in sketches for value in sketch.sums())
    found = peak_bytes(lambda: centered_kernel_alignment_matrix(sketches[:8], sketches[8:]))
    assert found < 0.8 * state


@pytest.mark.parametrize("widths", [(40,), (3000,), (300, 200)])
def test_what_is_known_of_a_sketch_is_forgotten_when_it_changes(widths):
    draw = torch.Generator().manual_seed(0)

    def make():
        sketch = Sketch(num_buckets=256)
        # Of few directions, which the folds of 60,000 columns leave more of than their noise.
        features, *gradients = (
            torch.randn(600, 20, generator=draw) @ torch.randn(20, width, generator=draw) for width in widths
        )
        sketch.update(features, torch.arange(600), gradients=gradients[0] if gradients else None)
        return sketch

    sketch, other = make(), make()
    assert sketch.cka(other) < 0.9
    sketch.clear().merge(other)
    assert float(sketch.cka(other)) == pytest.approx(1, abs=1e-5)
