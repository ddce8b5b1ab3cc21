"""A run writes to a directory of its own, whatever others do at the same time, and says where that is."""

import os
import shutil
import uuid
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.callbacks.run_directory import directory_of
from lightning_sim.sketch import load_sketches
from tests.callbacks.recorded import train
from tests.callbacks.training import digits, fit, new_network
from tests.processes import Process

QUICK = {"layers": "net.0", "measures": ("cka", "jsd"), "num_samples": 40}


class Training:
    """A monitored training in a process of its own, that makes an epoch when it is told to."""

    def __init__(self, root, kind="none", epochs=7, ckpt_path=None):
        self.checkpoints = root / f"checkpoints {uuid.uuid4()}"
        self.process = Process(train, root, kind, epochs, self.checkpoints, ckpt_path)
        assert self.process.hear() == "ready"

    def epochs(self, count):
        for _ in range(count):
            assert self.process.ask() == "ready"

    def result(self):
        """Where it wrote, and what it measured, when it is through."""
        while (heard := self.process.ask()) == "ready":
            pass
        self.process.finish()
        return heard

    def checkpoint(self, epoch):
        return self.checkpoints / f"epoch={epoch}.ckpt"


@pytest.mark.parametrize("kind", ["none", "wandb"])
def test_trainings_at_the_same_time_keep_all_they_measured(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("WANDB_SILENT", "true")
    together = [Training(tmp_path, kind, epochs=4) for _ in range(2)]
    for _ in range(3):
        for training in together:
            training.process.pipe.send(None)  # both at once
        for training in together:
            assert training.process.hear() == "ready"
    found = [training.result() for training in together]
    assert len({directory for directory, _ in found}) == 2
    for directory, records in found:
        assert read_history(directory).to_records() == records
        assert {row["epoch"] for row in records} == set(range(4))
        sketches = sorted((directory / "sketches").iterdir(), key=lambda path: load_sketches(path).epoch)
        assert [path.name for path in sketches] == [f"epoch={n}-step={6 * n + 5}.safetensors" for n in range(4)]
    assert not set(tmp_path.rglob("*.tmp"))
    if kind == "none":
        with pytest.raises(ValueError, match=r"several runs, give one: .*similarity.record\.jsonl, .*similarity-1"):
            read_history(tmp_path)


def test_two_trainings_and_both_of_them_resumed(tmp_path):
    first = Training(tmp_path, epochs=2)
    before = [first.result()]
    second = Training(tmp_path, epochs=3)
    before.append(second.result())
    resumed = [
        Training(tmp_path, epochs=4, ckpt_path=training.checkpoint(epoch)).result()
        for training, epoch in ((first, 1), (second, 2))
    ]
    for name, (former, records), (directory, more) in zip(("similarity", "similarity-1"), before, resumed, strict=True):
        assert former == directory == tmp_path / name
        assert more[: len(records)] == records
        assert read_history(directory).to_records() == more
        assert {row["epoch"] for row in more} == set(range(4))
    assert not list(tmp_path.rglob("record-*.jsonl"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 8


def test_a_killed_run_resumed_twice_at_once_and_once_more(tmp_path):
    killed = Training(tmp_path)
    killed.epochs(3)
    killed.process.kill()
    assert read_history(tmp_path).epochs == [0, 1, 2]
    records = read_history(tmp_path).to_records()
    both = [Training(tmp_path, epochs=3, ckpt_path=killed.checkpoint(0)) for _ in range(2)]
    found = [training.result() for training in both]
    assert {directory for directory, _ in found} == {tmp_path / "similarity", tmp_path / "similarity-1"}
    for directory, more in found:
        assert read_history(directory).to_records() == more
        assert {row["epoch"] for row in more} == {0, 1, 2}
    assert read_history(tmp_path / "similarity" / "record-1.jsonl").to_records() == records
    again, _ = Training(tmp_path, epochs=4, ckpt_path=both[1].checkpoint(2)).result()
    assert again == found[1][0]


def test_a_run_killed_while_it_writes_continues_its_record(tmp_path):
    killed = Training(tmp_path)
    killed.epochs(2)
    killed.process.pipe.send(None)
    while len(list(tmp_path.rglob("*.tmp"))) + len(list(tmp_path.rglob("*.safetensors"))) < 3:
        pass
    killed.process.kill()
    directory, records = Training(tmp_path, epochs=5, ckpt_path=killed.checkpoint(1)).result()
    assert directory == tmp_path / "similarity"
    assert read_history(tmp_path).to_records() == records
    assert {row["epoch"] for row in records} == set(range(5))
    assert not set(tmp_path.rglob("*.tmp"))


class SomeLogger(Logger):
    name, save_dir = "project", None

    def __init__(self, version):
        self._version = version

    @property
    def version(self):
        return self._version

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        (False, "."),
        (lambda root: SomeLogger("x7k"), "project/x7k"),
        (lambda root: SomeLogger(3), "project/version_3"),
        (lambda root: TensorBoardLogger(root, name="a", version=2, sub_dir="b"), "a/version_2/b"),
        (lambda root: [CSVLogger(root / "c"), SomeLogger(3)], "c/lightning_logs/version_0"),
    ],
)
def test_the_directory_is_that_of_the_first_logger(tmp_path, logger, expected):
    logger = logger and logger(tmp_path)
    trainer = Trainer(default_root_dir=tmp_path, logger=logger, accelerator="cpu")
    assert directory_of(trainer) == tmp_path / expected
    if isinstance(trainer.logger, (TensorBoardLogger, CSVLogger)):
        assert str(directory_of(trainer)) == trainer.log_dir
    elif trainer.loggers:
        checkpoint = ModelCheckpoint()
        assert Path(checkpoint._ModelCheckpoint__resolve_ckpt_dir(trainer)).parent == directory_of(trainer)


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        (lambda root: False, None),
        (lambda root: TensorBoardLogger(root), "lightning_logs/version_0"),
        (lambda root: CSVLogger(root, name="digits", version=3), "digits/version_3"),
        (lambda root: TensorBoardLogger(root, name="", version="fine-tuned"), "fine-tuned"),
        (lambda root: WandbLogger(save_dir=root, project="digits", id="x7k", offline=True), "digits/x7k"),
    ],
)
def test_a_run_is_called_by_name_and_version_in_memory_record_and_logger(tmp_path, monkeypatch, logger, expected):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger, monitor = logger(tmp_path), SimilarityMonitor(**QUICK, before_training=False)
    trainer, _ = fit([monitor], root=tmp_path, epochs=1, logger=logger)
    assert monitor.history.run == expected
    assert read_history(monitor.directory).run == expected
    if logger:
        assert directory_of(trainer) == tmp_path / expected
        logger.finalize("success")
    if isinstance(logger, WandbLogger):
        wandb.finish()
        wandb.teardown()  # its process may still be writing
        assert read_history(tmp_path, source="wandb").run == expected
    elif logger:
        kind = "csv" if isinstance(logger, CSVLogger) else "tensorboard"
        assert read_history(tmp_path / expected, source=kind).run == expected


