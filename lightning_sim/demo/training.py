"""The demo's three trainings: a reference, a network fine-tuned from its checkpoint, and one from scratch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_sim._checkpoints import load_state_dict
from lightning_sim.callbacks import SimilarityMonitor
from lightning_sim.demo.digits import DigitsNetwork, digits_loader
from lightning_sim.record import SimilarityHistory
from lightning_sim.views import comparison_figure

__all__ = ["STAGES", "Demo", "run_demo"]

STAGES = ("reference", "fine-tuned", "from scratch")

OnBatch = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Args:
        directory: Where everything lies: TensorBoard, CSV and similarity record of every run, the reference's
            checkpoint ``reference.ckpt``, and the figure ``similarity.png``.
        histories: The similarities to the checkpoint, of the two monitored runs.
        accuracies: Share of the held-out digits recognised at the end: by the reference of upright ones, by
            the others of rotated ones.
    """

    directory: Path
    histories: dict[str, SimilarityHistory]
    accuracies: dict[str, float]


def run_demo(
    directory: Path,
    *,
    epochs: int = 8,
    seed: int = 0,
    on_batch: OnBatch = lambda stage: None,
) -> Demo:
    """Train on upright digits; then on rotated ones, from the checkpoint and from scratch, both monitored.

    Both are compared with the checkpoint on held-out upright digits: what is left there of the first task.

    Args:
        directory: A new or empty one, for everything that is made.
        epochs: Of each of the three trainings.
        seed: Of initial weights and order of samples.
        on_batch: Called after every batch of a training with its name, one of `STAGES`.
    """
    with _quiet_lightning(), _one_thread(), isolate_rng():
        accuracies, histories = _train_all(directory, epochs, seed, on_batch)
    comparison_figure(histories).savefig(directory / "similarity.png")
    return Demo(directory, histories, accuracies)


def _train_all(
    directory: Path, epochs: int, seed: int, on_batch: OnBatch
) -> tuple[dict[str, float], dict[str, SimilarityHistory]]:
    checkpoint = directory / "reference.ckpt"
    accuracies: dict[str, float] = {}
    histories: dict[str, SimilarityHistory] = {}
    for stage in STAGES:
        torch.manual_seed(seed + (stage == "from scratch"))
        network = DigitsNetwork()
        if stage == "fine-tuned":
            network.load_state_dict(load_state_dict(checkpoint))
        monitor = None if stage == "reference" else _monitor(checkpoint)
        progress = _Progress(stage, on_batch)
        trainer = _trainer(directory, stage, epochs, [monitor, progress] if monitor else [progress])
        trainer.fit(
            network,
            digits_loader("training", rotated=stage != "reference", seed=seed),
            digits_loader("held-out", rotated=stage != "reference"),
        )
        accuracies[stage] = float(trainer.callback_metrics["accuracy"])
        if monitor is None:
            trainer.save_checkpoint(checkpoint)
        else:
            histories[stage] = monitor.history
    return accuracies, histories


def _monitor(checkpoint: Path) -> SimilarityMonitor:
    # 512 buckets hold the 450 samples without collisions: more would give the same numbers and take longer.
    return SimilarityMonitor(checkpoint, probe=digits_loader("held-out"), num_buckets=512)


class _Progress(Callback):
    def __init__(self, stage: str, on_batch: OnBatch) -> None:
        self._stage, self._on_batch = stage, on_batch

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._on_batch(self._stage)


def _trainer(directory: Path, stage: str, epochs: int, callbacks: list[Callback]) -> Trainer:
    place: dict[str, Any] = {"save_dir": directory, "name": "", "version": stage.replace(" ", "-")}
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",  # the network is small, and the numbers are the same everywhere
        devices=1,
        logger=[TensorBoardLogger(**place, default_hp_metric=False), CSVLogger(**place)],
        callbacks=callbacks,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's tips and advice that does not apply here; other warnings and errors come through."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in (
                ".*does not have many workers.*",
                ".*logs directory .* exists and is not empty.*",  # TensorBoard's files, which CSVLogger leaves alone
                r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
            ):
                warnings.filterwarnings("ignore", advice)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads spend more time waiting for each other than a network this small takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
