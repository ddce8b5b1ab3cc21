"""What a kind of logger is given beside the scalars, which Lightning brings it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim.record import Key, Measurement, SimilarityHistory

__all__ = ["LoggerAdapter", "Pixels"]

#: of a figure, shape (height, width, 3)
Pixels = NDArray[np.uint8]


class LoggerAdapter:
    """One kind of logger, which takes figures or says that it does not."""

    takes_figures = True

    def takes(self, logger: Any) -> bool:
        """Whether this is the adapter for the logger."""
        raise NotImplementedError

    def set_up(self, logger: Any, keys: Iterable[Key], history: SimilarityHistory, monitor: str) -> None:
        """Prepare its pages for scalars of these keys."""

    def write_margins(self, logger: Any, measurement: Measurement, monitor: str) -> None:
        """Log the bands of values, where the logger draws any."""

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Log the pixels of figures by their names."""

    def write_sketches(self, logger: Any, path: Path, monitor: str) -> None:
        """Keep a file of sketches with the run."""

    def finish(self, logger: Any, history: SimilarityHistory, monitor: str) -> None:
        """Log what the whole history gives."""
