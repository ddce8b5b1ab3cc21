"""Where a training keeps its runs, and how it calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

__all__ = ["directory_of", "earlier_directories", "run_name"]


def directory_of(trainer: Trainer) -> Path:
    """The run's directory, as ModelCheckpoint finds its own; to be asked for on rank 0, which alone knows it.

    That is ``<save_dir>/<name>/<version>`` of the first logger, and ``default_root_dir`` without any.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    if isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return Path(logger.log_dir)
    root = trainer.default_root_dir if logger.save_dir is None else logger.save_dir
    return Path(root, str(logger.name), _version(logger))


def earlier_directories(trainer: Trainer, name: str, wanted: str | Path | None) -> list[Path]:
    """Where the files of the run that is resumed may lie: in the wanted directory, and around the checkpoint."""
    checkpoint = trainer.ckpt_path
    around = [] if checkpoint is None else Path(checkpoint).absolute().parents[:2]
    return [folder / name for folder in (*([] if wanted is None else [Path(wanted)]), *around)]


def run_name(trainer: Trainer) -> str | None:
    """Name and version of the first logger's run, as its directory is called; None without a logger."""
    logger = trainer.logger
    return None if logger is None else "/".join(part for part in (str(logger.name or ""), _version(logger)) if part)


def _version(logger: Any) -> str:
    return logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
