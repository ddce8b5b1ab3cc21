"""What the scripts beside it share: arguments, networks, pictures, training, and how a result is printed.

The folder that they take holds `cifar10/train.npz` and `test.npz` (JPEG files end to end under `jpeg`, with `offsets`
and `labels`), `mnist/t10k-*-ubyte.gz` as published, and `tiny10/*.safetensors`, networks of Csiszarik et al. 2021.
"""

import argparse
import gzip
import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from lightning.fabric import seed_everything
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_sim.demo import digits_loader
from lightning_sim.functional import spearman_correlation

SMALL = ((1, 8, 3, 1), (8, 8, 3, 1), (8, 16, 3, 1), (16, 16, 1, 1))  # channels in and out, width and stride
TINY10 = ((3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 1))
TINY10 += ((64, 64, 1, 1),)
MEAN, DEVIATION = (torch.tensor(z).view(3, 1, 1) for z in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))

Samples = tuple[Tensor, Tensor]  # images and labels
Pairs = Sequence[tuple[int, int]]  # of networks, by their places


@contextmanager
def run(script: str, description: str) -> Iterator[argparse.Namespace]:
    """The command line's arguments, with seeds set; at the end the time it took. `data` is None for `--quick`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="folder of pictures and networks; none for --quick")
    parser.add_argument("--quick", action="store_true", help="in seconds, on data that ship with scikit-learn")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    given = parser.parse_args()
    given.data = None if given.quick else given.data
    given.out.mkdir(parents=True, exist_ok=True)
    given.figure = given.out / f"{Path(script).stem}.png"
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    warnings.filterwarnings("ignore", module="lightning")
    start = time.perf_counter(), time.process_time()
    yield given
    print(f"time: {time.perf_counter() - start[0]:.0f} s, of a processor {time.process_time() - start[1]:.0f} s")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """As Markdown, numbers with three digits, at once."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    for row in (header, ["---"] * len(header), *text):
        print("|", " | ".join(row), "|")
    print(flush=True)


def jackknife(statistic: Callable[[list[int]], float], count: int) -> tuple[float, float]:
    """Of so many networks, and its standard error: that of leaving out each, which sees that pairs share networks."""
    everyone = list(range(count))
    without = torch.tensor([statistic(everyone[:place] + everyone[place + 1 :]) for place in everyone])
    return statistic(everyone), float(((count - 1) * without.var(correction=0)).sqrt())


def spearman(a: Tensor, b: Tensor) -> float:
    return spearman_correlation(a, b).value


def over_networks(statistic: Callable[[list[int]], float], pairs: Pairs) -> tuple[float, float, float]:
    """Of the places of pairs, and its 95 % interval by the jackknife over networks."""
    count = 1 + max(itertools.chain(*pairs))
    value, error = jackknife(
        lambda kept: statistic([place for place, pair in enumerate(pairs) if set(pair) <= set(kept)]), count
    )
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    return value, value - half, value + half


def correlated(
    a: Tensor, b: Tensor, pairs: Pairs, correlation: Callable[[Tensor, Tensor], float] = spearman
) -> tuple[float, ...]:
    """A correlation over pairs of networks, with the 95 % interval that its artanh has over networks."""

    def artanh(rows: list[int]) -> float:
        return math.atanh(max(-0.9999, min(0.9999, correlation(a[rows], b[rows]))))

    return tuple(math.tanh(end) for end in over_networks(artanh, pairs))


def dense(inputs: int) -> nn.Sequential:
    """The wCKA paper's chain of dense layers, for three classes."""
    widths = [inputs, 32, 32, 32, 32]
    hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 3))


class Network(nn.Module):
    """Convolutions, each with batch norm and ReLU, mean over positions, and a dense layer."""

    def __init__(self, convolutions: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.layers = [f"relu{index}" for index in range(1, len(convolutions) + 1)] + ["pool"]
        for index, (before, after, width, stride) in enumerate(convolutions, 1):
            self.add_module(f"conv{index}", nn.Conv2d(before, after, width, stride))
            self.add_module(f"bn{index}", nn.BatchNorm2d(after))
            self.add_module(f"relu{index}", nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(after, 10)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            x = layer(x.flatten(1) if name == "fc" else x)
        return x


def tiny10(folder: Path, count: int) -> list[Network]:
    """The first trained networks of the folder."""
    networks = [Network(TINY10) for _ in range(count)]
    for network, path in zip(networks, sorted((folder / "tiny10").glob("*.safetensors")), strict=False):
        network.load_state_dict(load_file(path))
    return [network.eval() for network in networks]


def trained(
    make: Callable[[], nn.Module],
    samples: Samples,
    epochs: int,
    seed: int,
    *,
    rate: float = 5e-3,
    batch: int = 64,
    after: Callable[[nn.Module, int], None] = lambda network, epoch: None,
) -> nn.Module:
    """A network of this seed, trained by Adam; `after` is called with it before training and after every epoch."""
    seed_everything(seed, verbose=False)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    after(network.eval(), 0)
    for epoch in range(1, epochs + 1):
        network.train()
        for rows in torch.randperm(len(samples[0])).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(samples[0][rows]), samples[1][rows]).backward()
            optimizer.step()
        after(network.eval(), epoch)
    return network


@torch.no_grad()
def accuracy(network: nn.Module, samples: Samples) -> float:
    return float((network(samples[0]).argmax(1) == samples[1]).float().mean())


@torch.no_grad()
def features(network: nn.Module, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """Outputs of the layers, each (n, p)."""
    parts: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, held=held: held.append(output))
        for name, held in zip(layers, parts, strict=True)
    ]
    for rows in images.split(256):
        network(rows)
    for hook in hooks:
        hook.remove()
    return [torch.cat(held).flatten(1) for held in parts]


def digits() -> tuple[Samples, Samples]:
    """Scikit-learn's digits, (n, 1, 8, 8) in [0, 1]: 1347 for training and 450 held out."""
    training, held_out = (digits_loader(part).dataset.tensors for part in ("training", "held-out"))
    return training, held_out


def mnist(folder: Path) -> tuple[Samples, Samples]:
    """MNIST's test images, (n, 1, 28, 28) in [0, 1]: 8,000 to train on and 2,000 held out."""
    pixels, labels = (
        np.frombuffer(
            gzip.decompress(next((folder / "mnist").glob(f"*{kind}*.gz")).read_bytes()), np.uint8, offset=start
        )
        for kind, start in (("images", 16), ("labels", 8))
    )
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32)) / 255
    classes = torch.from_numpy(labels.astype(np.int64))
    return (images[:8000], classes[:8000]), (images[8000:], classes[8000:])


def cifar10(folder: Path, part: str, samples: int) -> Samples:
    """The first images of "train" or "test", (n, 3, 32, 32), normalised as the networks of the folder want them."""
    from PIL import Image

    held = np.load(folder / "cifar10" / f"{part}.npz")
    files, labels = held["jpeg"].tobytes(), held["labels"][:samples].astype(np.int64)
    ends = held["offsets"][: len(labels) + 1]
    opened = [Image.open(io.BytesIO(files[start:end])) for start, end in itertools.pairwise(ends)]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in opened])).movedim(-1, 1) / 255
    return (images - MEAN) / DEVIATION, torch.from_numpy(labels)


def as_cifar10(images: Tensor) -> Tensor:
    """Grey images in [0, 1] in the size and normalisation of CIFAR-10."""
    scaled = nn.functional.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    return (scaled.expand(-1, 3, -1, -1) - MEAN) / DEVIATION
