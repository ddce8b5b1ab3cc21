"""The whole measurement of a training with a TensorBoardLogger, over a bare forward of the same probe."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_sim import SimilarityMonitor, session
from lightning_sim.callbacks import reporting, similarity_monitor
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.run_directory import RunDirectory
from tests.benchmarks.figure import Figure
from tests.benchmarks.settings import Settings
from tests.benchmarks.workloads import InMemory, Workload, loader, workload

__all__ = ["Stopwatch", "measure"]

#: network, layers, and what the measurement is to take at most
MEASURED = (
    ("ResNet-18", "auto", 1.25),
    ("ResNet-18", [f"network.blocks.{part}" for part in ("?", "*.residual.?", "*.shortcut.?")], 2.0),
    ("deep chain", "auto", 8.0),
    ("transformer", "auto", 1.25),
)
START_BAR = 1.3
EXAMPLES_TO_LEARN_FROM = 8


def measure(settings: Settings) -> Iterator[Figure]:
    """All that happens at the end of an epoch at the monitor's defaults, and before the first step."""
    for name, layers, bar in settings.choose(tiny=MEASURED[2:3], quick=MEASURED, full=MEASURED):
        yield from _of_training(workload(name, settings, whole=True), layers, bar, settings)


def _of_training(load: Workload, layers: Any, bar: float, settings: Settings) -> Iterator[Figure]:
    watch = Stopwatch()
    monitor = _Watched(load, watch, layers)
    _train(load, monitor, settings)
    rounds = watch.rounds
    whole = [sum(parts.values()) / bare for parts, bare in zip(rounds, monitor.bare, strict=True)]
    measured = {
        part: [parts[part] for parts in rounds] for part in sorted({part for parts in rounds for part in parts})
    }
    shares = {
        part: statistics.median(taken / bare for taken, bare in zip(seconds, monitor.bare, strict=True))
        for part, seconds in measured.items()
    }
    count = len(monitor.history.measurements[-1].matrices[0].rows)
    title = f"{load.name} ({count} layers)"
    note = ", ".join(f"{part} {share:.2g}" for part, share in sorted(shares.items(), key=lambda item: -item[1]))
    seconds = {"bare": monitor.bare, **measured}
    yield Figure(
        f"whole measurement, {title} / forward", statistics.median(whole), bar=bar, spread=(min(whole), max(whole)),
        note=f"N = {len(load.inputs)}, forward {statistics.median(monitor.bare):.2g} s; {note}", seconds=seconds,
    )  # fmt: skip
    yield Figure(
        f"start of training without its first measurement, {title} / pass of the reference",
        monitor.start / monitor.reference_pass,
        bar=START_BAR,
    )


@dataclass
class Stopwatch:
    """What parts of every round take, without the parts inside of them."""

    rounds: list[dict[str, float]] = field(default_factory=lambda: [defaultdict(float)])
    _inside: list[float] = field(default_factory=lambda: [0.0])

    def timed(self, part: str | Callable[..., str], call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose time is added to a part; its name may depend on the arguments."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.rounds[-1][part if isinstance(part, str) else part(*args)] += elapsed - self._inside.pop()
                self._inside[-1] += elapsed

        return run

    def watched(self) -> ExitStack:
        """Takes the time of all parts of a measurement."""
        parts: list[tuple[Any, str, str | Callable[..., str]]] = [
            (ProbeRunner, "snapshot", "pass"),
            (session, "compared", lambda measure, *sides: measure.name),
            (reporting, "log_figures", "figures"),
            (similarity_monitor.Reports, "log", "logging"),
            (RunDirectory, "append", "record"),
        ]
        stack = ExitStack()
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
        return stack


class _Watched(SimilarityMonitor):
    """Runs the bare forward before every measurement, and takes the time of both, and of the start."""

    def __init__(self, load: Workload, watch: Stopwatch, layers: Any) -> None:
        super().__init__(layers=layers)
        self.load, self.watch = load, watch
        self.bare: list[float] = []
        self.start = self.reference_pass = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch.timed("start", super().on_train_start)(trainer, pl_module)
        (first,) = self.watch.rounds
        self.start = first["start"] + self.reference_pass
        self.watch.rounds.clear()

    def _measure(self, *args: Any) -> None:
        self.reference_pass = self.reference_pass or self.watch.rounds[-1]["pass"]
        self.watch.timed("other", super()._measure)(*args)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = time.perf_counter()
        self.load.forward()
        self.bare.append(time.perf_counter() - start)
        self.watch.rounds.append(defaultdict(float))
        super().on_validation_epoch_end(trainer, pl_module)


class _Learner(LightningModule):
    """Trains on a few samples, and does nothing to validate: both are left out of what is measured."""

    def __init__(self, load: Workload) -> None:
        super().__init__()
        self.network = load.network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self(batch[0])
        return cross_entropy(output, torch.arange(len(output), device=output.device))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def _train(load: Workload, monitor: _Watched, settings: Settings) -> None:
    few = DataLoader(InMemory(load.inputs[:EXAMPLES_TO_LEARN_FROM]), EXAMPLES_TO_LEARN_FROM, collate_fn=tuple)
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(), monitor.watch.watched():
        warnings.simplefilter("ignore")  # Lightning's advice
        trainer = Trainer(
            max_epochs=settings.rounds,
            accelerator="gpu" if settings.cuda else "cpu",
            devices=1,
            default_root_dir=directory,
            logger=TensorBoardLogger(directory),
            callbacks=[monitor],
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Learner(load), few, loader(load.inputs, load.batch_size))
    log.setLevel(level)
