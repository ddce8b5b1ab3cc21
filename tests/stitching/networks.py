"""Small networks of every kind, and samples with targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 4


class Convolutional(nn.Module):
    """Convolutions with batch norm; `skip` adds an earlier layer's output to a later one's."""

    def __init__(self, width: int = 6, stride: int = 1, seed: int = 0, skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = nn.Conv2d(3, width, 3, stride, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)
        self.skip = skip
        self.ran: list[str] = []
        for name, module in self.named_children():
            module.register_forward_hook(lambda module, x, y, name=name: None if y.is_meta else self.ran.append(name))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.second(x) + x if self.skip else self.second(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer over the rows of an image."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(24, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 16, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.movedim(2, 1).flatten(2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Dense(nn.Module):
    def __init__(self, width: int = 10, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Tanh(), nn.Linear(width, width), nn.Dropout())
        self.relu = nn.ReLU()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.relu(self.body(x))))


def images(samples: int = 64, seed: int = 5) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labelled(samples: int = 64) -> TensorDataset:
    x = images(samples)
    return TensorDataset(x, x[:, :, :2].flatten(1)[:, :CLASSES].argmax(1))
