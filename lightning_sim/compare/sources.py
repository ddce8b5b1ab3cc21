"""Where sketches lie: a file, a folder of them, or the directory of a monitored run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_sim.sketch.sketch_set import SketchSet
from lightning_sim.sketch.state_files import SUFFIX, is_sketch_file
from lightning_sim.sketch.storage import load_sketches

__all__ = ["SketchedRun", "find_run"]


@dataclass(frozen=True)
class SketchedRun:
    """The sketch files of one network, in the order of training.

    Args:
        name: for people, the path that was asked for.
        files: one for each measured epoch, at least one.
    """

    name: str
    files: tuple[Path, ...]

    def at(self, epoch: int | None = None) -> SketchSet:
        """The last sketches, or the last ones of an epoch.

        Raises:
            ValueError: when there are none of that epoch, with the epochs that there are; when a file is damaged.
        """
        if epoch is None:
            return load_sketches(self.files[-1])
        found: SketchSet | None = None
        epochs = []
        for held in self:
            epochs.append(held.epoch)
            found = held if held.epoch == epoch else found
        if found is None:
            raise ValueError(f"{self.name} has no sketches of epoch {epoch}; it has {', '.join(map(str, epochs))}")
        return found

    def by_epoch(self) -> Iterator[tuple[str, SketchSet]]:
        """Every set with a name of its own."""
        names = set()
        for held, file in zip(self, self.files, strict=True):
            epoch = f"epoch {held.epoch}" if held.epoch >= 0 else file.stem
            name = epoch if epoch not in names else f"{epoch}, step {held.step}"
            names.add(name)
            yield name, held

    def __iter__(self) -> Iterator[SketchSet]:
        """One set after the other, read when its turn comes."""
        return map(load_sketches, self.files)


def find_run(path: Path | str) -> SketchedRun:
    """The sketches at a path: a file, a folder with such files, or a run with ``<monitor>/sketches/`` in it.

    Raises:
        FileNotFoundError: when there are none, with what would work.
        ValueError: when several monitors have sketches there, with their folders.
    """
    path = Path(path)
    if path.is_file():
        return SketchedRun(str(path), (path,))
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    folders = [folder for folder in (path, path / "sketches", *sorted(path.glob("*/sketches"))) if _files(folder)]
    if not folders:
        raise FileNotFoundError(
            f"no sketch files (*{SUFFIX}) in {path}: pass a file, a folder of them, or a run that was monitored with "
            f"SimilarityMonitor(save_sketches=True){_runs_below(path)}"
        )
    if len(folders) > 1:
        raise ValueError(f"{path} holds sketches of several monitors, pass one: {', '.join(map(str, folders))}")
    return SketchedRun(str(path), _files(folders[0]))


def _files(folder: Path) -> tuple[Path, ...]:
    files = [file for file in folder.glob(f"*{SUFFIX}") if file.is_file() and is_sketch_file(file)]
    return tuple(sorted(files, key=_in_order_of_training))


def _in_order_of_training(file: Path) -> tuple[list[int], str]:
    # "epoch=9-step=80" comes before "epoch=10-step=88".
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def _runs_below(path: Path) -> str:
    runs = sorted({str(folder.parent.parent) for folder in path.glob("*/*/sketches") if _files(folder)})
    return f". Runs below: {', '.join(runs[:8])}" if runs else ""
