"""Measuring from a training loop of your own, with Fabric; without it, network, optimizer and loader stay as they are.

Run: python examples/own_loop.py
"""

import torch
from lightning.fabric import Fabric, seed_everything
from torch.nn.functional import cross_entropy

from lightning_sim import SimilarityEngine
from lightning_sim.demo import DigitsNetwork, digits_loader


def main(epochs: int = 3, directory: str = "own_loop") -> SimilarityEngine:
    seed_everything(0, verbose=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    plain = DigitsNetwork()
    network, optimizer = fabric.setup(plain, plain.configure_optimizers())
    batches = fabric.setup_dataloaders(digits_loader("training"))
    step = 0
    with SimilarityEngine(network, "init", digits_loader("held-out"), directory=directory) as engine:
        engine.measure(epoch=0, step=step)
        for epoch in range(epochs):
            for images, labels in batches:
                optimizer.zero_grad()
                fabric.backward(cross_entropy(network(images), labels))
                optimizer.step()
                step += 1
            values = engine.measure(epoch=epoch, step=step).values
            torch.save({"network": plain.state_dict(), "similarity": engine.state_dict()}, f"{directory}.ckpt")
            print(f"epoch {epoch}: CKA of dense with the start {values['cka/features/dense']:.3f}")
    print(f"lightning-sim report {engine.directory} shows it")
    return engine


if __name__ == "__main__":
    main()
