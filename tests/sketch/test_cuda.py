"""Sketches of features on a CUDA device: the fused kernel against the loop, and no waiting for the device."""

import pytest
import torch
from torch import nn

from lightning_sim.probe import call_network, take_snapshot
from lightning_sim.sketch import Sketch, hash_samples
from lightning_sim.sketch.folding import fold_into

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(128, 65_536), (1, 5000), (3, 1025), (5000, 1300), (64, 100)])
@pytest.mark.parametrize("folds", [(0,), (0, 1)])
def test_the_kernel_folds_as_the_loop_does(shape, dtype, folds):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = fold_into(x.cuda(), 512, folds, 3, torch.float32)
    truth = fold_into(x, 512, folds, 3, torch.float64)
    assert found.dtype == torch.float32
    assert torch.allclose(found.cpu().double(), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


def test_features_with_gaps_between_rows_are_folded_right():
    x = torch.randn(20, 3000)
    for view in (x[::2, :2500], x.T.contiguous().T):
        found = fold_into(view.cuda(), 512, (0, 1), 0, torch.float32)
        assert torch.allclose(found.cpu(), fold_into(view, 512, (0, 1), 0, torch.float32), atol=1e-4)


def test_a_pass_waits_for_nothing_inside_the_loop():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(14_400, 10)).cuda().eval()
    batches = [(ids, torch.randn(len(ids), 3, 32, 32).cuda()) for ids in torch.arange(96).split(32)]
    options = {"forward": call_network, "make_sketch": Sketch}
    representations = ("features", "gradients", "features*gradients")
    take_snapshot(network, batches, ["0", "3"], representations=representations, **options)  # fills caches
    inside = []

    def watched():
        for batch in batches:
            torch.cuda.set_sync_debug_mode("error")
            inside.append(batch)
            yield batch
        torch.cuda.set_sync_debug_mode("default")

    try:
        snapshot = take_snapshot(network, watched(), ["0", "3"], representations=representations, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(inside) == 3
    assert not snapshot.problems
    assert snapshot.logits.shape == (96, 10)


def test_sketches_of_both_devices_agree():
    x, y = torch.randn(600, 3000), torch.randn(600, 3000)
    hashed = hash_samples(torch.arange(600), 256, 0)
    sketches = []
    for device in ("cpu", "cuda"):
        pair = Sketch(256, 512), Sketch(256, 512)
        for sketch, features in zip(pair, (x, x + y), strict=True):
            sketch.update(features.to(device), hashed)
        sketches.append(pair)
    assert float(sketches[0][0].cka(sketches[0][1])) == pytest.approx(
        float(sketches[1][0].cka(sketches[1][1])), abs=1e-5
    )
    assert float(sketches[1][0].cka(sketches[0][0])) == pytest.approx(1, abs=0.1)
