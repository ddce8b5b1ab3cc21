"""The names under which loggers keep values: ``<monitor>/<name>``, after the logger's own prefix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["WANDB_STEP", "derived", "is_epoch", "measured_name", "run_in", "shown_as"]

WANDB_STEP = "trainer/global_step"  # under which WandbLogger logs scalars

# What this version and earlier ones log beside the values that it follows from.
_CORRELATIONS = re.compile(
    r"(cka|nbs)_(jsd|rank_correlation)_((pearson|spearman)(_low|_high)?|slope)(/|$)"
    r"|cka_nbs_((pearson|spearman)(_low|_high)?|slope)$"
)


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


def run_in(directory: Path) -> str:
    """What a run is called by its directory: of ``version_0``, which every project has, with the name above it.

    Example:
        >>> run_in(Path("/a/lightning_logs/version_0")), run_in(Path("/a/fine-tuned"))
        ('lightning_logs/version_0', 'fine-tuned')
    """
    path = directory.absolute()
    return f"{path.parent.name}/{path.name}" if re.fullmatch(r"version_\d+", path.name) else path.name


def derived(name: str) -> bool:
    """Whether a number follows from others, and is computed from them when it is asked for.

    Example:
        >>> derived("cka_jsd_pearson/features/conv"), derived("cka/features/conv")
        (True, False)
    """
    return _CORRELATIONS.match(name) is not None
