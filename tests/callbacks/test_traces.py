"""Datasets and networks that leave traces when they are run: a monitored training must be as one without a monitor."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from lightning_sim import SimilarityMonitor
from tests.callbacks.test_setups import train
from tests.callbacks.training import DigitsNet, digits, fit, new_network, random_states
from tests.test_guards import buffers


def draw():
    return torch.rand(()) + float(np.random.rand()) + random.random()


class Stream(IterableDataset):
    """Without a length, and in random order, by which its iterator draws before it gives the first sample."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        draw()
        for index in torch.randperm(len(self.dataset)).tolist():
            image, label = self.dataset[index]
            yield image + 0.01 * draw(), label
        draw()


class Augmented(Dataset):
    def __init__(self, dataset):
        draw()
        self.dataset = dataset

    def __len__(self):
        draw()
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image + 0.01 * draw(), label


def noisy(samples):
    images, labels = default_collate(samples)
    return images + 0.01 * draw(), labels


class Streamed(DigitsNet):
    def train_dataloader(self):
        return DataLoader(digits(0, 300), batch_size=50, shuffle=True)

    def val_dataloader(self):
        draw()
        return DataLoader(Stream(digits(300, 420)), batch_size=50)


class Hooked(DigitsNet):
    """Draws in everything that a monitor may call."""

    def __init__(self):
        super().__init__()
        self.net[0].register_forward_hook(lambda module, inputs, output: output + 0.01 * draw())

    def forward(self, images):
        return super().forward(nn.functional.dropout(images, 0.1, training=True))


class InPlace(DigitsNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images):
        self.mean.lerp_(images.mean(), 0.1)
        return super().forward(images - self.mean)


class Rebound(InPlace):
    def forward(self, images):
        self.mean = self.mean.lerp(images.mean(), 0.1)
        return DigitsNet.forward(self, images - self.mean)


class BatchNormalised(DigitsNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1), persistent=False)

    def forward(self, images):
        images = nn.functional.batch_norm(images, self.running_mean, self.running_var, training=True)
        return super().forward(images)


def shuffled(dataset):
    return DataLoader(dataset, 50, shuffle=True, generator=torch.Generator().manual_seed(5), collate_fn=noisy)


SETUPS = {
    "a validation stream that draws": (Streamed, None),
    "a probe stream that draws": (DigitsNet, lambda: Stream(digits(300, 420))),
    "a loader of a stream": (DigitsNet, lambda: DataLoader(Stream(digits(300, 420)), 50, collate_fn=noisy)),
    "random transforms and collation": (DigitsNet, lambda: shuffled(Augmented(digits(300, 420)))),
    "hooks and a forward that draw": (Hooked, None),
    "a buffer changed in place": (InPlace, None),
    "a buffer replaced": (Rebound, None),
    "statistics of the batch": (BatchNormalised, None),
}
REPRESENTATIONS = ("features", "gradients")


