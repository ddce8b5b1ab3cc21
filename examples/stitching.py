"""Can a layer of one network take the place of another's? Figures 2, 4, 7 and 8 of Csiszarik et al. 2021.

Two networks that differ in their seed are trained on digits. Every layer of the first is stitched into the second, by
direct matching (least squares, rotation) and by task matching, and scored on digits that nobody has seen before.

Not reproduced: Figure 5, stitches of CKA below 0.7 at no cost in accuracy. Its numbers are printed: stitches of such
networks that are trained against CKA lose accuracy before.

Run: python examples/stitching.py
With ten-layer networks and CIFAR-10 of your own:
    python examples/stitching.py --networks seed_00.safetensors seed_01.safetensors --train train.npz --test test.npz
"""

import argparse
import io
import itertools
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim.demo import digits_loader
from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.stitching import StitchingSums
from lightning_sim.stitching.study import StitchingStudy, profile_figure

SMALL = ((1, 8, 3, 1), (8, 8, 3, 1), (8, 16, 3, 1), (16, 16, 1, 1))  # channels in and out, width and stride
TINY10 = ((3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 1))
TINY10 += ((64, 64, 1, 1),)


class Network(nn.Module):
    """Convolutions, each with batch norm and ReLU, mean over positions, and a dense layer."""

    def __init__(self, convolutions: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.depth = len(convolutions)
        for index, (before, after, width, stride) in enumerate(convolutions, 1):
            self.add_module(f"conv{index}", nn.Conv2d(before, after, width, stride))
            self.add_module(f"bn{index}", nn.BatchNorm2d(after))
            self.add_module(f"relu{index}", nn.ReLU())
        self.fc = nn.Linear(after, 10)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(1, self.depth + 1):
            for name in ("conv", "bn", "relu"):
                x = self.get_submodule(f"{name}{index}")(x)
        return self.fc(x.mean((2, 3)))


def trained_on_digits(seed: int, epochs: int) -> nn.Module:
    seed_everything(seed, verbose=False)
    network, loader = Network(SMALL), digits_loader("training", seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return network.eval()


def of_file(path: Path) -> nn.Module:
    network = Network(TINY10)
    network.load_state_dict(load_file(path))
    return network.eval()


def pictures(path: Path, samples: int) -> TensorDataset:
    """Images from one JPEG file each, end to end under ``jpeg``, with ``offsets`` and ``labels``."""
    from PIL import Image

    held = np.load(path)
    files, labels = held["jpeg"].tobytes(), held["labels"][:samples].astype(np.int64)
    ends = held["offsets"][: len(labels) + 1]
    opened = [Image.open(io.BytesIO(files[start:end])) for start, end in itertools.pairwise(ends)]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in opened])).movedim(-1, 1) / 255
    mean, deviation = (torch.tensor(z).view(3, 1, 1) for z in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    return TensorDataset((images - mean) / deviation, torch.from_numpy(labels))


def numbers(title: str, values: dict[float, float]) -> None:
    print(f"{title:<36}", " ".join(f"{value:6.3f}" for value in values.values()))


def matching(studies: dict[int, StitchingStudy], controls: dict[int, StitchingStudy], out: Path) -> None:
    """Figures 2 and 4: what every kind of stitch reaches, and that its loss falls while R2 does."""
    found = {layer: {"no stitch": study.score(None).scores} for layer, study in studies.items()}
    r2 = {"least squares": {}, "task loss": {}}
    for layer, study in studies.items():
        start = study.map()
        found[layer]["untrained front"] = controls[layer].score(controls[layer].map()).scores
        found[layer]["least squares"] = study.score(start).scores
        found[layer]["orthogonal"] = study.score(study.map(kind="orthogonal")).scores
        stitch = study.train(start)
        found[layer]["task loss"] = study.score(stitch).scores
        r2["least squares"][layer] = float(start.r2)
        r2["task loss"][layer] = study.r2(stitch)
    names = list(found[1])
    curves = {name: {layer: of[name].relative for layer, of in found.items()} for name in names}
    losses = {name: {layer: of[name].cross_entropy for layer, of in found.items()} for name in names[2::2]}
    for title, values in (
        [(f"relative accuracy, {name}", of) for name, of in curves.items()]
        + [(f"cross-entropy, {name}", of) for name, of in losses.items()]
        + [(f"R2, {name}", of) for name, of in r2.items()]
    ):
        numbers(title, values)
    profile_figure("Figure 2: every layer", curves, ("layer", "relative accuracy")).savefig(out / "figure_2.png")
    both = {f"cross-entropy, {name}": of for name, of in losses.items()} | {
        f"R2, {name}": of for name, of in r2.items()
    }
    profile_figure("Figure 4: loss and R2 both fall", both, ("layer", "")).savefig(out / "figure_4.png")


def profiles(study: StitchingStudy, ranks: list[int], out: Path) -> None:
    """Figures 7 and 8: accuracy over the rank and over the sparsity."""
    low = study.low_rank_profile(ranks)
    curves = {name: {rank: at.scores.relative for rank, at in of.items()} for name, of in low.items()}
    for name, of in curves.items():
        numbers(f"rank {ranks}, {name}", of)
    profile_figure("Figure 7: low rank, layer 3", curves).savefig(out / "figure_7.png")
    sparse = study.sparsity_profile([0.001, 0.01, 0.03, 0.1], [0.3, 1.0, 3.0])
    curves = {name: {at.sparsity: at.scores.relative for at in of.values()} for name, of in sparse.items()}
    for name, of in curves.items():
        numbers(f"sparsity, {name}", dict(enumerate(of)))
        numbers(f"its relative accuracy, {name}", of)
    profile_figure("Figure 8: sparse, layer 3", curves, ("sparsity", "relative accuracy")).savefig(out / "figure_8.png")


def unlike(study: StitchingStudy, batches: DataLoader, weights: list[float]) -> None:
    """Figure 5, not reproduced: what stitches reach that are trained to be unlike what they take the place of."""
    found = {}
    for weight in weights:
        stitched = study.stitched(study.train(study.map(), cka=weight))
        with torch.no_grad():
            sides = ((stitched.with_features(batch)[1], stitched.of_the_back(batch)[1]) for batch in batches)
            similar = [centered_kernel_alignment(*(side.flatten(1) for side in pair)) for pair in sides]
        found[weight] = float(torch.stack(similar).mean()), study.score(stitched.stitch).scores.relative
    numbers(f"CKA against weights {weights}", {weight: cka for weight, (cka, _) in found.items()})
    numbers("its relative accuracy", {weight: relative for weight, (_, relative) in found.items()})
    print("Figure 5, CKA below 0.7 at no cost in accuracy, is not reproduced.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs=2, type=Path, help="safetensors of two ten-layer networks")
    parser.add_argument("--train", type=Path, help="npz of images to find stitches with")
    parser.add_argument("--test", type=Path, help="npz of images to score them with")
    parser.add_argument("--samples", type=int, default=20_000, help="images of --train and --test at most")
    parser.add_argument("--epochs", type=int, default=8, help="of training on digits")
    parser.add_argument("--out", type=Path, default=Path("stitching"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    if given.networks:
        front, back = map(of_file, given.networks)
        fit = DataLoader(pictures(given.train, given.samples), 128, shuffle=True)
        test = DataLoader(pictures(given.test, given.samples), 500)
    else:
        front, back = (trained_on_digits(seed, given.epochs) for seed in (0, 1))
        fit, test = digits_loader("training"), digits_loader("held-out")
    untrained = Network(TINY10 if given.networks else SMALL).eval()
    names = {f"bn{layer}": f"bn{layer}" for layer in range(1, front.depth + 1)}
    studies, controls = {}, {}
    for network, found in ((front, studies), (untrained, controls)):
        sums = StitchingSums(network, back, names)
        sums.add(fit)
        for layer, name in enumerate(names, 1):
            found[layer] = StitchingStudy(network, name, back, name, fit, test, sums=sums)
    print("layers after batch norm, before ReLU:", *studies)
    matching(studies, controls, given.out)
    profiles(studies[3], [1, 2, 4, 8, 16], given.out)
    line = studies[front.depth - 1].mode_connectivity(3, learning_rate=0.03)
    numbers("between two from random starts", {share: at.scores.relative for share, at in line.items()})
    unlike(studies[3], test, [0.0, 1.0, 10.0])


if __name__ == "__main__":
    main()
