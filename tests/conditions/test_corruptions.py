"""Corruptions: the same for a sample whatever surrounds it, worse with severity, and by their definitions."""

import functools
import itertools

import numpy as np
import PIL.Image
import pytest
import scipy.fft
import scipy.ndimage
import torch

from lightning_sim.conditions import COLOUR_CORRUPTIONS, CORRUPTIONS, GREY_CORRUPTIONS, Corruption
from lightning_sim.conditions.blur import gaussian
from lightning_sim.conditions.digital import LUMINANCE
from lightning_sim.conditions.draws import Draws
from lightning_sim.demo import DigitsNetwork, digits_loader
from tests.callbacks.training import random_states

WITHOUT_SEVERITY = {"stripe", "dotted_line", "zigzag", "canny_edges"}
# Whose published parameters do not grow together: under the published code, too, not every severity is worse.
UNEVEN = {"glass_blur", "spatter", "snow", "elastic_transform"}


def pictures(channels, size=20, count=5):
    return torch.rand(count, channels, size, size + 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_default_device_does_not_matter(kind):
    images = pictures(3)
    expected = Corruption(kind)(images, torch.arange(5))
    with torch.device("meta"):
        assert torch.equal(Corruption(kind)(images, torch.arange(5, device="cpu")), expected)


def test_there_are_fifteen_of_each():
    assert len(set(GREY_CORRUPTIONS)) == len(set(COLOUR_CORRUPTIONS)) == 15
    assert {*GREY_CORRUPTIONS, *COLOUR_CORRUPTIONS} == set(CORRUPTIONS)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_is_corrupted_alike_in_every_batch_and_nothing_is_drawn(kind, channels):
    images, states = pictures(channels), random_states()
    given = images.clone()
    corruption = Corruption(kind, None if kind in WITHOUT_SEVERITY else 2)
    whole = corruption(images, torch.arange(5))
    assert random_states() == states
    assert torch.equal(images, given)
    assert whole.shape == images.shape
    assert whole.dtype == images.dtype
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert not torch.equal(whole, images)
    ids = torch.tensor([4, 1])
    torch.testing.assert_close(corruption(images[ids], ids), whole[ids], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["shot_noise", "fog", "rotate", "frost"])
def test_another_seed_and_another_sample_draw_otherwise(kind):
    images = pictures(1, count=1).expand(6, -1, -1, -1)
    first, other = (Corruption(kind, seed=seed)(images, torch.arange(6)) for seed in (0, 1))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1
    assert not torch.equal(first, other)


@functools.cache
def trained():
    torch.manual_seed(0)
    network = DigitsNetwork()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(6):
        for images, labels in digits_loader("training"):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return network.eval(), *next(iter(digits_loader("held-out")))


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind not in WITHOUT_SEVERITY | UNEVEN])
def test_each_severity_is_worse_for_a_trained_network(kind):
    network, images, labels = trained()
    accuracies = [float((network(images).argmax(1) == labels).float().mean())]
    for severity in range(1, 6):
        with torch.no_grad():
            logits = network(Corruption(kind, severity)(images, torch.arange(len(images))))
        accuracies.append(float((logits.argmax(1) == labels).float().mean()))
    assert accuracies[0] > 0.85
    assert all(after <= before + 0.01 for before, after in itertools.pairwise(accuracies)), accuracies


@pytest.mark.parametrize("kind", sorted(UNEVEN))
def test_the_last_severity_is_worse_than_none(kind):
    network, images, labels = trained()
    with torch.no_grad():
        corrupted = network(Corruption(kind, 5)(images, torch.arange(len(images)))).argmax(1)
        assert (corrupted == labels).float().mean() < (network(images).argmax(1) == labels).float().mean() - 0.02


