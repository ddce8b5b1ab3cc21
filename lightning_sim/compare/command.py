"""What ``lightning-sim compare`` does; its arguments are declared in `lightning_sim.cli`."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_sim._checks import check_choice
from lightning_sim.compare.matrices import LAYER_MEASURES, epoch_matrix, layer_matrix, run_matrix, run_rows, tidy
from lightning_sim.compare.networks import compare_checkpoints
from lightning_sim.compare.outputs import OUTPUT_MEASURES, output_matrix
from lightning_sim.compare.sources import SketchedRun, find_run
from lightning_sim.figures import heatmap_figure
from lightning_sim.figures.labels import printable
from lightning_sim.measures import MEASURES
from lightning_sim.record import SimilarityMatrix
from lightning_sim.views import summarize
from lightning_sim.views.table import summary_table

__all__ = ["run"]

_MOST_PRINTED = 12


def run(parsed: argparse.Namespace) -> int:
    """Compare, print, write what was asked for, and return the exit status."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            matrix, rows, title, labels = (_compared_networks if parsed.network or parsed.data else _compared)(parsed)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"lightning-sim: {printable(message)}", file=sys.stderr)
        _print_matrix(matrix, title)
        for path in parsed.out:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".csv":
                _write_csv(path, rows)
            else:
                _draw(path, matrix, title, labels)
            print(f"written: {path}")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"lightning-sim: {error}", file=sys.stderr)
        return 1
    return 0


def _compared(
    parsed: argparse.Namespace,
) -> tuple[SimilarityMatrix, list[dict[str, Any]], str, tuple[str, str]]:
    """The matrix, its tidy rows, a title, and what its rows and columns are."""
    options = {"measure": parsed.measure, "representation": parsed.representation, "estimator": parsed.estimator}
    check_choice(parsed.measure, "--measure", (*LAYER_MEASURES, *OUTPUT_MEASURES))
    runs = [find_run(path) for path in parsed.paths]
    first, last = runs[0], runs[-1]
    names = _short_names(parsed.paths)
    if parsed.measure in OUTPUT_MEASURES:
        return _compared_outputs(parsed, runs, names)
    if len(runs) > 2:
        held = {name: run.at(parsed.epoch) for name, run in zip(names, runs, strict=True)}
        rows = run_rows(held, layer=parsed.layer, **options)
        what = "mean over layers" if parsed.layer is None else parsed.layer
        return run_matrix(rows), rows, f"{parsed.measure} of {parsed.representation}, {what}", ("run", "run")
    if parsed.layer is not None:
        if parsed.epoch is not None:
            raise ValueError("--layer compares all epochs of one or two runs; leave --epoch out")
        matrix = epoch_matrix(first, last, parsed.layer, **options)
        labels = (names[0], names[1]) if len(runs) == 2 else ("", "")
        return matrix, tidy(matrix), f"{parsed.measure} of {parsed.representation}, {parsed.layer}", labels
    a = first.at(parsed.epoch)
    b = a if len(runs) == 1 else last.at(parsed.epoch)
    matrix = layer_matrix(a, b, **options)
    return matrix, tidy(matrix), f"{parsed.measure} of {parsed.representation}", (names[0], names[-1])


def _compared_networks(
    parsed: argparse.Namespace,
) -> tuple[SimilarityMatrix, list[dict[str, Any]], str, tuple[str, str]]:
    """As `_compared`, of checkpoints; what is no matrix is printed at once."""
    history = compare_checkpoints(parsed)
    print(summary_table(summarize({str(history.run): history}), width=160), end="\n\n")
    if parsed.record is not None:
        print(f"written: {history.save(parsed.record)}")
    matrix = history.matrix(parsed.measure, representation=parsed.representation)
    mine, theirs = _short_names(parsed.paths)
    return matrix, tidy(matrix), f"{parsed.measure} of {parsed.representation}", (mine, theirs)


def _compared_outputs(
    parsed: argparse.Namespace, runs: Sequence[SketchedRun], names: Sequence[str]
) -> tuple[SimilarityMatrix, list[dict[str, Any]], str, tuple[str, str]]:
    if parsed.layer is not None:
        raise ValueError(f"{parsed.measure} is of outputs, and --layer has no meaning for it")
    if len(runs) > 2 or parsed.epoch is not None:
        rows = columns = {name: run.at(parsed.epoch) for name, run in zip(names, runs, strict=True)}
        labels = ("run", "run")
    else:
        rows, columns = dict(runs[0].by_epoch()), dict(runs[-1].by_epoch())
        labels = (names[0], names[1]) if len(runs) == 2 else ("", "")
    matrix = output_matrix(rows, columns, parsed.measure)
    return matrix, tidy(matrix), f"{parsed.measure} of outputs", labels


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The paths without the folder that all lie in."""
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [os.path.relpath(path.absolute(), common) for path in paths]


def _print_matrix(matrix: SimilarityMatrix, title: str) -> None:
    """A table; of large ones the corner, since the whole goes to --out."""
    rows, columns = (names[:_MOST_PRINTED] for names in (matrix.rows, matrix.columns))
    heads = [_shown(name)[-12:] for name in columns]
    side = max(len(_shown(name)) for name in rows)
    print(_shown(title))
    print(" " * side, *(f"{head:>12}" for head in heads))
    for name, values in zip(rows, matrix.values, strict=False):
        print(f"{_shown(name):{side}}", *(f"{value:12.4f}" for value in values[: len(columns)]))
    if (rows, columns) != (matrix.rows, matrix.columns):
        print(f"... of {len(matrix.rows)} x {len(matrix.columns)}; --out FILE.csv holds all")


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, matrix: SimilarityMatrix, title: str, labels: tuple[str, str]) -> None:
    heatmap = matrix.heatmap(title, MEASURES[matrix.measure].scale)
    axis_labels = (_shown(labels[0])[-60:] if labels[0] else "", _shown(labels[1])[-60:] if labels[1] else "")
    heatmap_figure(replace(heatmap, axis_labels=axis_labels)).savefig(path)


def _shown(name: str) -> str:
    return printable(name) or "(no name)"
