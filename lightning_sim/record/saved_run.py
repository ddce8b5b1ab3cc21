"""A run that was saved, read back as a history."""

from __future__ import annotations

from pathlib import Path

from lightning_sim._arguments import check_text
from lightning_sim.record.history import SimilarityHistory
from lightning_sim.record.reading import read_run

__all__ = ["read_history"]


def read_history(path: Path | str, *, source: str | None = None, name: str = "similarity") -> SimilarityHistory:
    """Read a run back, from the first of these that it holds: record, TensorBoard, CSV, offline W&B.

    Only the record holds matrices; the others hold the scalars. TensorBoard and W&B hold the metadata as
    well, a CSV file does not: there the reference layers are unknown.

    Args:
        path: A run's directory, its ``similarity`` directory (`SimilarityMonitor.directory`), or one of the files:
            ``record.jsonl``, an event file, ``metrics.csv``, ``run-*.wandb``.
        source: ``"record"``, ``"tensorboard"``, ``"csv"`` or ``"wandb"`` to insist on one of them.
        name: The monitor's `name`. A logger with a prefix of its own calls it ``<prefix>-similarity``.

    Raises:
        FileNotFoundError: If nothing readable lies there; directories below that hold runs are named.
        ValueError: If a file is damaged, or several records or offline W&B runs lie there; it names them.
        ModuleNotFoundError: If the package that reads the source is not installed.
    """
    return SimilarityHistory(*read_run(path, source, check_text(name, "name")))
