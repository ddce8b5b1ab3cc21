"""Run by the tests: a monitored training that starts when it is told to, and says what it measured and where it wrote."""

import json
import os
import sys

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import fit, new_network


class Wait(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == trainer.fit_loop.epoch_progress.current.completed:
            print("ready", flush=True)
            sys.stdin.readline()


def main(root, kind, epochs, checkpoint=None):
    monitor = SimilarityMonitor(layers="net.0", measures=("cka", "jsd"), num_samples=40, save_sketches=True)
    logger = WandbLogger(save_dir=root, offline=True) if kind == "wandb" else False
    callbacks = [monitor, ModelCheckpoint(os.path.join(root, str(os.getpid())), filename="{epoch}", save_top_k=-1)]
    callbacks.append(Wait())
    fit(callbacks, root=root, logger=logger, epochs=int(epochs), enable_checkpointing=True, ckpt_path=checkpoint,
        network=new_network(seed=os.getpid()))  # fmt: skip
    print(json.dumps({"directory": str(monitor.directory), "records": monitor.history.to_records()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
