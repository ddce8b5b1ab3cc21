"""Measuring before the first step, after numbers of steps, and several times in an epoch."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_sim import SimilarityMonitor, read_history

from ..functional.test_centered_kernel_alignment import cka_by_definition
from .training import CONVOLUTIONS, digits, features, fit, new_network

BATCHES = 6  # in an epoch
SMALL = {"layers": CONVOLUTIONS, "measures": ("cka", "jsd"), "num_samples": 60, "probe_choice": "first"}


class Kept(Callback):
    """The network after every step, and before the first."""

    def __init__(self):
        self.after = {}

    def on_train_start(self, trainer, network):
        self.keep(trainer, network)

    def on_train_batch_end(self, trainer, network, *rest):
        self.keep(trainer, network)

    def keep(self, trainer, network):
        self.after[trainer.global_step] = {name: value.clone() for name, value in network.state_dict().items()}

    def cka(self, steps):
        """Of the first convolution with the start, by its definition."""
        found = []
        for step in (min(self.after), steps):
            network = new_network()
            network.load_state_dict(self.after[step])
            found.append(features(network, "net.0", digits(300, 360)).flatten(1).double().numpy())
        return cka_by_definition(*found, "unbiased")


def moments(history):
    return [(m.epoch, m.step) for m in history.measurements]


def test_a_trajectory_starts_before_the_first_step_also_in_the_loggers_and_once_in_a_resumed_run(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version=0), CSVLogger(tmp_path / "csv")]
    monitor, checkpoints = SimilarityMonitor(**SMALL), ModelCheckpoint(tmp_path, filename="last")
    options = {"root": tmp_path, "enable_checkpointing": True}
    fit([monitor, checkpoints], epochs=2, logger=loggers, **options)
    assert moments(monitor.history) == [(0, 0), (0, BATCHES - 1), (1, 2 * BATCHES - 1)]
    first = monitor.history.measurements[0].values
    assert first["cka/features/net.0"] == pytest.approx(1, abs=1e-6)
    assert first["jsd"] == pytest.approx(0, abs=1e-6)
    for source, place in (("record", 0), ("tensorboard", 0), ("csv", 1)):
        held = read_history(loggers[place].log_dir, source=source)
        assert moments(held) == moments(monitor.history)
        assert held.measurements[0].values == pytest.approx(first)

    resumed = SimilarityMonitor(**SMALL)
    fit([resumed, ModelCheckpoint(tmp_path)], epochs=3, ckpt_path=tmp_path / "last.ckpt", **options)
    assert moments(resumed.history) == [*moments(monitor.history), (2, 3 * BATCHES - 1)]
    without = SimilarityMonitor(**SMALL, before_training=False)
    fit([without], epochs=1, root=tmp_path)
    assert moments(without.history) == [(0, BATCHES - 1)]


@pytest.mark.parametrize(
    ("accumulated", "expected"),
    [(1, {3: (0, 2), 6: (0, 5), 9: (1, 8), 12: (1, 11)}), (2, {3: (0, 2), 6: (1, 5)})],
)
def test_every_third_step_is_measured_once_with_the_weights_of_that_step(tmp_path, accumulated, expected):
    logger = CSVLogger(tmp_path)
    kept, monitor = Kept(), SimilarityMonitor(**SMALL, every_n_train_steps=3)
    # After the monitor, as Lightning orders them: they hold the measurement of their step.
    saved = ModelCheckpoint(
        tmp_path, "{step}", monitor="similarity/cka", mode="min", save_top_k=-1, every_n_train_steps=3
    )
    fit(
        [kept, monitor, saved],
        epochs=2,
        root=tmp_path,
        logger=logger,
        accumulate_grad_batches=accumulated,
        enable_checkpointing=True,
    )
    assert moments(monitor.history)[1:] == list(expected.values())
    values = monitor.history.trajectory("cka", layer="net.0").values
    assert values[1:] == pytest.approx([kept.cka(steps) for steps in expected], abs=1e-5)
    assert read_history(logger.log_dir, source="csv").trajectory("cka", layer="net.0").values == pytest.approx(values)
    for steps, value in zip(expected, monitor.history.measurements[1:], strict=True):
        held = torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)["callbacks"][monitor.state_key]
        assert held["history"]["measurements"][-1]["step"] == value.step


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")
def test_a_run_measured_by_steps_is_resumed_between_them(tmp_path):
    options = {"root": tmp_path, "enable_checkpointing": True}
    first = SimilarityMonitor(**SMALL, every_n_train_steps=4)
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fit([first, saved], epochs=2, **options)
    resumed = SimilarityMonitor(**SMALL, every_n_train_steps=4)
    fit([resumed, ModelCheckpoint(tmp_path)], epochs=2, ckpt_path=tmp_path / "step=5.ckpt", **options)
    assert moments(resumed.history) == moments(first.history) == [(0, 0), (0, 3), (1, 7), (1, 11)]


def test_several_measurements_of_an_epoch_are_told_apart_by_their_steps(tmp_path):
    monitor = SimilarityMonitor(**SMALL)
    fit([monitor], epochs=2, root=tmp_path, val_check_interval=2)
    assert moments(monitor.history) == [(0, 0), (0, 1), (0, 3), (0, 5), (1, 7), (1, 9), (1, 11)]
    for measurement in monitor.history.measurements:
        assert monitor.history.matrix("cka", step=measurement.step) == measurement.matrices[0]
    assert monitor.history.matrix("cka", epoch=0) == monitor.history.measurements[3].matrices[0]
    with pytest.raises(ValueError, match="at step 4 in this history; it holds cka, features at steps 0, 1, 3, 5, 7"):
        monitor.history.matrix("cka", step=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every_n_epochs": 2, "every_n_train_steps": 3}, "both every_n_epochs=2 and every_n_train_steps=3"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
        ({"before_training": "yes"}, "before_training"),
    ],
)
def test_moments_that_are_none_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SimilarityMonitor(**options)


def test_a_training_that_ends_before_the_step_is_said_at_its_start_or_its_end(tmp_path):
    with pytest.warns(
        UserWarning,
        match="every_n_train_steps=9, and the training ends after step 4: nothing will be measured but the start",
    ):
        fit([SimilarityMonitor(**SMALL, every_n_train_steps=9)], epochs=-1, max_steps=4, root=tmp_path)
    with pytest.warns(UserWarning, match="nothing was measured but the start: it ended after step 6"):
        fit([SimilarityMonitor(**SMALL, every_n_train_steps=9)], epochs=1, root=tmp_path)


def test_a_refused_checkpoint_does_not_stay_with_the_monitor(tmp_path):
    fit(
        [SimilarityMonitor(**SMALL), ModelCheckpoint(tmp_path, "last")],
        epochs=1,
        root=tmp_path,
        enable_checkpointing=True,
    )
    other = SimilarityMonitor(**SMALL | {"num_samples": 50})
    with pytest.raises(ValueError, match="other settings"):
        fit([other], epochs=2, root=tmp_path, ckpt_path=tmp_path / "last.ckpt")
    fit([other], epochs=1, root=tmp_path)
    assert moments(other.history) == [(0, 0), (0, BATCHES - 1)]
