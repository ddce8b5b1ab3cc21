"""Sketches of what lies on a device without float64 have their sums on the CPU, and the same values."""

import pytest
import torch

from lightning_sim.probe import call_network, take_snapshot
from lightning_sim.sketch import Sketch, load_sketch, save_sketch
from tests.no_float64 import DEVICE, Device, Elsewhere
from tests.sketch.data import related


def test_the_stand_in_refuses_float64():
    with Device():
        x = torch.ones(3).to(DEVICE)
        assert x.device.type == "mps"
        assert (x + 1).sum().item() == 6
        for use in (
            x.double,
            lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
            lambda: x.sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="float64"):
                use()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", [(20,), (3000,), (20, 30), (300, 200)])
def test_values_are_those_of_the_cpu(widths, dtype, tmp_path):
    ids = torch.arange(600)
    sides = [related(600, width, rank=10, correlation=0.8, seed=seed) for seed, width in enumerate(widths)]
    sides = [[x.float() for x in pair] for pair in sides]

    def made(index, where):
        sketch = Sketch(num_buckets=256, num_projections=128, dtype=dtype)
        for part in ids.split(250):
            features, *gradients = (where(pair[index][part]) for pair in sides)
            sketch.update(features, part, gradients=gradients[0] if gradients else None)
        return sketch.to(features.device)

    expected = [made(index, lambda x: x) for index in (0, 1)]
    with Device():
        found = [made(index, Elsewhere) for index in (0, 1)]
        assert all(value.device.type == "cpu" for sketch in found for value in sketch.sums())
        torch.testing.assert_close(found[0].cka(found[1]), expected[0].cka(expected[1]))
        torch.testing.assert_close(found[0].nbs(found[1]), expected[0].nbs(expected[1]))
    save_sketch(found[0], tmp_path / "a.safetensors")
    assert float(load_sketch(tmp_path / "a.safetensors").cka(expected[0])) == pytest.approx(1, abs=1e-5)


def test_a_pass_over_the_probe_needs_no_float64_on_the_device():
    network = torch.nn.Sequential(torch.nn.Linear(8, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4))
    inputs = torch.randn(60, 8)
    options = {"forward": call_network, "make_sketch": lambda: Sketch(64, 64), "recycled": None}
    options["representations"] = ("features", "gradients", "features*gradients")

    def taken(where):
        batches = [(ids, where(inputs[ids])) for ids in torch.arange(60).split(20)]
        return take_snapshot(network, batches, ["0", "2"], **options)

    expected = taken(lambda x: x)
    with Device():
        for layer in (network[0], network[2]):
            layer.weight = torch.nn.Parameter(Elsewhere(layer.weight.detach()))
            layer.bias = torch.nn.Parameter(Elsewhere(layer.bias.detach()))
        found = taken(Elsewhere)
    assert not found.problems
    assert not found.gradient_problems
    torch.testing.assert_close(found.logits, expected.logits)
    for representation, sketches in expected.sketches.items():
        for layer, sketch in sketches.items():
            assert float(found.of(representation)[layer].cka(sketch)) == pytest.approx(1, abs=1e-5), layer
