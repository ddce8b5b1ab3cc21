"""Run by the tests in several processes: a monitored training of a network whose weights are sharded over them."""

import random
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityMonitor

SAMPLES, BATCH = 41, 5  # two ranks have 5 and 4 batches


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.up = nn.Linear(12, 18)
        self.between = nn.ReLU()
        self.down = nn.Linear(18, 12)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.down(self.between(self.up(self.norm(x)))))


class Sharded(LightningModule):
    forwards = 0
    beside = ()  # other networks, to be sharded as well

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), Block(), Block(), nn.Linear(12, 4))

    def configure_model(self):
        if self._device_mesh is None or hasattr(self.net[1].up.weight, "device_mesh"):
            return
        tensors, data = self.device_mesh["tensor_parallel"], self.device_mesh["data_parallel"]
        for block in self.net[1:3]:
            if tensors.size() > 1:
                parallelize_module(block, tensors, {"up": ColwiseParallel(), "down": RowwiseParallel()})
            if data.size() > 1:
                fully_shard(block, mesh=data)
        if data.size() > 1:
            fully_shard(self.net, mesh=data)
            for module in self.beside:
                fully_shard(module, mesh=data)

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # as strategies seed anew, and resumed trainings begin elsewhere

    def forward(self, x):
        self.forwards += not self.training
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def data():
    drawn = torch.Generator().manual_seed(3)
    inputs = torch.randn(80, 6, generator=drawn)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long())


def loader():
    return DataLoader(data(), batch_size=BATCH * 4)


def other():
    """A network like the one that is trained, of other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Sharded().net


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = other()

    def forward(self, x):
        return self.net(x)


def doubled(inputs):
    """A condition of the samples."""
    return 2 * inputs


class KilledAfter(Callback):
    """Saves a checkpoint after the first epoch, and waits in the third for who kills it."""

    def __init__(self, root):
        self.root = Path(root)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.root / "saved.ckpt")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2:
            (self.root / f"waits-{trainer.global_rank}").touch()
            time.sleep(600)


def train(root, strategy, devices=1, monitored=True, epochs=2, resume=None, checkpoint=None, killed=False, **settings):
    """What was measured, and all that a rank holds after a training."""
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    network = Sharded()
    if settings.get("reference") == "module":
        settings["reference"] = Whole()
    if settings.pop("shard_reference", False):
        network.beside = (settings["reference"].net[1], settings["reference"])
    settings = {"probe_choice": "first", "num_samples": SAMPLES, "probe": DataLoader(data(), BATCH)} | settings
    monitor = SimilarityMonitor(**settings)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        callbacks=[monitor] * monitored + [KilledAfter(root)] * killed,
        use_distributed_sampler=False,  # all ranks train on all samples, as one process does
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(network, loader(), loader(), ckpt_path=resume)
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    state = [value for of in trainer.optimizers[0].state.values() for value in of.values()]
    held = [_bytes(value) for value in (*network.state_dict().values(), *state, torch.get_rng_state())]
    return {
        "values": [{**m.values, "seconds": 0} for m in monitor.history.measurements],
        "held": [*held, random.getstate(), np.random.get_state()[1].tolist()],
        "forwards": network.forwards,
        "said": {str(warning.message) for warning in said},
    }


def _bytes(value):
    return (value.to_local() if hasattr(value, "to_local") else value).numpy().tobytes()


def main(root, devices, tensor_parallel, trainings):
    """Several trainings one after the other in one group of processes; what every rank holds."""
    found = {}
    for name, options in trainings.items():
        options = dict(options)
        strategy = ModelParallelStrategy(
            data_parallel_size=devices // tensor_parallel,
            tensor_parallel_size=tensor_parallel,
            save_distributed_checkpoint=options.pop("distributed", True),
        )
        try:
            mine = train(f"{root}/{name}", strategy, devices, **options)
        except ValueError as error:
            mine = str(error)
        found[name] = [None] * devices
        torch.distributed.all_gather_object(found[name], mine)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return found
