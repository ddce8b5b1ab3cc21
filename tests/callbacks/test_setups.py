"""Real training set-ups: each is the same training bit for bit with and without the monitor, and is measured."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks.training import DigitsNet, digits, features, fit, new_network
from tests.sketch import exact


class Frozen(DigitsNet):
    def __init__(self):
        super().__init__()
        for parameter in self.net[:5].parameters():
            parameter.requires_grad_(False)


class Reused(DigitsNet):
    def __init__(self):
        super().__init__()
        self.square = nn.Linear(64, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, images):
        x = images.flatten(1)
        return self.last(self.square(self.square(x).relu_()).relu_())


class Checkpointed(DigitsNet):
    reentrant = False

    def forward(self, images):
        # Re-entrant checkpointing needs an input that requires grad, and runs the part again in the backward pass.
        inner = checkpoint(self.net[:6], images.requires_grad_(self.training), use_reentrant=self.reentrant)
        return self.net[6:](inner)


class Reentrant(Checkpointed):
    reentrant = True


class Manual(DigitsNet):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net[:6].parameters(), lr=0.05),
            torch.optim.Adam(self.net[6:].parameters(), lr=0.001),
        ]


class CompiledPart(DigitsNet):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")

    def on_train_epoch_start(self):
        self.net._orig_mod[4].eval()


class Streamed(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter([self.dataset[index] for index in range(len(self.dataset))])


class StreamedLoaders(DigitsNet):
    def train_dataloader(self):
        return DataLoader(Streamed(digits(0, 300)), batch_size=50)

    def val_dataloader(self):
        return DataLoader(Streamed(digits(300, 420)), batch_size=50)


class TwoValidationSets(DigitsNet):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)

    def train_dataloader(self):
        return DataLoader(digits(0, 300), batch_size=50, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(digits(300, 420), batch_size=50), DataLoader(digits(420, 500), batch_size=50)]


def train(kind, root, callbacks, *, loaders=True, **options):
    seed_everything(1, verbose=False)
    network = kind()
    if not loaders:
        seed_everything(2, verbose=False)
        trainer = Trainer(
            **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
            **{"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": str(root)} | options,
            callbacks=callbacks,
        )
        trainer.fit(network)
        return network
    return fit(callbacks, network=network, epochs=2, root=root, **options)[1]


BAREBONES = {"barebones": True} | dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
)
SETUPS = {
    "plain": (DigitsNet, {}),
    "bf16-mixed": (DigitsNet, {"precision": "bf16-mixed"}),
    "bf16-true": (DigitsNet, {"precision": "bf16-true"}),
    "64-true": (DigitsNet, {"precision": "64-true"}),
    "gradient accumulation": (DigitsNet, {"accumulate_grad_batches": 4}),
    "gradient clipping": (DigitsNet, {"gradient_clip_val": 0.1}),
    "frozen backbone": (Frozen, {}),
    "reused layer, in-place activation": (Reused, {}),
    "checkpointing": (Checkpointed, {}),
    "re-entrant checkpointing": (Reentrant, {}),
    "two optimizers, by hand": (Manual, {}),
    "compiled part": (CompiledPart, {}),
    "no inference mode": (DigitsNet, {"inference_mode": False}),
    "limit_val_batches": (DigitsNet, {"limit_val_batches": 1}),
    "overfit_batches": (DigitsNet, {"overfit_batches": 2}),
    "iterable datasets": (StreamedLoaders, {"loaders": False}),
    "several validation loaders": (TwoValidationSets, {"loaders": False}),
    "reloaded loaders": (DigitsNet, {"reload_dataloaders_every_n_epochs": 1}),
    "deterministic": (DigitsNet, {"deterministic": True}),
    "barebones": (DigitsNet, BAREBONES),
}


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*overfit.*")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.filterwarnings("ignore:.*barebones.*")
@pytest.mark.filterwarnings("ignore:lightning_sim. not measured. net.0, net.3, net.8 .did not run")
@pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__` defined.*")
def test_the_same_training_bit_for_bit(tmp_path, name):
    kind, options = SETUPS[name]
    plain = train(kind, tmp_path, [], **options)
    state = torch.get_rng_state()
    monitor = SimilarityMonitor(num_samples=60)
    monitored = train(kind, tmp_path, [monitor], **options)
    assert torch.equal(torch.get_rng_state(), state)
    for (key, value), other in zip(plain.state_dict().items(), monitored.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert not any(module._forward_hooks for module in monitored.modules())
    assert monitor.history.epochs == [0, 1]
    for layer in monitor.history.layers:
        assert np.isfinite(monitor.history.trajectory("cka", layer=layer).values).all()


def test_a_reused_layer_is_measured_use_by_use(tmp_path):
    monitor = SimilarityMonitor()
    with pytest.warns(UserWarning, match=r"not measured: net.0, net.3, net.8 \(did not run"):
        network = train(Reused, tmp_path, [monitor])
    assert monitor.history.layers == ["square", "square[1]", "last"]
    seed_everything(1, verbose=False)
    start = Reused()
    with torch.no_grad():
        x = digits(300, 420).tensors[0].flatten(1)
        after, before = (net.square(net.square(x).relu()) for net in (network, start))
    value = monitor.history.trajectory("cka", layer="square[1]").values[-1]
    assert value == pytest.approx(exact.cka_unbiased(after, before), abs=1e-5)


@pytest.mark.parametrize("kind", ["network", "part"])
@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")  # torch 2.4, of Lightning's own logging
def test_compiled_networks_are_measured_under_their_own_names(tmp_path, kind):
    expected = SimilarityMonitor()
    train(DigitsNet, tmp_path / "plain", [expected])
    monitor = SimilarityMonitor(layers=["net.0", "net.8"], measures=("cka",))
    if kind == "part":
        train(CompiledPart, tmp_path, [monitor])
    else:
        seed_everything(1, verbose=False)
        fit([monitor], network=torch.compile(DigitsNet(), backend="eager"), epochs=2, root=tmp_path)
    for layer in ("net.0", "net.8"):
        values, others = (history.history.trajectory("cka", layer=layer).values for history in (monitor, expected))
        assert values == pytest.approx(others, abs=1e-5)


def test_half_precision_sketches_accumulate_in_float32(tmp_path):
    monitor = SimilarityMonitor(layers=["net.8"], measures=("cka",))
    network = train(DigitsNet, tmp_path, [monitor], precision="bf16-true")
    sketches = monitor._run._session._reference.of("features")
    assert all(value.dtype in (torch.float32, torch.float64) for value in sketches["net.8"].sums())
    assert network.net[0].weight.dtype == torch.bfloat16
    networks = [net.to(torch.bfloat16) for net in (new_network(), network)]
    before, after = (features(net, "net.8", _half(digits(300, 420))) for net in networks)
    value = monitor.history.trajectory("cka", layer="net.8").values[-1]
    assert value == pytest.approx(exact.cka_unbiased(after.double(), before.double()), abs=2e-3)


def _half(dataset):
    return type(dataset)(dataset.tensors[0].to(torch.bfloat16), dataset.tensors[1])


@pytest.mark.parametrize("method", ["validate", "test"])
def test_validating_and_testing_alone_measure_nothing(tmp_path, method):
    class Tested(DigitsNet):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    monitor = SimilarityMonitor()
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": str(tmp_path)}
    trainer = Trainer(callbacks=[monitor], **options)
    getattr(trainer, method)(Tested(), DataLoader(digits(300, 420), batch_size=50), verbose=False)
    assert len(monitor.history) == 0
    assert not list(tmp_path.rglob("record.jsonl"))


def test_the_record_lies_where_the_first_logger_logs(tmp_path):
    loggers = [CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")]
    fit([SimilarityMonitor(before_training=False)], root=tmp_path, logger=loggers, epochs=1)
    assert len(read_history(tmp_path / "a" / "lightning_logs" / "version_0")) == 1
    assert not (tmp_path / "b" / "lightning_logs" / "version_0" / "similarity").exists()


def test_an_interrupt_during_a_measurement_leaves_no_trace(tmp_path):
    class Interrupted(DigitsNet):
        def forward(self, images):
            if not self.training and self.trainer.global_step and images.shape[0] == 13:
                raise KeyboardInterrupt
            return super().forward(images)

    network = Interrupted()
    flags = [module.training for module in network.modules()]
    with pytest.raises(SystemExit):
        fit([SimilarityMonitor(probe=digits(300, 313))], root=tmp_path, network=network, validate=False)
    assert not any(module._forward_hooks for module in network.modules())
    assert [module.training for module in network.modules()] == flags
