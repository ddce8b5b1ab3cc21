"""Run by the tests in several processes: a monitored training under DDP, of which rank 0 tells what was measured."""

import json
import os
import resource
import signal
import sys

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader

from lightning_sim import SimilarityMonitor
from lightning_sim.conditions import Attack
from tests.callbacks.training import DigitsNet, digits

SCALARS = ("mean_embedding", "fisher_rao_norm", "fisher_rao_distance", "task2vec")


class FailsOnTheLastRank(DigitsNet):
    def forward(self, images):
        # In the second epoch's measurement, whose share of the probe is the only batch of this size.
        last = self.global_rank == self.trainer.world_size - 1
        if last and not self.training and images.shape[0] == 7 and self.current_epoch == 1:
            raise RuntimeError("only here")
        return super().forward(images)


class KilledOnTheLastRank(DigitsNet):
    batch_size = 7

    def forward(self, images):
        # In the last measurement, after which the processes have nothing to tell each other.
        last = self.global_rank == self.trainer.world_size - 1 and self.current_epoch == self.trainer.max_epochs - 1
        if last and not self.training and images.shape[0] == self.batch_size:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class KilledByTaskVectors(KilledOnTheLastRank):
    batch_size = 1


class Moving(DigitsNet):
    """Keeps a mean of what it sees, in evaluation mode as well, by a buffer changed in place and one replaced."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("rebound", torch.zeros(()))

    def forward(self, images):
        self.mean.lerp_(images.mean(), 0.1)
        self.rebound = self.rebound.lerp(images.mean(), 0.1)
        return super().forward(images - self.mean - self.rebound)


class Memory(Callback):
    """Resident memory of this process after every epoch, in bytes."""

    def __init__(self):
        self.sizes = []

    def on_train_epoch_end(self, trainer, pl_module):
        with open("/proc/self/statm") as file:
            self.sizes.append(int(file.read().split()[1]) * resource.getpagesize())


NETWORKS = {
    "failing": FailsOnTheLastRank,
    "killed": KilledOnTheLastRank,
    "killed in scalars": KilledByTaskVectors,
    "moving": Moving,
    "unmonitored": Moving,
}


def main(root, devices, num_samples, epochs, kind="plain"):
    """On rank 0 the history, and what the trainers of all ranks hold; None on the others."""
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    network = NETWORKS.get(kind, DigitsNet)()
    measures = {"measures": SCALARS} if kind in ("scalars", "killed in scalars") else {}
    conditions = {"conditions": ["fog", "pgd_0.03", Attack("fgsm", 0.03, crafted_on="self")]}
    monitor, memory = (
        SimilarityMonitor(
            num_samples=num_samples,
            probe_choice="first",
            before_training=False,
            save_sketches=kind == "saving",
            **measures,
            **(conditions if kind == "conditions" else {}),
        ),
        Memory(),
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if kind == "spawn" else "ddp",
        callbacks=[memory] if kind == "unmonitored" else [monitor, memory],
        default_root_dir=root,
        logger=WandbLogger(save_dir=root, offline=True) if kind == "wandb" else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, DataLoader(digits(0, 300), batch_size=25), DataLoader(digits(300, 420), batch_size=17))
    if kind.startswith("killed"):
        return None
    if kind == "spawn":  # the processes are gone, and rank 0's weights came back
        torch.save({"state_dict": network.state_dict()}, f"{root}/trained.ckpt")
        return {"world": trainer.world_size}
    trainer.save_checkpoint(f"{root}/trained.ckpt", weights_only=True)
    torch.save(network.state_dict(), f"{root}/rank-{trainer.global_rank}.pt")
    directory = None if monitor.directory is None else str(monitor.directory)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    mine = {"directory": directory, "keys": sorted(logged), "logged": logged, "memory": memory.sizes}
    ranks = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, mine)
    # Lightning leaves the group open, and gloo's threads may abort a process that exits with them running.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return None
    return {"records": monitor.history.to_records(), "world": trainer.world_size, "ranks": ranks}


if __name__ == "__main__":
    found = main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
    if found is not None:
        print(json.dumps(found))
