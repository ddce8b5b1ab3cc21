import copy
import math
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.record import STATISTICS
from tests.callbacks.training import CONVOLUTIONS, DigitsNet, digits, features, fit, new_network, random_states
from tests.sketch import exact


def count_hooks(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("validate", [True, False])
def test_training_is_the_same_bit_for_bit(tmp_path, validate):
    _, plain = fit(root=tmp_path, validate=validate)
    plain_states = random_states()
    flags = [module.training for module in plain.modules()]
    _, monitored = fit([SimilarityMonitor()], root=tmp_path, validate=validate)
    assert random_states() == plain_states
    for (name, value), other in zip(plain.state_dict().items(), monitored.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert [module.training for module in monitored.modules()] == flags
    assert count_hooks(monitored) == count_hooks(plain) == 0


def test_values_are_those_of_the_definition(tmp_path):
    start = copy.deepcopy(new_network())
    monitor = SimilarityMonitor(layers=[*CONVOLUTIONS, "net.8"], measures=("cka", "nbs", "agreement", "jsd"))
    _, network = fit([monitor], root=tmp_path)
    probe = digits(300, 420)
    for layer in [*CONVOLUTIONS, "net.8"]:
        before, after = features(start, layer, probe), features(network, layer, probe)
        assert monitor.history.trajectory("cka", layer=layer).values[-1] == pytest.approx(
            exact.cka_unbiased(after, before), abs=1e-5
        )
        assert monitor.history.trajectory("nbs", layer=layer).values[-1] == pytest.approx(
            exact.nbs(after, before), abs=1e-5
        )
    matrix = monitor.history.matrix("cka")
    assert matrix.values[0, 1] == pytest.approx(
        exact.cka_unbiased(features(network, "net.0", probe), features(start, "net.3", probe)), abs=1e-5
    )
    p, q = (features(net, "net.8", probe).double().softmax(1).numpy() for net in (network, start))
    m = (p + q) / 2
    jsd = (p * np.log(p / m) + q * np.log(q / m)).sum(1).mean() / 2
    assert monitor.history.trajectory("jsd").values[-1] == pytest.approx(jsd, abs=1e-6)
    agreement = (p.argmax(1) == q.argmax(1)).mean()
    assert monitor.history.trajectory("agreement").values[-1] == pytest.approx(agreement, abs=1e-6)


def saved(kind, tmp_path):
    """A trained network, kept as `kind`."""
    trainer, network = fit(root=tmp_path, network=new_network(seed=5), epochs=1)
    if kind == "module":
        return network
    path = tmp_path / f"reference.{kind.removeprefix('part.')}"
    if kind == "ckpt":
        trainer.save_checkpoint(path)
    elif kind == "safetensors":
        save_file(network.state_dict(), path)
    elif kind == "pt":
        torch.save({f"_orig_mod.{name}": value for name, value in network.state_dict().items()}, path)
    else:
        torch.save(network.net.state_dict(), path)
    return path


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "pt", "part.pt", "module"])
def test_every_kind_of_reference_gives_the_same_values(tmp_path, kind):
    reference = saved(kind, tmp_path)
    expected = features(saved("module", tmp_path), "net.3", digits(300, 420))
    monitor = SimilarityMonitor(reference, layers=CONVOLUTIONS, measures=("cka",))
    _, network = fit([monitor], root=tmp_path, epochs=2)
    value = exact.cka_unbiased(features(network, "net.3", digits(300, 420)), expected)
    assert monitor.history.trajectory("cka", layer="net.3").values[-1] == pytest.approx(value, abs=1e-5)


