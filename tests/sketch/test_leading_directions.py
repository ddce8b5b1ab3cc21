"""Sketches that follow leading directions: the same expectation as folds, and less noise."""

import pytest
import torch

from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.sketch import (
    Sketch,
    centered_kernel_alignment_matrix,
    kernel_ridge_regression,
    load_sketch,
    save_sketch,
)
from lightning_sim.sketch.leading_directions import LeadingDirections, leading_directions


def decaying(samples, width, seed, power=1.0):
    """Features whose j-th direction has the standard deviation j^-power, and a mean."""
    draw = torch.Generator().manual_seed(seed)
    latent = torch.randn(samples, 200, generator=draw) * torch.arange(1, 201.0) ** -power
    return latent @ torch.randn(200, width, generator=draw) + 1


def sketched(features, seed=0, directions="first", **settings):
    sketch = Sketch(256, 128, seed, **settings)
    sketch.directions = directions
    for part in torch.arange(len(features)).split(64):
        sketch.update(features[part], part)
    return sketch


def test_features_in_the_directions_have_no_noise_of_folds():
    x, y = (decaying(64, 500, seed)[torch.arange(256) % 8] for seed in (0, 1))  # eight samples span all directions
    exact = float(centered_kernel_alignment(x.double(), y.double()))
    with_folds = [float(sketched(x, seed, None).cka(sketched(y, seed, None))) for seed in range(5)]
    followed = [float(sketched(x, seed).cka(sketched(y, seed))) for seed in range(5)]
    assert max(abs(value - exact) for value in with_folds) > 1e-3
    assert max(abs(value - exact) for value in followed) < 2e-5


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_errors_are_those_of_what_the_directions_leave(power):
    x, y = (decaying(256, 2000, seed, power) for seed in (0, 1))
    y = y + x
    exact = centered_kernel_alignment(x.double(), y.double())
    errors = {}
    for directions in (None, "first"):
        found = [sketched(x, seed, directions).cka(sketched(y, seed, directions)) for seed in range(30)]
        errors[directions] = torch.stack(found).double() - exact
    assert errors["first"].square().mean().sqrt() < errors[None].square().mean().sqrt() / 2
    # of expectation zero, within four standard errors of the mean and the ratio's second order
    assert abs(errors["first"].mean()) < 4 * errors["first"].std() / 30**0.5 + 1e-3


def test_any_directions_are_right_on_average():
    x = decaying(64, 600, 0)
    exact = (x - x.mean(0)) @ (x - x.mean(0)).T
    kernels = []
    for seed in range(200):
        random = torch.linalg.qr(torch.randn(600, 16, generator=torch.Generator().manual_seed(seed))).Q.T
        directions = LeadingDirections(random.bfloat16(), 128, seed, torch.float32)
        kernels.append(sketched(x, seed, directions).kernel() * _signs(seed))
    off_diagonal = ~torch.eye(64, dtype=torch.bool)
    errors = torch.stack(kernels)[:, :64, :64][:, off_diagonal] - exact[off_diagonal]
    along = errors @ exact[off_diagonal].double()  # what of the errors would move the kernel's size
    for value in (errors, along):
        assert (value.mean(0) / value.std(0)).abs().max() * 200**0.5 < 6


def _signs(seed):
    """Those of the 256 buckets' samples, which kernels of sketches have on both sides."""
    sketch = Sketch(256, 128, seed)
    sketch.update(torch.ones(64, 1), torch.arange(64))
    return torch.outer(sketch.ones(), sketch.ones())


