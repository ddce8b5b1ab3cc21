"""What a residual network has in common with its own past and with another seed, by the weights alone.

No data enters the comparison: every network is run on signed sums of input pixels with its gates open. Without anything
learnt in common the values are near 0; the column "untrained" shows how near, of two networks before training.

Run: python examples/weights_only.py
"""

import copy

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sim.demo import digits_loader
from lightning_sim.functional import open_gate_alignment, open_gate_kernels


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def residual(seed: int) -> nn.Sequential:
    seed_everything(seed, verbose=False)
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(stem, Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2), head)


def trained(network: nn.Module, epochs: int) -> list[nn.Module]:
    """The network after every epoch, the first before any."""
    optimizer, kept = torch.optim.Adam(network.parameters(), 3e-3), [copy.deepcopy(network)]
    for _ in range(epochs):
        for images, labels in digits_loader("training"):
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
        kept.append(copy.deepcopy(network))
    return kept


def main(epochs: int = 4) -> None:
    runs = [trained(residual(seed), epochs) for seed in (0, 1)]
    image = tuple(next(iter(digits_loader("training")))[0].shape[1:])
    layers = ["0.0", "1", "2", "3", "4.2"]
    ours, theirs = ([open_gate_kernels(net, input_shape=image, layers=layers) for net in run] for run in runs)
    columns = {
        "its start": (ours[-1], ours[0]),
        "last epoch": (ours[-1], ours[-2]),
        "other seed": (ours[-1], theirs[-1]),
        "untrained": (ours[0], theirs[0]),
    }
    found = {name: open_gate_alignment(*pair) for name, pair in columns.items()}
    print(f"{'layer':<8}" + "".join(f"{name:>18}" for name in found))
    for place, layer in enumerate(layers):
        pairs = ((value[place, place], error[place, place]) for value, error in found.values())
        print(f"{layer:<8}" + "".join(f"{value:>9.3f} +- {error:.3f}" for value, error in pairs))


if __name__ == "__main__":
    main()
