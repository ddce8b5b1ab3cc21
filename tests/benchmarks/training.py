"""A whole training run by Lightning, with and without the monitor."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityMonitor
from tests.benchmarks.figure import Figure, ratio_figure
from tests.benchmarks.networks import resnet18
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import interleaved

__all__ = ["measure"]


def measure(settings: Settings) -> Iterator[Figure]:
    """A ResNet-18 on random images, with the default logger; the monitor with its default settings."""
    width = 64 if settings.cuda else settings.choose(tiny=2, quick=16, full=16)
    samples = settings.choose(tiny=16, quick=512, full=2048) * (8 if settings.cuda else 1)
    epochs = settings.choose(tiny=1, quick=1, full=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.arange(samples) % 10)
    runs = {
        name: lambda monitored=monitored: _train(data, width, epochs, settings, monitored)
        for name, monitored in (("bare", False), ("monitored", True))
    }
    rounds = interleaved(runs, settings.rounds, device=settings.device, warm_up=int(settings.size != "quick"))
    note = f"ResNet-18 of width {width}, {epochs} epochs of {samples} samples, probe of {samples // 4}"
    yield ratio_figure("training run with the monitor / without", rounds, "monitored", "bare", note=note)


def _train(data: TensorDataset, width: int, epochs: int, settings: Settings, monitored: bool) -> None:
    held_out = TensorDataset(*data[: len(data) // 4])
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="gpu" if settings.cuda else "cpu",
            devices=1,
            default_root_dir=directory,
            callbacks=[SimilarityMonitor()] if monitored else [],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Classifier(width), DataLoader(data, 128, shuffle=True), DataLoader(held_out, 128))
    log.setLevel(level)


class _Classifier(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = resnet18(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)
