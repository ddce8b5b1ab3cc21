"""What was taken of the reference, in a file beside the record; checkpoints hold where it lies and its hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_sim._owned_files import replace_file

__all__ = ["read_reference", "write_reference"]


def write_reference(state: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Write primitives and tensors to ``reference-<hash>.pt``, unless it is there, and return what finds it again.

    Raises:
        OSError: where it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    path = (directory / f"reference-{digest[:16]}.pt").absolute()
    if not (path.is_file() and path.stat().st_size == len(content)):
        replace_file(path, content).release()
    return {"file": str(path), "sha256": digest}


def read_reference(kept: Mapping[str, str], directories: Iterable[Path]) -> dict[str, Any]:
    """What was written, from where it was, or from a directory that has moved with the checkpoint.

    Args:
        kept: as `write_reference` has returned it.
        directories: where else it may lie.

    Raises:
        ValueError: where it is not found, or is not what was written; with how to go on.
    """
    path = Path(kept["file"])
    moved = [directory.absolute() for directory in directories]
    # A run may have found its directory taken, and have written beside it.
    places = list(dict.fromkeys([path.parent, *moved, *(place.with_name(path.parent.name) for place in moved)]))
    found = [place / path.name for place in places if (place / path.name).is_file()]
    for file in found:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == kept["sha256"]:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return state
    problem = f"{found[0]} was changed since" if found else f"it is not in {', '.join(map(str, places))}"
    raise ValueError(
        f'the checkpoint was monitored against the start of its training, reference="init", which is kept in the file '
        f"{path.name}, and {problem}. Put it there as it was written, or give the monitor another `name`, to begin "
        "anew with the network as it is now"
    )
