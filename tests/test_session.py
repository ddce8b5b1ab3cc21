"""References that hold nothing, or nothing usable: what of them is taken over, and what is refused."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_sim import SimilarityMonitor
from lightning_sim.sketch import SketchSet, TransportMap, save_sketches, transport_map, transport_map_kernel

from .callbacks.training import CONVOLUTIONS, DigitsNet, digits, features, fit, new_network
from .sketch import exact
from .sketch.data import sketched

PROBE = digits(300, 313)


class FailsInTheSecondEpoch(DigitsNet):
    def forward(self, images):
        if self.current_epoch == 1 and not self.training and len(images) == 13:
            raise RuntimeError("the user's own error")
        return super().forward(images)


class BreaksInTheSecondEpoch(Callback):
    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.weight = pl_module.net[3].weight.detach().clone()
            nn.init.constant_(pl_module.net[3].weight, math.nan)

    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.net[3].weight.data.copy_(self.weight)


@pytest.mark.filterwarnings("ignore:SimilarityMonitor")
@pytest.mark.parametrize("again", ["resume", "fit"])
@pytest.mark.parametrize(
    ("network", "others", "lost"),
    [
        # A failed measurement leaves nothing to compare with: the network as it is found takes its place.
        (FailsInTheSecondEpoch, (), [False, True, False, False]),
        # One layer without values: the measurement that follows has no counterpart for it.
        (DigitsNet, (BreaksInTheSecondEpoch(),), [False, True, True, False]),
    ],
)
def test_the_measurement_before_may_have_been_lost(tmp_path, network, others, lost, again):
    def monitored():
        return SimilarityMonitor("previous", probe=PROBE, layers=CONVOLUTIONS, measures=("cka", "fisher_rao_distance"))

    torch.manual_seed(0)
    monitor, trained = monitored(), network()
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    callbacks = [monitor, *others, checkpoint]
    trainer, _ = fit(callbacks, network=trained, root=tmp_path, epochs=2, enable_checkpointing=True)
    if again == "fit":
        trainer.fit_loop.max_epochs = 4
        trainer.fit(trained, trainer.train_dataloader, trainer.val_dataloaders)
    else:
        monitor, path = monitored(), tmp_path / "epoch=1.ckpt"
        fit([monitor, *others], network=network(), root=tmp_path, epochs=4, ckpt_path=path)
    assert monitor.history.epochs == [0, 1, 2, 3]
    assert np.isnan(monitor.history.trajectory("cka", layer="net.3").values).tolist() == lost


def test_layers_that_are_not_compared_may_be_broken_in_the_reference(tmp_path):
    network = new_network(seed=5)
    x = {layer: features(network, layer, digits(300, 420)) for layer in CONVOLUTIONS}
    path = tmp_path / "reference.safetensors"
    broken = x | {"net.3": x["net.3"] * torch.nan}
    save_sketches(SketchSet({"features": {layer: sketched(values) for layer, values in broken.items()}}), path)
    monitor = SimilarityMonitor(path, layers="net.0", measures="cka", num_projections=1024, num_buckets=1024)
    _, network = fit([monitor], root=tmp_path, epochs=1)
    value = exact.cka_unbiased(features(network, "net.0", digits(300, 420)), x["net.0"])
    assert monitor.history.trajectory("cka", layer="net.0").values[-1] == pytest.approx(value, abs=1e-3)
    with pytest.raises(ValueError, match=r"reference cannot be compared with: net\.3 \(holds NaN or infinite features"):
        fit([SimilarityMonitor(path, layers=CONVOLUTIONS, measures="cka")], root=tmp_path)


class WithoutGradients(DigitsNet):
    """What its first layer gives is finite, and the gradient with respect to it is not."""

    def forward(self, images):
        first = self.net[0](images)
        return self.net[1:](first + 0 * (first * 0).sqrt())


def test_gradients_that_the_reference_has_not_are_found_before_the_first_step(tmp_path):
    settings = {"layers": CONVOLUTIONS, "measures": "cka", "probe": PROBE}
    reference = WithoutGradients()
    monitor = SimilarityMonitor(reference, representations=("features", "gradients"), **settings)
    with pytest.raises(ValueError, match=r"compared with: net\.0 \(holds NaN or infinite gradients\)$"):
        fit([monitor], root=tmp_path)
    monitor = SimilarityMonitor(reference, **settings)
    fit([monitor], root=tmp_path, epochs=1)
    assert np.isfinite(monitor.history.matrix("cka").values).all()


def test_a_transport_map_is_computed_once_a_measurement_and_once_of_the_reference(tmp_path, monkeypatch):
    computed = []

    def counted(features, gradients):
        computed.append(features)
        return transport_map_kernel(features, gradients)

    monkeypatch.setattr(transport_map, "transport_map_kernel", counted)
    monitor = SimilarityMonitor(
        before_training=False,
        probe=PROBE,
        layers=CONVOLUTIONS,
        measures=("cka", "nbs"),
        representations="transport_map",
        num_buckets=16,
    )
    fit([monitor], root=tmp_path, epochs=3)
    assert np.isfinite(monitor.history.trajectory("nbs", layer="net.0", representation="transport_map").values).all()
    assert len(computed) == len(CONVOLUTIONS) * (1 + 3)


def test_the_transport_map_of_the_reference_may_lie_on_another_device():
    x, y = torch.randn(20, 4), torch.randn(20, 4)
    mine, theirs = (TransportMap(sketched(z, num_buckets=32), sketched(y, num_buckets=32)) for z in (x, y))
    kernel, asked = theirs.kernel(), []

    class Elsewhere:
        def to(self, device):
            asked.append(device)
            return kernel

    expected = mine.cka(theirs)
    theirs.kernel = Elsewhere
    assert mine.cka(theirs) == expected
    assert asked == [torch.device("cpu")]
