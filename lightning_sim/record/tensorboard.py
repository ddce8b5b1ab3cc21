"""Reading TensorBoard's event files back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_sim.record.naming import is_epoch, measured_name, run_in
from lightning_sim.record.scalars import RunContent, run_of_scalars

__all__ = ["read_tensorboard"]


def read_tensorboard(directory: Path, monitor: str) -> RunContent:
    """The scalars in the event files of a directory, all of them, with the metadata that `set_up` wrote.

    Raises:
        ModuleNotFoundError: If tensorboard is not installed.
        ValueError: If the event files hold no similarities.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading event files needs tensorboard: pip install 'lightning-sim[tensorboard]'"
        ) from error
    # Zero keeps everything; by default every tag would be thinned to 10,000 values.
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "images": 1})
    events.Reload()
    metadata = {"run": run_in(directory), **_metadata(events, monitor)}
    return run_of_scalars(_scalars(events, monitor), metadata, monitor, directory)


def _scalars(events: Any, monitor: str) -> Iterator[tuple[int, dict[str, float]]]:
    for tag in events.Tags()["scalars"]:
        if is_epoch(tag) or measured_name(tag, monitor):
            # After a resume a directory holds several files, which are read in the order of their names.
            for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time):
                yield event.step, {tag: event.value}


def _metadata(events: Any, monitor: str) -> dict[str, Any]:
    tag = f"{monitor}/metadata/text_summary"
    if tag not in events.Tags()["tensors"]:
        return {}
    text = events.Tensors(tag)[-1].tensor_proto.string_val[0]
    try:
        found = json.loads(text)
    except ValueError:  # written by something else
        return {}
    return found if isinstance(found, dict) else {}
