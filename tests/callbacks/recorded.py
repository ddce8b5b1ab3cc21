"""What processes started by the tests do: a monitored training that starts an epoch when it is told to."""

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import fit, new_network


class Wait(Callback):
    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_epoch_start(self, trainer, pl_module):
        self.pipe.send("ready")
        self.pipe.recv()


def train(pipe, root, kind, epochs, checkpoints, ckpt_path=None):
    """In the end it says where it wrote, and what it measured."""
    monitor = SimilarityMonitor(
        layers="net.0", measures=("cka", "jsd"), num_samples=40, save_sketches=True, before_training=False
    )
    logger = WandbLogger(save_dir=root, offline=True) if kind == "wandb" else False
    callbacks = [monitor, ModelCheckpoint(checkpoints, filename="{epoch}", save_top_k=-1), Wait(pipe)]
    network = new_network(seed=len(str(checkpoints)))
    options = {"epochs": epochs, "enable_checkpointing": True, "ckpt_path": ckpt_path}
    fit(callbacks, root=root, logger=logger, network=network, **options)
    pipe.send((monitor.directory, monitor.history.to_records()))