@pytest.mark.parametrize("name", SETUPS)
def test_the_same_training_bit_for_bit(tmp_path, name):
    kind, make_probe = SETUPS[name]
    trained, states = [], []
    for monitored in (False, True):
        with torch.random.fork_rng():
            probe = make_probe() if make_probe else None
        monitor = SimilarityMonitor(probe=probe, num_samples=60, representations=REPRESENTATIONS)
        trained.append(train(kind, tmp_path, [monitor] if monitored else [], loaders=kind is not Streamed))
        states.append(random_states())
    assert states[0] == states[1]
    assert [entry[-1] for entry in buffers(trained[0])] == [entry[-1] for entry in buffers(trained[1])]
    for (key, value), other in zip(trained[0].state_dict().items(), trained[1].state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert monitor.history.epochs == [0, 1]
    assert np.isfinite(monitor.history.trajectory("cka", layer="net.8").values).all()


class Seeded(Callback):
    def __init__(self, seed):
        self.seed = seed

    def on_train_start(self, trainer, pl_module):
        seed_everything(self.seed, verbose=False)


def test_a_stream_in_random_order_is_the_same_probe_in_every_run(tmp_path):
    fingerprints = set()
    for seed in (1, 2):
        monitor = SimilarityMonitor(probe=Stream(digits(300, 420)), num_samples=60)
        train(DigitsNet, tmp_path, [Seeded(seed), monitor])
        fingerprints.add(monitor.history.metadata["probe"]["fingerprint"])
    assert len(fingerprints) == 1


@pytest.mark.parametrize("kind", [InPlace, Rebound, BatchNormalised])
def test_a_reference_network_is_never_changed(tmp_path, kind):
    seed_everything(3, verbose=False)
    reference = kind()
    before = buffers(reference), {name: value.clone() for name, value in reference.state_dict().items()}
    measures = ("cka", "jsd", "fisher_rao_distance", "task2vec")
    options = {"num_samples": 30, "measures": measures, "representations": REPRESENTATIONS}
    monitor = SimilarityMonitor(reference, **options)
    fit([monitor], network=kind(), epochs=2, root=tmp_path)
    assert buffers(reference) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in reference.state_dict().items())
    assert np.isfinite(list(monitor.history.measurements[-1].values.values())).all()


class Lazy(DigitsNet):
    def __init__(self):
        super().__init__()
        self.net[8] = nn.LazyLinear(10)


def test_weights_that_the_first_batch_makes_are_not_made_by_the_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"net\.8\.weight, net\.8\.bias would be made by its first batch; run it"):
        fit([SimilarityMonitor(num_samples=30)], network=Lazy(), epochs=1, root=tmp_path, validate=False)


class Switches:
    """Ways in which torch computes, set for a test."""

    def __init__(self):
        self.previous = self.read()

    def read(self):
        return {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            "dtype": torch.get_default_dtype(),
            "device": torch.empty(0).device,
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "cudnn": torch.backends.cudnn.enabled,
            "mkldnn": torch.backends.mkldnn.enabled,
            "mha": torch.backends.mha.get_fastpath_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
        }

    def restore(self):
        torch.use_deterministic_algorithms(self.previous["deterministic"])
        torch.autograd.set_detect_anomaly(self.previous["anomaly"][0])
        torch.set_default_dtype(self.previous["dtype"])
        torch.set_default_device(None)


@pytest.fixture
def switches():
    found = Switches()
    yield found
    found.restore()


SWITCHES = {
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("cpu"),
    "another device": lambda: None,
}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:stitches are fitted on one half")
def test_switches_of_torch_are_as_they_were_and_do_not_fail(tmp_path, switches, name):
    from lightning_sim.measures import MEASURES, LayerFunction
    from lightning_sim.probe.representations import REPRESENTATIONS as ALL

    SWITCHES[name]()
    before, seen = switches.read(), []
    # What is made where nobody said would have no values.
    elsewhere = torch.device("meta") if name == "another device" else nullcontext()

    class Reads(SimilarityMonitor):
        def on_train_start(self, trainer, pl_module):
            with elsewhere:
                super().on_train_start(trainer, pl_module)

        def on_validation_epoch_end(self, trainer, pl_module):
            with elsewhere:
                inside = switches.read()
                super().on_validation_epoch_end(trainer, pl_module)
                seen.append(switches.read() == inside)

    # Functions of single samples have nothing to say of transport maps.
    measures = [
        name
        for name, measure in MEASURES.items()
        if name != "mean_embedding" and not isinstance(measure, LayerFunction)
    ]
    # Of the first samples an untrained network gets some right, to which stitching is relative.
    samples = {"num_samples": 30, "probe_choice": "first"}
    monitor = Reads(**samples, measures=measures, representations=list(ALL), on_error="raise")
    precision = "64-true" if name == "dtype" else "32-true"
    fit([monitor], network=new_network().to(torch.get_default_dtype()), epochs=2, root=tmp_path, precision=precision)
    assert all(seen)
    assert switches.read() == before
    assert np.isfinite(list(monitor.history.measurements[-1].values.values())).all()
