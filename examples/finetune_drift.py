"""Fine-tune a network, and stop when it has drifted too far from the checkpoint it started from.

Digits of scikit-learn, then the same digits in negative: accuracy on the new task rises while the representation
leaves the old one. Training ends when CKA of the last hidden layer with the checkpoint falls below a threshold.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityMonitor


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(self.hidden(images))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loaders(negative):
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    data = TensorDataset(1 - images if negative else images, labels)
    train, validation = torch.utils.data.Subset(data, range(1300)), torch.utils.data.Subset(data, range(1300, 1797))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(validation, batch_size=64)


def main(out: Path, epochs: int, lowest: float) -> None:
    seed_everything(0)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    network = Classifier()
    first = Trainer(max_epochs=epochs, default_root_dir=str(out), **options)
    first.fit(network, *loaders(negative=False))
    checkpoint = out / "digits.ckpt"
    first.save_checkpoint(checkpoint)

    monitor = SimilarityMonitor(reference=checkpoint, layers=["hidden.1", "hidden.3", "head"])
    stop = EarlyStopping(
        "similarity/cka/features/hidden.3", mode="max", divergence_threshold=lowest, patience=epochs, check_finite=False
    )
    second = Trainer(max_epochs=epochs, default_root_dir=str(out), callbacks=[monitor, stop], **options)
    second.fit(network, *loaders(negative=True))

    for layer in monitor.history.layers:
        values = ", ".join(f"{value:.3f}" for value in monitor.history.trajectory("cka", layer=layer).values)
        print(f"CKA of {layer} with the checkpoint: {values}")
    stopped = f"stopped after epoch {stop.stopped_epoch}" if stop.stopped_epoch else f"ran all {epochs} epochs"
    print(f"Fine-tuning {stopped}; the limit was {lowest}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_runs/drift"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lowest", type=float, default=0.7, help="CKA at which training stops")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.lowest)
