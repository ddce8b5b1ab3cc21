"""A training killed by SIGKILL during a measurement, or between it and the checkpoint, is continued whole."""

import os
import signal

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks.training import DigitsNet, digits, fit, new_network
from tests.processes import Process


class KilledInMeasurement(DigitsNet):
    def forward(self, images):
        # Only the probe has batches of 13.
        if images.shape[0] == 13 and self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class KillAfterMeasurement(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 2 and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(pipe, root, moment):
    new_network()
    network = KilledInMeasurement() if moment == "during" else DigitsNet()
    callbacks = [
        SimilarityMonitor(probe=digits(300, 313), before_training=False),
        ModelCheckpoint(root, filename="last", every_n_epochs=1),
    ]
    if moment == "after":
        callbacks.insert(1, KillAfterMeasurement())
    fit(callbacks, network=network, epochs=5, root=root, enable_checkpointing=True)


@pytest.mark.parametrize(("moment", "recorded"), [("during", [0, 1]), ("after", [0, 1, 2])])
def test_the_record_has_every_epoch_once_after_resuming(tmp_path, moment, recorded):
    assert Process(killed, tmp_path, moment).ended() == -signal.SIGKILL
    assert read_history(tmp_path).epochs == recorded
    monitor = SimilarityMonitor(probe=digits(300, 313), before_training=False)
    checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    path = tmp_path / "last.ckpt"
    options = {"root": tmp_path, "enable_checkpointing": True, "epochs": 5}
    fit([monitor, checkpoint], network=new_network(seed=7), ckpt_path=path, **options)
    assert monitor.history.epochs == [0, 1, 2, 3, 4]
    assert [row["epoch"] for row in read_history(tmp_path).to_records() if row["measure"] == "jsd"] == [0, 1, 2, 3, 4]
    # The reference is the first network's start, not the weights that the resumed one was made with.
    assert monitor.history.trajectory("cka", layer="net.8").values[0] > 0.3
