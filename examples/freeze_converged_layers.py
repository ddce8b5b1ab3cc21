"""Freeze layers once they have converged, from the bottom up, while the network goes on training.

Raghu et al. 2017 ("SVCCA: Singular Vector Canonical Correlation Analysis for Deep Learning Dynamics and
Interpretability", section 4.1) find that networks converge bottom-up, and save computation by freezing layers
successively. They freeze on a schedule fixed beforehand; here a layer is frozen when CKA with the previous epoch has
stayed above a threshold, and all layers below it are frozen already.

    python examples/freeze_converged_layers.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_sim import SimilarityMonitor
from lightning_sim.demo import digits_loader


class FreezeConverged(Callback):
    """Freezes layers in their order as soon as the network's similarity to its previous epoch stays high.

    A frozen layer gets no gradients, and below the first layer that trains no backward pass is computed. Put it after
    the monitor, which must measure against ``"previous"``. With DistributedDataParallel, which builds its buckets
    before the first step, use ``strategy="ddp_find_unused_parameters_true"``.

    Args:
        monitor: Whose ``cka`` decides.
        layers: Names of modules, from the input to the output; the last one is best left out.
        threshold: CKA with the previous measurement from which a layer counts as converged.
        patience: So many measurements in a row have to be above it.
    """

    def __init__(
        self, monitor: SimilarityMonitor, layers: Sequence[str], threshold: float = 0.995, patience: int = 2
    ) -> None:
        self.monitor = monitor
        self.layers = list(layers)
        self.threshold = threshold
        self.patience = patience
        self.frozen: dict[str, int] = {}  # layer -> first epoch without training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in self.layers:
            if layer not in self.frozen:
                if not self._has_converged(layer):
                    return  # nor is any layer above it frozen
                self.frozen[layer] = trainer.current_epoch
            self._freeze(pl_module.get_submodule(layer))  # again after a resume

    def state_dict(self) -> dict[str, int]:
        return dict(self.frozen)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.frozen = dict(state_dict)

    def _has_converged(self, layer: str) -> bool:
        if len(self.monitor.history) < self.patience:
            return False
        newest = self.monitor.history.trajectory("cka", layer=layer).values[-self.patience :]
        return bool((newest >= self.threshold).all())

    @staticmethod
    def _freeze(layer: nn.Module) -> None:
        layer.eval()  # the statistics of BatchNorm stay, too
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # optimizers skip it, momentum and weight decay included


class Network(LightningModule):
    """Three convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.classifier = nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.conv1(images))
        x = nn.functional.max_pool2d(nn.functional.relu(self.conv2(x)), 2)
        return self.classifier(nn.functional.relu(self.conv3(x)).flatten(1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def train(epochs: int = 12, root: str = "freezing_run") -> tuple[FreezeConverged, SimilarityMonitor, Trainer]:
    torch.manual_seed(0)
    monitor = SimilarityMonitor("previous", layers=["conv*"], measures=("cka", "jsd"), num_samples=450)
    freezing = FreezeConverged(monitor, ["conv1", "conv2", "conv3"])
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[monitor, freezing],
        accelerator="cpu",
        logger=False,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Network(), digits_loader("training"), digits_loader("held-out"))
    return freezing, monitor, trainer


if __name__ == "__main__":
    freezing, monitor, trainer = train()
    print("CKA with the previous epoch; * where the layer was frozen\n")
    print("epoch  " + "  ".join(f"{layer:>7}" for layer in freezing.layers))
    for epoch in monitor.history.epochs:
        cells = []
        for layer in freezing.layers:
            value = monitor.history.trajectory("cka", layer=layer).values[epoch]
            cells.append(f"{value:.4f}" + ("*" if epoch >= freezing.frozen.get(layer, epoch + 1) else " "))
        print(f"{epoch:>5}  " + "  ".join(cells))
    print(f"\naccuracy {float(trainer.callback_metrics['accuracy']):.1%}")