def test_noise_has_the_published_size():
    grey = torch.full((50, 1, 28, 28), 0.5)
    ids = torch.arange(50)
    assert float(Corruption("gaussian_noise", 1)(grey, ids).std()) == pytest.approx(0.08, rel=0.02)
    of_colours = Corruption("gaussian_noise", 1)(grey.expand(-1, 3, -1, -1), ids)
    assert float(of_colours.std()) == pytest.approx(0.04, rel=0.02)
    impulse = Corruption("impulse_noise")(grey, ids)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.17 / 2, abs=0.005)
    assert float((impulse == 0).float().mean()) == pytest.approx(0.17 / 2, abs=0.005)
    shot = Corruption("shot_noise", 1)(grey, ids)  # the variance of Poisson numbers of mean 30, over 60 squared
    assert float(shot.var()) == pytest.approx(30 / 60**2, rel=0.03)
    assert torch.equal(shot * 60, (shot * 60).round())


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_smoothing_is_that_of_scipy(sigma):
    image = pictures(1, count=1)
    expected = scipy.ndimage.gaussian_filter(image[0, 0].numpy().astype(float), sigma, mode="nearest", truncate=4)
    np.testing.assert_allclose(gaussian(image, sigma)[0, 0].numpy(), expected, atol=1e-5)


def test_turning_is_that_of_scipy():
    image = pictures(1, count=1)
    turned = Corruption("rotate", 3)(image, torch.tensor([0]))[0, 0].numpy()
    angles = [np.degrees(0.6), -np.degrees(0.6)]
    expected = [
        scipy.ndimage.rotate(image[0, 0].numpy(), a, reshape=False, order=1, mode="grid-constant") for a in angles
    ]
    assert min(np.abs(turned - one).max() for one in expected) < 1e-4


def test_translation_scaling_and_stripes():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 14, 14] = 1
    (place,) = (Corruption("translate", 3)(image, torch.tensor([0]))[0, 0] > 0.5).nonzero()
    assert (place - 14).abs().tolist() == [3, 3]
    blank = torch.ones(1, 1, 28, 28)
    assert float(Corruption("scale", 5)(blank, torch.tensor([0])).mean()) == pytest.approx(0.25, abs=0.03)
    striped = Corruption("stripe")(blank, torch.tensor([0]))[0, 0, 0]
    assert striped.tolist() == [0.0] * 7 + [1.0] * 14 + [0.0] * 7


