"""Do two networks still agree when their input is corrupted or attacked? And where do they part while they train?

Two convolutional networks are trained on scikit-learn's digits, or on CIFAR-10 of your own, and differ in their seed.
The second is monitored against the first, under ten conditions. Written to ``--out``: a contact sheet of every
corruption at every severity, and agreement clean, corrupted and attacked, beside what chance would give.

Run: python examples/corruption.py
With a folder that holds CIFAR-10 as its authors distribute it for Python (data_batch_1, ..., test_batch):
    python examples/corruption.py --cifar cifar-10-batches-py
"""

import argparse
import itertools
import logging
import pickle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityHistory, SimilarityMonitor
from lightning_sim.conditions import CORRUPTIONS, Attack, Corruption
from lightning_sim.demo import digits_loader

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WITHOUT_SEVERITY = ("stripe", "dotted_line", "zigzag", "canny_edges")
CORRUPTED = ("gaussian_noise_3", "impulse_noise_4", "fog_1", "brightness_2", "contrast_1", "rotate_2")


class Network(LightningModule):
    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
            for i, o in itertools.pairwise(widths)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def cifar(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """Images (n, 3, 32, 32) from 0 to 1 and labels, for training and held out."""

    def read(names: list[str]) -> TensorDataset:
        parts = []
        for name in names:
            with open(folder / name, "rb") as file:
                parts.append(pickle.load(file, encoding="bytes"))  # a file from elsewhere may run code here
        images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part[b"labels"] for part in parts])
        return TensorDataset(torch.from_numpy(images) / 255, torch.from_numpy(labels).long())

    return read([f"data_batch_{part}" for part in range(1, 6)]), read(["test_batch"])


def trained(channels: int, data: TensorDataset, seed: int, epochs: int, **options: object) -> Network:
    seed_everything(seed, verbose=False)
    network = Network(channels)
    loader = DataLoader(data, 64, shuffle=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(max_epochs=epochs, logger=False, accelerator="cpu", **quiet, **options).fit(network, loader)
    return network.eval()


def contact_sheet(image: Tensor, path: Path) -> None:
    """For every kind the picture itself, and at severities 1 to 5 from left to right."""
    figure, axes = plt.subplots(8, 3, figsize=(12, 6.7), layout="constrained")
    for place, kind in zip(axes.T.flat, CORRUPTIONS, strict=True):
        severities = (None,) if kind in WITHOUT_SEVERITY else range(1, 6)
        shown = [image, *(Corruption(kind, severity)(image[None], torch.tensor([0]))[0] for severity in severities)]
        shown += [torch.ones_like(image)] * (6 - len(shown))
        strip = torch.cat([nn.functional.pad(picture, (0, 1), value=1) for picture in shown], 2).movedim(0, -1)
        place.imshow(strip.squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        place.set_title(kind, fontsize=8, loc="left", pad=2)
        place.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def curves(history: SimilarityHistory, groups: dict[str, list[str]], path: Path) -> None:
    """Agreement over the epochs: clean and corrupted, and clean and attacked, beside each other."""
    figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 4), sharey=True, layout="constrained")
    for place, (title, conditions) in zip(axes, groups.items(), strict=True):
        for condition in ("", *conditions):
            trajectory = history.trajectory("agreement", condition=condition)
            place.plot(range(len(trajectory.values)), trajectory.values, label=condition or "clean")
        place.set(title=title, xlabel="epochs", ylim=(0, 1))
        place.xaxis.get_major_locator().set_params(integer=True)
        place.legend(fontsize=7)
    axes[0].set_ylabel("agreement with the other network")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 batches for Python; the digits without it")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--out", type=Path, default=Path("corruption"), help="of pictures and the record")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.cifar:
        train, test = cifar(given.cifar)
    else:
        train, test = (digits_loader(part).dataset for part in ("training", "held-out"))
    image = test[0][0]
    channels, epsilon = len(image), None if given.cifar else 0.1  # of grey digits the defaults hardly move any
    contact_sheet(image, given.out / "contact_sheet.png")

    attacks = [Attack(kind, epsilon) for kind in ("noise", "fgsm", "pgd")]
    attacks.append(Attack("pgd", epsilon, crafted_on="self"))
    reference = trained(channels, train, 0, given.epochs)
    monitor = SimilarityMonitor(
        reference, probe=test, num_samples=400, measures=["agreement", "error_consistency"],
        conditions=("clean", *CORRUPTED, *attacks), directory=given.out, name="agreement",
    )  # fmt: skip
    trained(channels, train, 1, given.epochs, callbacks=[monitor])

    values = monitor.history.measurements[-1].values
    rows = {row["condition"]: row for row in monitor.history.to_records() if row["measure"] == "agreement"}
    print(f"{'':<22} agreement  by chance  accuracies   kappa")
    for condition in ("", *CORRUPTED, *(attack.name for attack in attacks)):
        of = {name.partition("/")[0]: value for name, value in values.items() if name.partition("/")[2] == condition}
        print(
            f"{condition or 'clean':<22} {of['agreement']:9.3f} {rows[condition]['chance_mean']:10.3f}"
            f" {of['accuracy']:7.3f} {of['reference_accuracy']:.3f} {of['error_consistency']:7.2f}"
        )
    groups = {"clean and corrupted": list(CORRUPTED), "clean and attacked": [attack.name for attack in attacks]}
    curves(monitor.history, groups, given.out / "agreement.png")
    print(f"pictures in {given.out}")


if __name__ == "__main__":
    main()
