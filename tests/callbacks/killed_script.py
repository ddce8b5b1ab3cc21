"""Run by the tests: a monitored training that kills its own process, with no chance to clean up."""

import os
import signal
import sys

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import DigitsNet, digits, fit, new_network


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


def main(root, moment):
    new_network()
    network = KilledInMeasurement() if moment == "during" else DigitsNet()
    callbacks = [SimilarityMonitor(probe=digits(300, 313)), ModelCheckpoint(root, filename="last", every_n_epochs=1)]
    if moment == "after":
        callbacks.insert(1, KillAfterMeasurement())
    fit(callbacks, network=network, epochs=5, root=root, enable_checkpointing=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
