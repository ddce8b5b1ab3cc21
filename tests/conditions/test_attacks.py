"""Attacks against saved values of torchattacks, on normalised inputs, and without traces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sim.conditions import ATTACKS, Attack
from tests.callbacks.training import digits, new_network, random_states

SAVED = dict(np.load(Path(__file__).parent.parent / "golden" / "torchattacks.npz"))


class Saved:
    """Random numbers that were drawn before."""

    def __init__(self, draws):
        self.draws = draws

    def normal(self, *shape):
        return self.draws

    def uniform(self, *shape, low, high):
        assert self.draws.abs().max() <= high == -low
        return self.draws


def network_of_file():
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    names = {name: torch.from_numpy(SAVED[f"weights/{name}"]) for name in network.state_dict()}
    network.load_state_dict(names)
    return network


@pytest.mark.parametrize("kind", ATTACKS)
def test_values_of_torchattacks(kind):
    images, labels = torch.from_numpy(SAVED["images"]), torch.from_numpy(SAVED["labels"])
    draws = Saved(torch.from_numpy(SAVED[f"draws/{kind}"])) if kind != "fgsm" else None
    attacked = Attack(kind, 0.1).crafted(images, network_of_file(), (images, labels), draws)
    assert (attacked - images).abs().mean() > 0.04
    np.testing.assert_allclose(attacked.numpy(), SAVED[f"attacked/{kind}"], atol=1e-6, rtol=0)


class Normalised(nn.Module):
    def __init__(self, network, mean, std):
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


@pytest.mark.parametrize("kind", ATTACKS)
def test_normalised_inputs_are_attacked_as_the_pixels_that_they_come_from(kind):
    mean, std = (torch.tensor(values).view(1, 2, 1, 1) for values in ((0.4, 0.5), (0.2, 0.3)))
    network, pixels = network_of_file(), torch.from_numpy(SAVED["images"])
    inputs, labels = (pixels - mean) / std, torch.from_numpy(SAVED["labels"])
    network_of_pixels = Normalised(network, mean, std)
    expected, _ = Attack(kind, 0.1)(network_of_pixels, (pixels, labels))
    attacked, _ = Attack(kind, 0.1, mean=(0.4, 0.5), std=(0.2, 0.3))(network, (inputs, labels))
    torch.testing.assert_close(attacked * std + mean, expected, atol=1e-5, rtol=0)
    in_bytes, _ = Attack(kind, 0.1, bounds=(0, 255))(Normalised(network_of_pixels, 0, 255), (pixels * 255, labels))
    torch.testing.assert_close(in_bytes / 255, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_left_behind(kind, mode):
    network = new_network()
    images, labels = digits(0, 20).tensors
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags, states, given = [m.training for m in network.modules()], random_states(), images.clone()
    with mode():
        attacked, same = Attack(kind, 0.1)(network, (images.clone(), labels))
    assert not attacked.requires_grad
    assert same is labels
    assert torch.equal(images, given)
    assert not torch.equal(attacked, images)
    assert random_states() == states
    assert [m.training for m in network.modules()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    if kind != "noise":
        assert (attacked - images).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_sample_is_attacked_alike_in_every_batch(kind):
    network, (images, labels) = new_network(), digits(0, 12).tensors
    whole, _ = Attack(kind, 0.1)(network, (images, labels), torch.arange(12))
    ids = torch.tensor([7, 2, 11])
    part, _ = Attack(kind, 0.1)(network, (images[ids], labels[ids]), ids)
    torch.testing.assert_close(part, whole[ids], atol=1e-6, rtol=0)
    other, _ = Attack(kind, 0.1, seed=1)(network, (images, labels), torch.arange(12))
    assert torch.equal(other, whole) == (kind == "fgsm")


@pytest.mark.parametrize(
    ("kind", "forwards"), [("fgsm", 1), ("fast_fgsm", 1), ("noise", 0), ("pgd", 10), ("trades", 11)]
)
def test_how_often_the_network_runs(kind, forwards):
    network, (images, labels) = new_network(), digits(0, 12).tensors
    calls = []
    network.net[0].register_forward_hook(lambda *given: calls.append(1))
    Attack(kind, 0.1)(network, (images, labels))
    assert len(calls) == forwards


def test_without_labels_the_predictions_are_attacked():
    network, (images, _) = new_network(), digits(0, 12).tensors
    predicted = network.eval()(images).argmax(1)
    alone = Attack("fgsm", 0.1)(network, images)
    assert torch.equal(alone, Attack("fgsm", 0.1)(network, {"x": images, "label": predicted}, forward=by_name)["x"])


def by_name(network, batch):
    return network(batch["x"] if isinstance(batch, dict) else batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cw"}, "`kind` must be"),
        ({"kind": "pgd", "epsilon": 0}, "`epsilon` must be above 0, got 0"),
        ({"kind": "pgd", "steps": 0}, "`steps` must be an integer, at least 1"),
        ({"kind": "pgd", "crafted_on": "both"}, "`crafted_on` must be"),
        ({"kind": "pgd", "bounds": (1, 0)}, "`bounds` must be the least and the largest"),
        ({"kind": "pgd", "std": 0.0}, "`std` must be above 0"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        Attack(**options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.uint8), r"inputs must be floating-point .* got torch.uint8 .* images / 255"),
        (torch.full((4, 3), 2.5), r"bounds 0 to 1, and these go from 2\.5 to 2\.5; give `bounds`, or `mean` and `std`"),
        ({"text": torch.zeros(4, 3)}, "inputs under one of pixel_values, .* the batch has text"),
        ("text", "got str"),
    ],
)
def test_inputs_that_cannot_be_attacked(batch, message):
    with pytest.raises(ValueError, match=message):
        Attack("pgd")(nn.Linear(3, 2), batch)
