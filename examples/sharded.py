"""Fine-tune a network whose weights are sharded over two processes, and watch it drift from where it began.

Run: python examples/sharded.py
"""

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from lightning_sim import SimilarityMonitor
from lightning_sim.demo import DigitsNetwork, digits_loader


class Sharded(DigitsNetwork):
    def configure_model(self) -> None:
        for part in (*self.children(), self):  # of your network the blocks, and then all of it
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def main(epochs: int = 2) -> None:
    seed_everything(0, verbose=False)
    monitor = SimilarityMonitor("init")  # or the path of a checkpoint, whole or distributed
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, callbacks=[monitor], max_epochs=epochs)
    trainer.fit(Sharded(), digits_loader("training"), digits_loader("held-out"))
    if trainer.is_global_zero:
        values = monitor.history.trajectory("cka", layer="dense").values
        print("CKA of dense with the start:", ", ".join(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    main()