def test_where_it_wrote_is_told_once_and_can_be_chosen(tmp_path, caplog):
    monitors = [SimilarityMonitor(**QUICK, directory=tmp_path / "mine") for _ in range(2)]
    assert monitors[0].directory is None
    told = []
    for monitor in monitors:
        caplog.clear()
        with caplog.at_level("INFO"):
            fit([monitor], root=tmp_path / "root", epochs=2)
        told.append([message for message in caplog.messages if "SimilarityMonitor" in message])
    assert [monitor.directory.name for monitor in monitors] == ["similarity", "similarity-1"]
    assert told[0] == []
    assert len(told[1]) == 1
    assert str(tmp_path / "mine" / "similarity-1") in told[1][0]
    for monitor in monitors:
        assert read_history(monitor.directory).to_records() == monitor.history.to_records()


@pytest.mark.parametrize("kind", ["removed", "full disk"])
def test_what_could_not_be_written_is_written_later(tmp_path, monkeypatch, kind):
    def full(*_):
        raise OSError(28, "No space left on device")

    class Disturb(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if kind == "removed" and trainer.current_epoch == 2:
                shutil.rmtree(tmp_path / "similarity")
            elif kind == "full disk" and trainer.current_epoch == 1:
                monkeypatch.setattr(os, "write", full)
            elif trainer.current_epoch == 3:
                monkeypatch.undo()

    monitor = SimilarityMonitor(**QUICK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([monitor, Disturb()], root=tmp_path, epochs=4)
    about = [warning for warning in caught if "could not be written" in str(warning.message)]
    assert len(about) == (kind == "full disk")
    assert read_history(monitor.directory).to_records() == monitor.history.to_records()
    assert monitor.history.epochs == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name", ["..", ".", "", "...", "a/b", "..\\b", "C:\\x", "C:x", "a\0b", "a\nb", " ", "record.jsonl", 3]
)
def test_names_that_are_no_directory_of_its_own_are_refused(name):
    with pytest.raises(ValueError, match="`name` must"):
        SimilarityMonitor(name=name)


@pytest.mark.parametrize("directory", [3, "", b"x"])
def test_what_is_no_directory_is_refused(directory):
    with pytest.raises(ValueError, match="`directory` must be a path"):
        SimilarityMonitor(directory=directory)


def loaders(start=300):
    return DataLoader(digits(0, 100), batch_size=50), DataLoader(digits(start, start + 40), batch_size=40)


def trainer_with(monitor, root, epochs=2):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(
        max_epochs=epochs, callbacks=[monitor], default_root_dir=root, logger=False, accelerator="cpu", **quiet
    )


def test_a_second_fit_of_the_same_network_continues_history_reference_and_record(tmp_path):
    monitor, network = SimilarityMonitor(**QUICK, before_training=False), new_network()
    trainer = trainer_with(monitor, tmp_path)
    trainer.fit(network, *loaders())
    first = list(monitor.history.measurements)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(network, *loaders())
    assert monitor.history.epochs == [0, 1, 2, 3]
    assert monitor.history.measurements[:2] == first
    assert read_history(tmp_path) == monitor.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["similarity"]
    # Of the start of the first fit, which is further away than that of the second.
    straight = SimilarityMonitor(**QUICK, before_training=False)
    network = new_network()
    trainer_with(straight, tmp_path / "straight", epochs=2).fit(network, *loaders())
    assert first[1].values["jsd"] == pytest.approx(straight.history.measurements[1].values["jsd"], rel=1e-5)
    values = monitor.history.trajectory("jsd").values
    assert values[2] > values[1] > values[0]


@pytest.mark.parametrize("what", ["network", "trainer", "probe"])
def test_a_fit_of_something_else_begins_anew(tmp_path, what):
    monitor, network = SimilarityMonitor(**QUICK), new_network()
    trainer = trainer_with(monitor, tmp_path)
    trainer.fit(network, *loaders())
    first = monitor.history
    if what == "network":
        network = new_network(seed=3)
    if what == "trainer":
        trainer = trainer_with(monitor, tmp_path)
    trainer.fit_loop.max_epochs = 3
    if what == "trainer":
        trainer.fit(network, *loaders())
    else:
        with pytest.warns(UserWarning, match=r'"init" is the network as it is now, at step 4'):
            trainer.fit(network, *loaders(start=350 if what == "probe" else 300))
    assert monitor.history.epochs == ([0, 1, 2] if what == "trainer" else [2])
    assert monitor.directory == tmp_path / "similarity-1"
    assert read_history(tmp_path / "similarity") == first
    assert read_history(monitor.directory) == monitor.history


def test_a_monitor_added_on_resume_says_what_init_is(tmp_path):
    trainer, network = fit(root=tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    monitor = SimilarityMonitor(**QUICK)
    with pytest.warns(UserWarning, match=r'"init" is the network as it is now, at step 6') as caught:
        fit([monitor], root=tmp_path, epochs=2, network=new_network(seed=8), ckpt_path=tmp_path / "last.ckpt")
    assert len([warning for warning in caught if '"init"' in str(warning.message)]) == 1
    assert monitor.history.epochs == [1]
    other = SimilarityMonitor(network, **QUICK)  # the resumed weights, as a reference of its own: and no warning
    fit([other], root=tmp_path, epochs=2, network=new_network(seed=8), ckpt_path=tmp_path / "last.ckpt")
    for name in ("cka/features/net.0", "jsd"):
        values = (m.history.measurements[0].values[name] for m in (monitor, other))
        assert next(values) == pytest.approx(next(values), abs=1e-6)


@pytest.mark.parametrize("validate", [True, False])
def test_scalars_figures_record_and_sketches_have_the_same_step(tmp_path, validate):
    taken = []

    class Figures(SomeLogger):
        def log_image(self, key, images, step):
            taken.append(step)

        @property
        def experiment(self):
            return SimpleNamespace()

    loggers = [CSVLogger(tmp_path), Figures(0)]
    monitor = SimilarityMonitor(**QUICK, save_sketches=True, before_training=False)
    trainer, _ = fit([monitor], root=tmp_path, epochs=2, validate=validate, logger=loggers, log_every_n_steps=50)
    steps = [measurement.step for measurement in monitor.history.measurements]
    assert steps == [5, 11]
    csv = read_history(trainer.log_dir, source="csv")
    assert [measurement.step for measurement in csv.measurements] == steps
    assert [measurement.step for measurement in read_history(trainer.log_dir).measurements] == steps
    assert sorted(set(taken)) == steps
    saved = sorted(load_sketches(path).step for path in (monitor.directory / "sketches").iterdir())
    assert saved == steps
    scalars = csv.measurements[1].values
    assert scalars["jsd"] == np.float32(monitor.history.measurements[1].values["jsd"])
