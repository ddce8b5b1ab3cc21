"""Run by the tests in several processes: a monitored training under DDP, whose history rank 0 prints as JSON."""

import json
import sys

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import DigitsNet, digits


def main(root, devices, num_samples, epochs):
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    network = DigitsNet()
    monitor = SimilarityMonitor(num_samples=num_samples)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[monitor],
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, DataLoader(digits(0, 300), batch_size=25), DataLoader(digits(300, 420), batch_size=17))
    trainer.save_checkpoint(f"{root}/trained.ckpt", weights_only=True)
    keys = sorted(trainer.callback_metrics)
    gathered = [None] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(gathered, keys)
    else:
        gathered = [keys]
    if trainer.is_global_zero:
        print(json.dumps({"records": monitor.history.to_records(), "world": trainer.world_size, "keys": gathered}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
