"""A small network on scikit-learn's digits, with everything in it that a careless monitor would disturb."""

import random
from functools import cache

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CONVOLUTIONS = ["net.0", "net.3"]


_read = cache(load_digits)  # from compressed text, which takes as long as a training


def digits(start, stop):
    images, labels = _read(return_X_y=True)
    images = torch.tensor(images[start:stop], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(labels[start:stop]))


class DigitsNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(288, 10),
        )
        self.net[4].eval()  # frozen by the user

    def forward(self, images):
        return self.net(images)

    def on_train_epoch_start(self):
        self.net[4].eval()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images + 0.01 * torch.randn_like(images)), labels)

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(callbacks=(), *, network=None, epochs=3, validate=True, root, logger=False, ckpt_path=None, **options):
    """A short training; returns the trainer and the trained network."""
    network = new_network() if network is None else network
    seed_everything(2, verbose=False)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=str(root),
        accelerator="cpu",
        **{"logger": logger, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        | options,
    )
    train = DataLoader(digits(0, 300), batch_size=50, shuffle=True)
    validation = DataLoader(digits(300, 420), batch_size=50) if validate else None
    trainer.fit(network, train, validation, ckpt_path=ckpt_path)
    return trainer, network


def new_network(seed=1):
    seed_everything(seed, verbose=False)
    return DigitsNet()


def random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def features(network, layer, dataset):
    """What a layer gives in evaluation mode, by a hook of our own."""
    outputs = []
    handle = network.get_submodule(layer).register_forward_hook(lambda m, i, output: outputs.append(output.clone()))
    flags = {name: module.training for name, module in network.named_modules()}
    network.eval()
    with torch.no_grad():
        network(dataset.tensors[0])
    for name, module in network.named_modules():
        module.training = flags[name]
    handle.remove()
    return outputs[0].flatten(1)