def test_standard_errors_have_the_noise_that_is_left():
    x, y = (decaying(256, 2000, seed, 0.5) for seed in (0, 1))
    y = y + x
    pairs = [(sketched(x, seed), sketched(y, seed)) for seed in range(40)]
    values = torch.stack([a.cka(b) for a, b in pairs])
    whole = float(pairs[0][0].estimate(pairs[0][1]).standard_error)
    wide = Sketch(256, 2000), Sketch(256, 2000)
    for sketch, features in zip(wide, (x, y), strict=True):
        sketch.update(features, torch.arange(256))
    samples = float(wide[0].estimate(wide[1]).standard_error)
    folds = (whole**2 - samples**2) ** 0.5
    assert 0.6 < folds / float(values.std()) < 1.7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype):
    x = decaying(256, 2000, 0).to(dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert float(sketched(x, dtype=state).cka(sketched(x, 0, None, dtype=state))) == pytest.approx(1, abs=0.02)
    assert sketched(x, dtype=state).num_directions == 16


def test_directions_are_orthonormal_and_span_the_samples():
    x = decaying(40, 3000, 0) * 1e15
    found = leading_directions(x, 128, 0, torch.float32)
    coordinates = found.sketched(x)[0, :, -16:].double()
    centered = (coordinates - coordinates.mean(0)) / 1e15
    lengths = torch.linalg.svdvals((x.double() - x.double().mean(0)) / 1e15)[:16]
    torch.testing.assert_close(torch.linalg.svdvals(centered), lengths, rtol=1e-4, atol=0)


def test_samples_without_directions_are_folded_alone():
    ones = torch.ones(64, 500)
    assert sketched(ones).num_directions == 0
    assert "constant" in sketched(ones).problem()
    assert sketched(ones * torch.nan).num_directions == 0
    assert sketched(decaying(64, 100, 0)).num_directions == 0  # not folded
    product = Sketch(256, 128)
    product.directions = "first"
    product.update(decaying(64, 100, 0), torch.arange(64), gradients=decaying(64, 50, 1))
    assert product.num_directions == 0


@pytest.mark.parametrize("active", [1, 2, 3, 12, 200])
@pytest.mark.parametrize("spread", [0.003, 0.1])
def test_few_varying_columns_with_a_mean(active, spread):
    x = torch.zeros(200, 4096)
    x[:, :active] = 1 + spread * torch.randn(200, active, generator=torch.Generator().manual_seed(active))
    y = x.clone()
    y[:, :active] += spread * torch.randn(200, active, generator=torch.Generator().manual_seed(100))
    exact = float(centered_kernel_alignment(x.double(), y.double()))
    assert sketched(x).num_directions <= min(active, 16)
    assert spread < 0.1 or sketched(x).num_directions == min(active, 16)
    assert float(sketched(x).cka(sketched(y))) == pytest.approx(exact, abs=0.03)


def test_sketches_too_narrow_for_directions_have_none():
    narrow = Sketch(64, 2)
    narrow.directions = "first"
    narrow.update(torch.randn(20, 9), torch.arange(20))
    assert narrow.num_directions == 0


def test_a_layer_of_varying_width_is_named_for_that():
    directions = sketched(decaying(64, 500, 0)).directions
    other = Sketch(256, 128)
    other.directions = directions
    with pytest.raises(ValueError, match="must keep their width: 500 in the first batch, now 400"):
        other.update(torch.randn(20, 400), torch.arange(20))


def test_sketches_of_the_same_directions_add():
    x = decaying(128, 500, 0)
    whole, first, second = sketched(x), Sketch(256, 128), Sketch(256, 128)
    first.directions = second.directions = whole.directions
    first.update(x[:100], torch.arange(100))
    second.update(x[100:], torch.arange(100, 128))
    first.merge(second)
    assert float(first.cka(whole)) == pytest.approx(1, abs=1e-5)
    for mine, theirs in zip(first.sums(), whole.sums(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-5)
    other = sketched(decaying(64, 500, 1))
    with pytest.raises(ValueError, match="different leading directions"):
        first.merge(other)
    for sketch in (whole, first):
        sketch.directions = None
    with pytest.raises(ValueError, match="or are finished"):
        first.merge(whole)
    with pytest.raises(ValueError, match="or are finished"):
        sketched(x, 0, None).merge(whole)
    empty = Sketch(256, 128)
    empty.merge(whole)
    assert empty.num_directions == 16
    assert float(empty.cka(whole)) == 1


def test_a_finished_sketch_is_kept_and_takes_no_more(tmp_path):
    x = decaying(128, 500, 0)
    sketch, folded = sketched(x), sketched(x, 0, None)
    save_sketch(sketch, tmp_path / "a.safetensors")
    found = load_sketch(tmp_path / "a.safetensors")
    assert found.num_directions == 16
    assert float(found.cka(sketch)) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="is finished"):
        found.update(x, torch.arange(128, 256))
    labels = Sketch(256, 128)
    labels.update(x[:, :3], torch.arange(128))
    with pytest.raises(ValueError, match="of folds alone"):
        kernel_ridge_regression(found, labels)
    earlier = folded.state_dict()
    del earlier["num_directions"]
    earlier = Sketch.from_state_dict(earlier)
    assert float(centered_kernel_alignment_matrix([earlier], [found])) == pytest.approx(1, abs=0.02)
    assert found.clear().num_directions == 0
