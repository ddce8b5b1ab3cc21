"""TensorBoard: a layout of the scalars, figures, and reading the event files back."""

from __future__ import annotations

import json
import re
import textwrap
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sim._measurement import FISHER_MEASURES, split_name
from lightning_sim.correlations import is_correlation
from lightning_sim.history import SimilarityHistory
from lightning_sim.loggers.naming import is_epoch, measured_name, shown_as
from lightning_sim.loggers.reading import history_from_scalars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_tensorboard", "set_up", "write_figures"]

# A run shows the last layout written to it: it must hold the charts of every monitor.
_layouts: weakref.WeakKeyDictionary[Any, dict[str, dict[str, list[Any]]]] = weakref.WeakKeyDictionary()


def set_up(logger: Any, names: Sequence[str], metadata: Mapping[str, Any], monitor: str) -> None:
    """Write the layout of the custom scalars tab, and the metadata as text."""
    prefix = shown_as(logger, monitor)
    layout = _layouts.setdefault(logger, {})
    layout[prefix] = _charts(names, prefix)
    layout |= _intervals(names, prefix)
    logger.experiment.add_custom_scalars(layout)
    # Indented by four spaces it is a code block: names are shown as they are.
    logger.experiment.add_text(f"{prefix}/metadata", textwrap.indent(json.dumps(metadata, indent=2), "    "))


def _charts(names: Sequence[str], prefix: str) -> dict[str, list[Any]]:
    """One chart per measure with all of its layers, or of the parameters, one with the outputs, one per correlation."""
    measured = [name for name in names if name != "seconds" and not is_correlation(name)]
    kinds = dict.fromkeys(split_name(name)[:2] for name in measured)
    outputs = [re.escape(m) for m, representation in kinds if representation is None and m not in FISHER_MEASURES]
    start = re.escape(prefix) + "/"
    charts: dict[str, list[Any]] = {}
    for measure, representation in kinds:
        if representation is not None:
            kind = re.escape(f"{measure}/{representation}")
            charts[f"{measure}, {representation}"] = ["Multiline", [f"^{start}{kind}/.+"]]
        elif measure in FISHER_MEASURES:
            charts[measure] = ["Multiline", [f"^{start}{measure}$"]]
    if outputs:
        charts["outputs"] = ["Multiline", [f"^{start}({'|'.join(outputs)})$"]]
    for correlation, representation in dict.fromkeys(split_name(name)[:2] for name in names if is_correlation(name)):
        if representation is not None and correlation.endswith(("_pearson", "_spearman")):
            title = f"{correlation.replace('_', ' ')}, {representation}"
            charts[title] = ["Multiline", [f"^{start}{correlation}/{re.escape(representation)}/.+"]]
    return charts


def _intervals(names: Sequence[str], prefix: str) -> dict[str, dict[str, list[Any]]]:
    """For every Pearson correlation that is logged with its interval, a category with one band per layer."""
    categories: dict[str, dict[str, list[Any]]] = {}
    held = {name for name in names if is_correlation(name)}
    for name in names:
        correlation, representation, layer = split_name(name)
        ends = [f"{correlation}_{end}/{representation}/{layer}" for end in ("low", "high")]
        if layer is not None and correlation.endswith("_pearson") and held.issuperset(ends):
            category = f"{prefix}, {correlation.replace('_', ' ')} with 95% interval, {representation}"
            tags = [f"{prefix}/{tag}" for tag in (name, *ends)]
            categories.setdefault(category, {})[layer] = ["Margin", tags]
    return categories


def write_figures(logger: Any, figures: Mapping[str, Figure], step: int) -> None:
    """Add every figure as an image."""
    for name, figure in figures.items():
        logger.experiment.add_figure(name, figure, global_step=step)


def read_tensorboard(directory: Path, monitor: str) -> SimilarityHistory:
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
    metadata = {"run": directory.absolute().name, **_metadata(events, monitor)}
    return history_from_scalars(_scalars(events, monitor), metadata, monitor, directory)


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
