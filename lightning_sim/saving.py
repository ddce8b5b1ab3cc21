"""Writing what one measurement was computed from to a file of sketches."""

from __future__ import annotations

from pathlib import Path

from lightning_sim.probe import Snapshot
from lightning_sim.sketch import SketchSet, save_sketches

__all__ = ["save_snapshot"]


def save_snapshot(
    snapshot: Snapshot, folder: Path, epoch: int, step: int, *, network: str, probe: str, gradients: str = ""
) -> Path:
    """Write the sketches and outputs of a snapshot to ``<folder>/epoch=<epoch>-step=<step>.safetensors``.

    A file of that name, from before the run was resumed, is renamed to ``epoch=<epoch>-step=<step>-1.safetensors`` (or
    the next free number).

    Args:
        snapshot: its layers that could not be sketched are left out.
        folder: made when needed.
        epoch: of the training.
        step: of the training.
        network: its name, for people.
        probe: fingerprint of the probe's content.
        gradients: whose gradients were taken, in words.

    Raises:
        ValueError: when no layer could be sketched.
        OSError: when the file cannot be written; an older one is then intact.
    """
    sketches = {
        representation: {layer: sketch for layer, sketch in layers.items() if sketch.count}
        for representation, layers in snapshot.sketches.items()
    }
    path = folder / f"epoch={epoch}-step={step}.safetensors"
    _keep_earlier(path)
    save_sketches(SketchSet(sketches, network, probe, gradients, epoch, step, snapshot.logits), path)
    return path


def _keep_earlier(path: Path) -> None:
    if not path.exists():
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