def test_the_reference_file_may_go_once_training_runs(tmp_path):
    reference = saved("ckpt", tmp_path)

    class Remove(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            reference.unlink(missing_ok=True)

    monitor = SimilarityMonitor(reference, measures=("cka",))
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    fit([monitor, Remove(), checkpoint], root=tmp_path, enable_checkpointing=True)
    assert monitor.history.epochs == [0, 1, 2]
    assert (tmp_path / "last.ckpt").is_file()


def test_previous_compares_with_the_measurement_before(tmp_path):
    class Keep(Callback):
        networks = ()

        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.networks = (*self.networks, copy.deepcopy(pl_module.net.state_dict()))

    keep = Keep()
    monitor = SimilarityMonitor("previous", layers=CONVOLUTIONS, measures=("cka",))
    fit([monitor, keep], root=tmp_path)
    nets = [new_network() for _ in range(2)]
    for net, state in zip(nets, keep.networks[-2:], strict=True):
        net.net.load_state_dict(state)
    value = exact.cka_unbiased(*(features(net, "net.3", digits(300, 420)) for net in nets))
    assert monitor.history.trajectory("cka", layer="net.3").values[-1] == pytest.approx(value, abs=1e-5)


def test_another_architecture_is_paired_by_a_mapping(tmp_path):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    monitor = SimilarityMonitor(teacher, layers={"net.3": "1", "net.8": "3"})
    _, network = fit([monitor], root=tmp_path, epochs=1)
    probe = digits(300, 420)
    value = exact.cka_unbiased(features(network, "net.3", probe), features(teacher, "1", probe))
    assert monitor.history.trajectory("cka", layer="net.3").values[-1] == pytest.approx(value, abs=1e-5)
    assert monitor.history.to_records()[0]["reference_layer"] == "1"


@pytest.mark.parametrize(
    ("options", "validate", "expected"),
    [
        ({}, True, [0, 1, 2, 3]),
        ({}, False, [0, 1, 2, 3]),
        ({"check_val_every_n_epoch": 2}, True, [1, 3]),
        ({"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}, True, [1, 3]),
        ({"limit_val_batches": 0}, True, [0, 1, 2, 3]),
        ({"val_check_interval": 0.5}, True, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_when_it_measures(tmp_path, options, validate, expected):
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka",), before_training=False)
    fit([monitor], root=tmp_path, epochs=4, validate=validate, **options)
    assert [measurement.epoch for measurement in monitor.history.measurements] == expected


def test_every_n_epochs(tmp_path):
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka",), every_n_epochs=2, before_training=False)
    fit([monitor], root=tmp_path, epochs=4)
    assert monitor.history.epochs == [1, 3]


def test_checkpoints_and_early_stopping_monitor_the_same_epoch(tmp_path):
    name = "similarity/cka/features/net.8"
    checkpoint = ModelCheckpoint(tmp_path, monitor=name, mode="min", save_top_k=-1, filename="{epoch}")
    stopping = EarlyStopping(name, mode="max", patience=0)
    monitor = SimilarityMonitor(measures=("cka",), before_training=False)
    fit([monitor, stopping, checkpoint], root=tmp_path, epochs=5, enable_checkpointing=True)
    values = monitor.history.trajectory("cka", layer="net.8").values
    assert len(values) < 5
    scores = sorted(float(score) for score in checkpoint.best_k_models.values())
    assert scores == pytest.approx(sorted(values), abs=1e-6)


def test_scalars_and_figures_share_their_step_and_the_record_holds_all(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")]
    monitor = SimilarityMonitor()
    fit([monitor], root=tmp_path, logger=loggers)
    events = EventAccumulator(loggers[0].log_dir, size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = events.Scalars("similarity/cka/features/net.0")
    images = events.Images("similarity/matrix/cka/features")
    assert [event.step for event in scalars] == [event.step for event in images]
    assert [event.value for event in scalars] == pytest.approx(
        monitor.history.trajectory("cka", layer="net.0").values, abs=1e-7
    )
    read = read_history(loggers[0].log_dir)
    assert read.to_records() == monitor.history.to_records()
    assert read.matrix("cka") == monitor.history.matrix("cka")
    assert "similarity/jsd" in (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text()
    assert all(value > 0 for value in read.trajectory("seconds").values)


def _readable(path):
    try:
        return len(read_history(path, source="wandb")) == 2
    except ValueError:
        return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_holds_the_same_numbers_and_the_heatmaps(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka", "jsd"), before_training=False)
    fit([monitor], root=tmp_path, logger=logger, epochs=2)
    wandb.finish()
    deadline = time.monotonic() + 60
    while not _readable(tmp_path) and time.monotonic() < deadline:  # W&B writes from a process of its own
        time.sleep(0.2)
    read = read_history(tmp_path, source="wandb")
    unknown = dict.fromkeys(("run", *STATISTICS))  # to a logger of scalars
    assert [{**row, **unknown} for row in read.to_records() if row["measure"] != "seconds"] == [
        {**row, **unknown} for row in monitor.history.to_records() if row["measure"] != "seconds"
    ]
    images = [path.name for path in tmp_path.rglob("*.png")]
    assert len([name for name in images if "features" in name]) == 2


def test_the_record_is_written_measurement_by_measurement(tmp_path):
    lengths = []

    class Read(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                lengths.append(len(read_history(tmp_path)))

    fit([SimilarityMonitor(measures=("cka",), before_training=False), Read()], root=tmp_path)
    assert lengths == [1, 2, 3]


def test_resuming_continues_the_record_and_keeps_the_first_reference(tmp_path):
    straight = SimilarityMonitor()
    fit([straight], root=tmp_path / "straight", epochs=4)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit([SimilarityMonitor(), checkpoint], root=tmp_path / "run", epochs=2, enable_checkpointing=True)
    resumed = SimilarityMonitor()
    path = tmp_path / "checkpoints" / "epoch=1.ckpt"
    fit([resumed], root=tmp_path / "run", epochs=4, network=new_network(seed=9), ckpt_path=path)
    assert resumed.history.epochs == [0, 1, 2, 3]
    assert read_history(tmp_path / "run").to_records() == resumed.history.to_records()
    # The shuffles after a resume differ, the first two epochs are the same training.
    for layer in ("net.0", "net.8"):
        before, after = (monitor.history.trajectory("cka", layer=layer).values for monitor in (straight, resumed))
        assert after[:2] == pytest.approx(before[:2], abs=1e-6)
        assert after[2] < 0.999


@pytest.mark.parametrize("changes", [{"seed": 3}, {"layers": ["net.0"]}, {"num_samples": 50}, {"num_buckets": 256}])
def test_resuming_with_another_comparison_is_refused(tmp_path, changes):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    fit([SimilarityMonitor(measures=("cka",)), checkpoint], root=tmp_path, epochs=1, enable_checkpointing=True)
    monitor = SimilarityMonitor(**{"measures": ("cka",)} | changes)
    with pytest.raises(ValueError, match="other settings"):
        fit([monitor], root=tmp_path, epochs=2, ckpt_path=tmp_path / "last.ckpt")


def test_broken_weights_are_reported_once_and_training_goes_on(tmp_path):
    class Break(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                nn.init.constant_(pl_module.net[3].weight, math.nan)

    monitor = SimilarityMonitor(layers=CONVOLUTIONS, before_training=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([monitor, Break()], root=tmp_path, epochs=4)
    about_layer = [str(w.message) for w in caught if "net.3" in str(w.message)]
    assert len(about_layer) == 1
    assert "NaN or infinite" in about_layer[0]
    for name in ("cka", "nbs"):
        values = monitor.history.trajectory(name, layer="net.3").values
        assert np.isnan(values).tolist() == [False, True, True, True]
    assert np.isnan(monitor.history.trajectory("jsd").values).tolist() == [False, True, True, True]
    assert read_history(tmp_path).epochs == [0, 1, 2, 3]


def test_an_exception_in_the_forward_is_logged_as_nan_and_leaves_no_trace(tmp_path):
    class Failing(DigitsNet):
        armed = False

        def forward(self, images):
            if self.armed and not self.training and not torch.is_grad_enabled() and images.shape[0] == 13:
                raise RuntimeError("the user's own error")
            return super().forward(images)

        def on_validation_epoch_end(self):
            self.armed = self.current_epoch >= 1

    network = Failing()
    monitor = SimilarityMonitor(probe=digits(300, 313), before_training=False)
    # Modules' hooks run after callbacks': armed from the third measurement on, disarmed nowhere else.
    with pytest.warns(UserWarning, match="the user's own error"):
        fit([monitor], root=tmp_path, epochs=4, network=network)
    assert np.isnan(monitor.history.trajectory("cka", layer="net.0").values).tolist() == [False, False, True, True]
    assert count_hooks(network) == 0
    with pytest.raises(RuntimeError, match="the user's own error"):
        fit(
            [SimilarityMonitor(probe=digits(300, 313), on_error="raise", before_training=False)],
            root=tmp_path,
            epochs=4,
            network=Failing(),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["net.33"]}, r"no layer 'net.33'.*Nearest: net.3.*Available: net, net.0"),
        ({"layers": ["conv*"]}, r"matches the glob 'conv\*'.*Available: net, net.0"),
        ({"layers": ["unused"]}, "unused .did not run"),
        ({"layers": ["words"]}, "words .returned no tensor"),
        ({"layers": {"net.0": "nowhere"}}, "'nowhere' in the reference"),
        ({"probe": TensorDataset(torch.zeros(0, 1, 8, 8))}, "0 samples.*at least 4.*empty"),
        ({"probe": digits(0, 3)}, "3 samples.*at least 4"),
        ({"probe": 7}, "must be a DataLoader, a Dataset.*got 7"),
        ({"probe": TensorDataset(torch.full((9, 1, 8, 8), math.nan))}, r"net.0, net.3, net.8 \(holds NaN"),
        ({"probe": TensorDataset(torch.zeros(9, 5))}, "could not be run on a batch of the probe.*forward="),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path, settings, message):
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    class Odd(DigitsNet):
        def __init__(self):
            super().__init__()
            self.words, self.unused = Words(), nn.Linear(2, 2)
            self.steps = 0

        def forward(self, images):
            self.words(images)
            return super().forward(images)

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return super().training_step(batch, batch_idx)

    network = Odd()
    with pytest.raises(ValueError, match=message):
        fit([SimilarityMonitor(**settings)], root=tmp_path, network=network)
    assert network.steps == 0
    assert count_hooks(network) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ("cka", "ckb")}, "`measures`.*ckb"),
        ({"measures": ()}, "`measures`"),
        ({"representations": ("gradient",)}, "`representations`"),
        ({"num_buckets": 1000}, "power of two"),
        ({"num_samples": 3}, "`num_samples`"),
        ({"every_n_epochs": 0}, "`every_n_epochs`"),
        ({"estimator": "best"}, "`estimator`"),
        ({"name": "../elsewhere"}, "`name`"),
        ({"on_error": "ignore"}, "`on_error`"),
        ({"reference": 3}, "`reference`.*int"),
        ({"reference": "start"}, "`reference` 'start'"),
    ],
)
def test_bad_arguments_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        SimilarityMonitor(**settings)


def test_a_missing_checkpoint_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        SimilarityMonitor(tmp_path / "nothing.ckpt")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_a_checkpoint_with_code_is_refused_and_not_executed(tmp_path, suffix):
    path, trace = tmp_path / f"bad.{suffix}", tmp_path / "executed"
    torch.save({"state_dict": new_network().state_dict(), "hyper_parameters": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="refused, because reading it would run code"):
        fit([SimilarityMonitor(path)], root=tmp_path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(ValueError, match=r"bad\.(ckpt|pt)"):
        fit([SimilarityMonitor(path)], root=tmp_path)
    assert not trace.exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = new_network().state_dict()
    state["net.extra"] = torch.zeros(3)
    state["net.8.bias"] = torch.zeros(7)
    del state["net.0.weight"]
    torch.save(state, tmp_path / "other.pt")
    message = r"missing net.0.weight; unexpected net.extra; .*net.8.bias \(7,\) for \(10,\)"
    with pytest.raises(ValueError, match=message):
        fit([SimilarityMonitor(tmp_path / "other.pt")], root=tmp_path)


def test_a_network_without_forward_says_what_to_do(tmp_path):
    class Stepper(LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = new_network().net

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.inner(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"no forward\(\).*forward=lambda"):
        fit([SimilarityMonitor()], root=tmp_path, network=Stepper(), validate=False)
    monitor = SimilarityMonitor(forward=lambda network, batch: network.inner(batch[0]))
    fit([monitor], root=tmp_path, network=Stepper(), validate=False, epochs=1)
    assert monitor.history.layers == ["inner.0", "inner.3", "inner.8"]


def test_weights_of_a_dense_chain(tmp_path):
    class Dense(DigitsNet):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

        def on_train_epoch_start(self):
            pass

    network = Dense()
    start = copy.deepcopy(network)
    monitor = SimilarityMonitor()
    fit([monitor], root=tmp_path, network=network, epochs=2)
    chains = [(net.net[3].weight @ net.net[1].weight).detach().T for net in (network, start)]
    value = monitor.history.trajectory("wcka", layer="net.3", representation="weights").values[-1]
    assert value == pytest.approx(exact.cka_biased(*chains), abs=1e-5)


def test_random_transforms_of_the_probe_repeat(tmp_path):
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.randn_like(image) + np.random.randn(), label

    class Freeze(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for parameter in pl_module.parameters():
                parameter.grad = None

    monitor = SimilarityMonitor(
        probe=Noisy(*digits(300, 420).tensors), layers=["net.0"], measures=("cka", "jsd"), before_training=False
    )
    fit([monitor, Freeze()], root=tmp_path, epochs=2)
    assert monitor.history.trajectory("cka", layer="net.0").values == pytest.approx([1, 1], abs=1e-6)


def test_two_monitors_need_two_names(tmp_path):
    class Mine(SimilarityMonitor):  # of which Lightning would not notice that it writes where the other does
        pass

    for second in (SimilarityMonitor(before_training=False), Mine()):
        with pytest.raises(ValueError, match=r"name 'similarity'.*name=\"similarity_2\""):
            fit([SimilarityMonitor(before_training=False), second], root=tmp_path)
    both = [
        SimilarityMonitor(measures=("cka",), before_training=False),
        SimilarityMonitor("previous", measures=("cka",), name="speed", before_training=False),
    ]
    trainer, _ = fit(both, root=tmp_path, epochs=2)
    assert {"similarity/cka/features/net.0", "speed/cka/features/net.0"} <= trainer.callback_metrics.keys()
    assert len(read_history(tmp_path / "speed")) == 2


def test_fast_dev_run_leaves_no_record(tmp_path):
    monitor = SimilarityMonitor(before_training=False)
    fit([monitor], root=tmp_path, fast_dev_run=True)
    assert len(monitor.history) == 1
    assert not list(tmp_path.rglob("record.jsonl"))


def test_the_users_loader_is_not_moved(tmp_path):
    generator = torch.Generator().manual_seed(0)
    probe = DataLoader(digits(300, 420), batch_size=32, shuffle=True, generator=generator)
    state = generator.get_state()
    monitor = SimilarityMonitor(probe=probe, num_samples=64, layers=["net.0"], measures=("cka",))
    fit([monitor], root=tmp_path, epochs=1)
    assert torch.equal(generator.get_state(), state)
    assert monitor.history.metadata["probe"]["num_samples"] == 64


def test_a_full_disk_warns_once_and_training_goes_on(tmp_path, monkeypatch):
    from lightning_sim.record.file import RecordWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "append", full)
    monitor = SimilarityMonitor(measures=("cka",), before_training=False)
    with pytest.warns(UserWarning, match="No space left") as caught:
        fit([monitor], root=tmp_path)
    assert len([w for w in caught if "No space left" in str(w.message)]) == 1
    assert len(monitor.history) == 3
