"""A table for the terminal: the trajectories of several runs, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from lightning_sim._measurement import split_name
from lightning_sim.history import SimilarityHistory

__all__ = ["trajectory_table"]

_MOST_EPOCHS = 4  # two runs of so many columns fit into a terminal of 80


def trajectory_table(histories: Mapping[str, SimilarityHistory]) -> Table:
    """Every similarity of every run at up to four epochs, the first and the last among them.

    Rows are the names in the first run, by measure; a run without a value there shows a dash.
    """
    first = next(iter(histories.values()))
    sections = _sections(first)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        _labels(sections),
        *(_numbers(run, history, sections) for run, history in histories.items()),
    )
    return grid


def _sections(history: SimilarityHistory) -> dict[str, list[str]]:
    """Title -> names: one section for each measure of layers, one for all measures of outputs."""
    sections: dict[str, list[str]] = {}
    for name in history.names:
        measure, representation, layer = split_name(name)
        if name != "seconds":
            title = "outputs" if layer is None else f"{measure}, {representation}"
            sections.setdefault(title, []).append(name)
    return sections


def _labels(sections: Mapping[str, Iterable[str]]) -> Table:
    table = _table(" ")  # as high as the others' titles
    table.add_column("epoch", no_wrap=True)
    for title, names in sections.items():
        table.add_row(Text(title, style="bold"))
        for name in names:
            measure, _, layer = split_name(name)
            table.add_row(Text(f"  {measure if layer is None else layer}"))
    return table


def _numbers(run: str, history: SimilarityHistory, sections: Mapping[str, Iterable[str]]) -> Table:
    table = _table(run)
    measurements = history.measurements
    count = min(len(measurements), _MOST_EPOCHS)
    shown = [measurements[i] for i in np.linspace(0, len(measurements) - 1, count).round().astype(int)]
    for measurement in shown:
        table.add_column(str(measurement.epoch), justify="right", min_width=6, no_wrap=True)
    for names in sections.values():
        table.add_row()
        for name in names:
            table.add_row(*(_number(measurement.values.get(name)) for measurement in shown))
    return table


def _number(value: float | None) -> Text:
    if value is None:
        return Text("-", style="dim")
    if not np.isfinite(value):
        return Text("NaN", style="red")
    return Text(f"{round(value, 2) + 0.0:.2f}")  # adding zero takes the sign from -0.00


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        min_width=len(title),  # a title of two lines would shift the rows
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        header_style="dim",
    )
