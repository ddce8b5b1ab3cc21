"""Fine-tune a network, and stop when it has drifted too far from the checkpoint it started from.

A network that recognises upright digits learns digits turned by 90 degrees. The monitor compares it with its checkpoint
on the upright ones, whatever it is trained on: that shows what is left of the first task. Training ends when CKA of the
last hidden layer falls below a limit. By then, after 5 epochs, 86% of the rotated digits are recognised and not 10% as
before, and 47% of the upright ones, not 90%.
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from lightning_sim import SimilarityMonitor
from lightning_sim.demo import DigitsNetwork, digits_loader


def main(out: Path, epochs: int, lowest: float) -> None:
    seed_everything(0)
    options = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "default_root_dir": str(out),
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    upright, rotated = digits_loader("held-out"), digits_loader("held-out", rotated=True)
    network = DigitsNetwork()
    first = Trainer(**options)
    first.fit(network, digits_loader("training"), upright)
    checkpoint = out / "upright.ckpt"
    first.save_checkpoint(checkpoint)
    before = accuracies(network, upright, rotated)

    # By default the validation set would be the probe, rotated digits, which the checkpoint knows nothing about.
    monitor = SimilarityMonitor(reference=checkpoint, probe=upright)
    stop = EarlyStopping(
        "similarity/cka/features/dense", mode="max", divergence_threshold=lowest, patience=epochs, check_finite=False
    )
    second = Trainer(**options, callbacks=[monitor, stop])
    second.fit(network, digits_loader("training", rotated=True), rotated)
    after = accuracies(network, upright, rotated)

    for layer in monitor.history.layers:
        values = ", ".join(f"{value:.3f}" for value in monitor.history.trajectory("cka", layer=layer).values)
        print(f"CKA of {layer} with the checkpoint: {values}")
    for task, start, end in zip(("upright", "rotated"), before, after, strict=True):
        print(f"Accuracy on {task} digits: {start:.1%} before, {end:.1%} after fine-tuning")
    ended = f"stopped after {second.current_epoch} of" if second.should_stop else "ran all"
    print(f"Fine-tuning {ended} {epochs} epochs; the limit was {lowest}.")


def accuracies(network, *loaders) -> list[float]:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return [trainer.validate(network, loader, verbose=False)[0]["accuracy"] for loader in loaders]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_runs/drift"))
    parser.add_argument("--epochs", type=int, default=10, help="at most, of each training")
    parser.add_argument("--lowest", type=float, default=0.84, help="CKA at which training stops")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.lowest)
