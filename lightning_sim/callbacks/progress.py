"""Showing that a measurement is under way, below Lightning's own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

__all__ = ["measuring_bar"]


@contextmanager
def measuring_bar(trainer: Trainer, name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of `total` batches that disappears afterwards; none where Lightning shows none.

    Yields:
        A function to call after every batch.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not trainer.is_global_zero or getattr(bar, "is_disabled", False):
        yield lambda: None
    elif isinstance(bar, RichProgressBar):
        if (progress := bar.progress) is None:
            yield lambda: None
            return
        task = progress.add_task(f"measuring {name}", total=total)

        def advance() -> None:
            progress.update(task, advance=1)
            bar.refresh()  # Lightning's rich display draws only when told to

        try:
            yield advance
        finally:
            progress.remove_task(task)
            bar.refresh()
    else:
        with Tqdm(desc=f"Measuring {name}", total=total, leave=False, position=2, dynamic_ncols=True) as tqdm:
            yield tqdm.update
