"""Weights & Biases: summaries, figures, and a table at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sim.loggers.adapter import LoggerAdapter, Pixels
from lightning_sim.record import Key, SimilarityHistory
from lightning_sim.record.naming import WANDB_STEP, shown_as
from lightning_sim.record.table import COLUMNS

__all__ = ["WandbAdapter"]

# W&B takes about 60 microseconds a row and refuses more than 200,000.
MAX_TABLE_ROWS = 50_000


class WandbAdapter(LoggerAdapter):
    """Summaries, images, and the history as one table."""

    def takes(self, logger: Any) -> bool:
        """Lightning's."""
        from lightning.pytorch.loggers import WandbLogger

        return isinstance(logger, WandbLogger)

    def set_up(self, logger: Any, keys: Iterable[Key], history: SimilarityHistory, monitor: str) -> None:
        """Have W&B keep the last, lowest and highest value of every name; put the metadata into the config."""
        prefix = shown_as(logger, monitor)
        for name in (*(key.name for key in keys), "seconds"):
            # A name with a glob would compete with the logger's own "*", and the winner changes from run to run;
            # an exact name hides "*", so the step metric is said again. An unescaped dot means a nested key.
            exact = f"{prefix}/{name}".replace(".", "\\.")
            if "*" not in exact:  # W&B takes it for a glob
                logger.experiment.define_metric(exact, step_metric=WANDB_STEP, step_sync=True, summary="last,min,max")
        logger.experiment.config.update({prefix: dict(history.metadata)}, allow_val_change=True)

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Log all figures in one row."""
        import wandb

        images = {_harmless(name): wandb.Image(pixels) for name, pixels in figures.items()}
        logger.experiment.log({**images, WANDB_STEP: step})

    def write_sketches(self, logger: Any, path: Path, monitor: str) -> None:
        """Log the file as a version of the run's artifact; the alias is the file's name, which says epoch and step."""
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{monitor}-sketches-{run.id}"), type="sketches")
        artifact.add_file(str(path))
        run.log_artifact(artifact, aliases=["latest", path.stem])

    def finish(self, logger: Any, history: SimilarityHistory, monitor: str) -> None:
        """Log the whole history as one long table, and the epoch of each lowest value as a summary.

        A table of more than 50,000 rows is thinned to evenly spaced measurements, the last one among them.
        """
        import wandb

        if not history.measurements:
            return
        rows = sum(len(measurement.values) for measurement in history.measurements)
        stride = max(1, -(-rows // MAX_TABLE_ROWS))
        kept = SimilarityHistory(history.metadata, history.measurements[::-1][::stride][::-1])
        table = wandb.Table(columns=list(COLUMNS), data=[list(record.values()) for record in kept.to_records()])
        prefix = shown_as(logger, monitor)
        logger.experiment.log({f"{prefix}/table": table, WANDB_STEP: history.measurements[-1].step})
        lowest = _epochs_of_lowest(history)
        logger.experiment.summary.update({f"{prefix}/{name}.epoch_of_min": epoch for name, epoch in lowest.items()})


def _epochs_of_lowest(history: SimilarityHistory) -> dict[str, int]:
    found = (history.trajectory_of(key) for key in (*history.keys, Key("seconds")))
    return {t.name: int(t.epochs[np.nanargmin(t.values)]) for t in found if np.isfinite(t.values).any()}


def _harmless(name: str) -> str:
    """W&B writes pictures to a path made of their name; it must not climb out of the run's directory."""
    return "/".join(re.sub(r"^\.+$", "_", part) or "_" for part in name.split("/"))
