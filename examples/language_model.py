"""Train a small language model on Python's own standard library, and watch which blocks move.

A character-level transformer in plain torch. Its hidden states (batch, positions, width) are compared token by token
(`pool="tokens"`), its predictions at the last position of every sample.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_sim import SimilarityMonitor

VOCABULARY = 128  # ASCII


class StandardLibrary(Dataset):
    """Stretches of the sources of some of Python's modules, as (characters, the characters that follow)."""

    def __init__(self, modules, length, count):
        sources = [Path(__import__(name).__file__).read_text(encoding="utf-8") for name in modules]
        text = "".join(sources).encode("ascii", "replace")
        self.characters = torch.tensor(list(text))
        self.length, self.count = length, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        start = index * (len(self.characters) - self.length - 1) // self.count
        stretch = self.characters[start : start + self.length + 1]
        return stretch[:-1], stretch[1:]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.attend(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.shrink(nn.functional.gelu(self.expand(self.norm2(x))))


class LanguageModel(LightningModule):
    def __init__(self, width=64, heads=4, depth=4, length=64):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, characters):
        x = self.tokens(characters) + self.positions.weight[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, batch):
        characters, following = batch
        return nn.functional.cross_entropy(self(characters).flatten(0, 1), following.flatten())

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(out: Path, epochs: int, samples: int) -> None:
    seed_everything(0)
    train = StandardLibrary(["argparse", "inspect", "typing", "tarfile"], 64, samples)
    held_out = StandardLibrary(["difflib", "doctest"], 64, 256)
    monitor = SimilarityMonitor("init", layers=["blocks.?", "head"], pool="tokens", num_samples=256)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor],
        default_root_dir=str(out),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(), DataLoader(train, 32, shuffle=True), DataLoader(held_out, 32))
    for layer in monitor.history.layers:
        values = ", ".join(f"{value:.3f}" for value in monitor.history.trajectory("cka", layer=layer).values)
        print(f"CKA of {layer} with its initialization, token by token: {values}")
    print(f"The record is in {out / 'similarity'}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_runs/language_model"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000, help="stretches of text in an epoch")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.samples)