def test_brightness_contrast_and_mud():
    colours, ids = pictures(3), torch.arange(5)
    brighter = Corruption("brightness", 2)(colours, ids)
    expected = (colours.amax(1) + 0.1).clamp(max=1)
    torch.testing.assert_close(brighter.amax(1), expected)
    torch.testing.assert_close(brighter / expected[:, None], colours / colours.amax(1, keepdim=True))
    flat = Corruption("contrast", 3)(colours, ids)
    torch.testing.assert_close(flat.mean((2, 3)), colours.mean((2, 3)))
    torch.testing.assert_close(flat.std((2, 3)), 0.4 * colours.std((2, 3)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", range(1, 6))
def test_pixels_are_enlarged_as_by_pillow(severity, channels):
    pixels = torch.randint(0, 256, (1, channels, 28, 28), generator=torch.Generator().manual_seed(0))
    share = {1: (0.6, 0.5, 0.4, 0.3, 0.25), 3: (0.95, 0.9, 0.85, 0.75, 0.65)}[channels][severity - 1]
    small = PIL.Image.fromarray(pixels[0].movedim(0, -1).squeeze(-1).byte().numpy())
    for size in (int(28 * share), 28):
        small = small.resize((size, size), PIL.Image.Resampling.BOX)
    found = Corruption("pixelate", severity)(pixels / 255, torch.tensor([0]))[0].movedim(0, -1).squeeze(-1)
    np.testing.assert_allclose(found.numpy() * 255, np.asarray(small), atol=1.01)  # which rounds twice


@pytest.mark.parametrize(
    ("channels", "severity", "last", "factors"), [(1, 1, 1.11, 12), (1, 4, 1.24, 13), (3, 1, 1.06, 7), (3, 4, 1.2, 21)]
)
def test_zooms_are_those_of_the_published_ranges(channels, severity, last, factors):
    image = pictures(channels, size=32, count=1)[..., :32]
    zoomed = []
    for factor in np.linspace(1, last, factors):
        size = int(np.ceil(32 / factor - 1e-9))
        top = (32 - size) // 2
        middle = image[0, :, top : top + size, top : top + size].numpy()
        larger = scipy.ndimage.zoom(middle, (1, factor, factor), order=1)
        trim = (larger.shape[1] - 32) // 2
        zoomed.append(larger[:, trim : trim + 32, trim : trim + 32])
    expected = (image[0].numpy() + np.sum(zoomed, 0)) / (factors + 1)
    found = Corruption("zoom_blur", severity)(image, torch.tensor([0]))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grey_glass_blurs_along_columns_alone():
    upright = (torch.arange(28) % 2).float().expand(1, 1, 28, 28)  # stripes that this leaves as they are
    grey = Corruption("glass_blur", 1)(upright, torch.tensor([0]))
    torch.testing.assert_close(grey[..., 0], upright[..., 0])
    colour = Corruption("glass_blur", 5)(upright.expand(1, 3, 28, 28), torch.tensor([0]))
    assert float(colour[..., 0].min()) > 0.01


@pytest.mark.parametrize(("channels", "severity", "parameters"), [(1, 2, (2, 0.08, 0.2)), (3, 3, (0.08, 0.06, 0.06))])
def test_elastic_pictures_are_mapped_and_then_moved(channels, severity, parameters):
    image, size = pictures(channels, size=28, count=1)[..., :28], 28
    draws = Draws(torch.tensor([0]), 0, "elastic_transform")
    far, sigma, moves = (share * size for share in parameters)
    field = draws.uniform(2, size, size, low=-1, high=1)[0].numpy().astype(float)
    points = 14 + 9 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + draws.uniform(3, 2, low=-moves, high=moves)[0].numpy()
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    mapped = np.einsum("ihw,ij->jhw", np.concatenate((places, np.ones((1, size, size)))), back)
    by = np.stack([scipy.ndimage.gaussian_filter(part, sigma, mode="reflect") for part in field]) * far
    mode = "grid-constant" if channels == 1 else "mirror"
    for channel in range(channels):
        once = scipy.ndimage.map_coordinates(image[0, channel].numpy(), mapped, order=1, mode=mode)
        expected = scipy.ndimage.map_coordinates(once, places + by, order=1, mode=mode)
        found = Corruption("elastic_transform", severity)(image, torch.tensor([0]))[0, channel].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_jpeg_rounds_the_cosines_of_blocks():
    image = 0.3 + 0.4 * pictures(1, count=1, size=8)[..., :8]
    found = Corruption("jpeg_compression", 4)(image, torch.tensor([0]))[0, 0].numpy() * 255
    cosines = scipy.fft.dctn(image[0, 0].numpy() * 255.0 - 128, norm="ortho")
    table = torch.tensor(LUMINANCE).view(8, 8).numpy()
    table = np.clip(5 * table, 1, 255)  # at quality 10
    expected = scipy.fft.idctn(np.round(cosines / table) * table, norm="ortho") + 128
    np.testing.assert_allclose(found, expected.round(), atol=1e-3)
    assert np.abs(found / 255 - image[0, 0].numpy()).max() > 0.02


def test_edges_of_a_square_are_its_outline():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 8:20, 8:20] = 1
    edges = Corruption("canny_edges")(image, torch.tensor([0]))[0, 0]
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[10:18, 10:18].sum() == 0
    assert edges[:6].sum() == edges[:, 22:].sum() == 0
    assert bool((edges[12:16, 6:10].sum(1) >= 1).all())


def test_streams_are_independent_of_each_other():
    draws = Draws(torch.arange(400), 0, "test").normal(50)
    assert float(torch.corrcoef(draws).fill_diagonal_(0).abs().max()) < 0.7
    assert float(draws.mean()) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rain"}, "`kind` must be"),
        ({"kind": "fog", "severity": 6}, "`severity` must be an integer, at least 1 and at most 5"),
        ({"kind": "stripe", "severity": 2}, "'stripe' has no severities"),
    ],
)
def test_what_is_refused_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        Corruption(**options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), "inputs must be floating-point"),
        (torch.zeros(2, 28), r"pictures \(samples, channels, height, width\) .* got shape \(2, 28\)"),
        (
            torch.full((2, 3, 8, 8), -2.0),
            "pixels must lie in the bounds 0 to 1, and these go from -2 to -2",
        ),
    ],
)
def test_what_is_refused_when_called(images, message):
    with pytest.raises(ValueError, match=message):
        Corruption("fog")(images, torch.arange(2))


def test_normalised_pictures_are_corrupted_as_their_pixels():
    images, ids = pictures(3), torch.arange(5)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)))
    corruption = Corruption("fog", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    expected = (Corruption("fog")(images, ids) - mean) / std
    torch.testing.assert_close(corruption((images - mean) / std, ids), expected, atol=1e-5, rtol=0)
