"""The names under which loggers keep values: ``<monitor>/<name>``, after the logger's own prefix."""

from __future__ import annotations

from typing import Any

__all__ = ["WANDB_STEP", "is_epoch", "measured_name", "shown_as"]

WANDB_STEP = "trainer/global_step"  # under which WandbLogger logs scalars


def shown_as(logger: Any, monitor: str) -> str:
    """What the names of a monitor start with in `logger`.

    Example:
        >>> from types import SimpleNamespace
        >>> shown_as(None, "similarity"), shown_as(SimpleNamespace(_prefix="mine"), "similarity")
        ('similarity', 'mine-similarity')
    """
    own = getattr(logger, "_prefix", "")
    return f"{own}-{monitor}" if own else monitor


def measured_name(logged: str, monitor: str) -> str | None:
    """What a monitor calls the scalar that a logger calls `logged`; None for scalars of others.

    Example:
        >>> measured_name("similarity/jsd", "similarity"), measured_name("val_loss", "similarity")
        ('jsd', None)
    """
    return logged[len(monitor) + 1 :] if logged.startswith(f"{monitor}/") else None


def is_epoch(logged: str) -> bool:
    """Whether this is the epoch that Lightning logs beside every scalar."""
    return logged == "epoch" or logged.endswith("-epoch")
