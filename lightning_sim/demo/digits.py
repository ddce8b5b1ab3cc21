"""Scikit-learn's handwritten digits and a small convolutional network for them."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["DigitsNetwork", "digits_loader"]

# The data come writer by writer, so that the held-out digits are mostly by people who wrote none of the others.
_NUM_TRAINING_SAMPLES = 1347


class DigitsNetwork(LightningModule):
    """Three convolutions and two dense layers, for images of shape (batch, 1, 8, 8) and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
        self.dense = nn.Linear(128, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (batch, 10)."""
        x = relu(self.conv1(images))
        x = max_pool2d(relu(self.conv2(x)), 2)
        x = max_pool2d(relu(self.conv3(x)), 2)
        x = relu(self.dense(x.flatten(1)))
        logits: Tensor = self.classifier(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Share of the digits that are recognised."""
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def digits_loader(
    part: Literal["training", "held-out"], *, rotated: bool = False, seed: int = 0
) -> DataLoader[tuple[Tensor, ...]]:
    """Images (batch, 1, 8, 8) in [0, 1] and labels (batch,): 1347 for training, shuffled, or 450 held out.

    Args:
        part: Which of them.
        rotated: Turn every image by 90 degrees, counterclockwise.
        seed: Of the order of the training samples.

    Raises:
        ValueError: For an unknown part.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    if part not in ("training", "held-out"):
        raise ValueError(f'`part` must be "training" or "held-out", got {part!r}')
    images, labels = _digits()
    if rotated:
        images = images.rot90(1, (2, 3))
    if part == "held-out":
        return DataLoader(TensorDataset(images[_NUM_TRAINING_SAMPLES:], labels[_NUM_TRAINING_SAMPLES:]), 450)
    training = TensorDataset(images[:_NUM_TRAINING_SAMPLES], labels[:_NUM_TRAINING_SAMPLES])
    return DataLoader(training, 64, shuffle=True, generator=torch.Generator().manual_seed(seed))


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install 'lightning-sim[demo]'") from error
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return images, torch.as_tensor(digits.target, dtype=torch.int64)
