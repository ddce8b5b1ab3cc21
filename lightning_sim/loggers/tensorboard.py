"""TensorBoard: figures, the metadata, and a layout of the scalars."""

from __future__ import annotations

import json
import re
import textwrap
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_sim.loggers.adapter import LoggerAdapter, Pixels
from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.record.correlations import CORRELATION
from lightning_sim.record.naming import shown_as

__all__ = ["TensorBoardAdapter"]

_MEANS = "means over layers"


class TensorBoardAdapter(LoggerAdapter):
    """Charts of the custom scalars tab, and images."""

    def __init__(self) -> None:
        # A run shows the last layout written to it: it must hold the charts of every monitor.
        self._layouts: weakref.WeakKeyDictionary[Any, dict[str, dict[str, list[Any]]]] = weakref.WeakKeyDictionary()

    def takes(self, logger: Any) -> bool:
        """Lightning's and Fabric's."""
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        return isinstance(logger, TensorBoardLogger)

    def set_up(self, logger: Any, keys: Iterable[Key], history: SimilarityHistory, monitor: str) -> None:
        """Write the layout of the custom scalars tab, and the metadata as text."""
        prefix = shown_as(logger, monitor)
        layout = self._layouts.setdefault(logger, {})
        layout[prefix] = _charts(keys, history, prefix)
        for measurement in history.measurements[-1:]:
            layout[prefix] |= {
                f"{key.name}, 95% interval": ["Margin", [f"{prefix}/{key.name}", *ends]]
                for key, ends in _margins(measurement, prefix).items()
            }
        logger.experiment.add_custom_scalars(layout)
        # Indented by four spaces it is a code block: names are shown as they are.
        text = textwrap.indent(json.dumps(history.metadata, indent=2), "    ")
        logger.experiment.add_text(f"{prefix}/metadata", text)

    def write_margins(self, logger: Any, measurement: Measurement, monitor: str) -> None:
        """Add the ends of the 95% intervals, beside the monitor's own scalars and not among them."""
        for ends in _margins(measurement, shown_as(logger, monitor)).values():
            for tag, end in ends.items():
                logger.experiment.add_scalar(tag, end, measurement.step)

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Add every figure as an image."""
        for name, pixels in figures.items():
            logger.experiment.add_image(name, pixels, global_step=step, dataformats="HWC")


def _margins(measurement: Measurement, prefix: str) -> dict[Key, dict[str, float]]:
    """The ends of the 95% interval of every value of no layer that has an error, by tag."""
    errors = measurement.statistics.get("standard_error", {})
    return {
        key: {
            f"{prefix}_margins/{key.name}/{end}": measurement.by_key[key] + width * error
            for end, width in (("lower", -1.96), ("upper", 1.96))
        }
        for key, error in errors.items()
        if key.layer is None
    }


def _charts(keys: Iterable[Key], history: SimilarityHistory, prefix: str) -> dict[str, list[Any]]:
    """One chart for each measure of layers, with all of them; one for each group of the others, as the scales say.

    The means stand first, then outputs and other groups, then the layers, and at last their correlations.
    """
    start = re.escape(prefix) + "/"
    groups: dict[str, list[str]] = {_MEANS: []}
    layers: dict[str, str] = {}
    correlations: dict[str, str] = {}
    keys = list(keys)
    of_layers = {(key.measure, key.condition) for key in keys if key.layer is not None}
    for key in keys:
        scale = history.scale(key.measure)
        if key.layer is not None:
            charts = correlations if key.measure == CORRELATION else layers
            charts[key.title] = f"^{start}{re.escape(key._replace(layer='').name)}.+"
        elif (key.measure, key.condition) not in of_layers:
            groups.setdefault(scale.chart(key.name), []).append(re.escape(key.name))
        else:
            groups.setdefault(key.name if scale.unit else _MEANS, []).append(re.escape(key.name))
    short = {title: f"^{start}({'|'.join(names)})$" for title, names in groups.items() if names}
    return {title: ["Multiline", [tags]] for title, tags in (short | layers | correlations).items()}
