"""The subcommand: which runs are read, and where the report goes."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sim.history import SimilarityHistory, read_history
from lightning_sim.report.page import report_page
from lightning_sim.report.summary import COLUMNS, Row, summarize

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers) -> None:
    """Add ``report`` to the subcommands of a parser; `run` is its default ``run``."""
    parser = subparsers.add_parser(
        "report",
        help="show monitored runs as a table, and as a page for the browser",
        description=(
            "Show first, last and lowest value and trend of every similarity of one or more runs; with --out write "
            "a page with trajectories, matrices over the epochs, similarity against divergence of the outputs, and "
            "the configuration. The page is one file that loads nothing from anywhere."
        ),
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="directory of a run, or a record, event file, metrics.csv or offline W&B file",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the page to this file, such as report.html")
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv"),
        default="table",
        help="what is printed: a table to look at (default), or the same numbers for scripts",
    )
    parser.add_argument("--name", default="similarity", help="name of the monitor in the runs (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report and write the page; the exit status is 1 where something could not be read or written."""
    try:
        histories = _read(arguments.runs, arguments.name)
        rows = summarize(histories)
        _print(rows, arguments.format)
        if arguments.out is not None:
            arguments.out.write_text(report_page(histories), encoding="utf-8")
            # Not among the numbers, which scripts read from the standard output.
            print(f"Wrote {arguments.out}", file=sys.stderr)
    except BrokenPipeError:  # of `| head`
        sys.stdout = None
        return 0
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"lightning-sim: {error}", file=sys.stderr)
        return 1
    return 0


def _read(paths: Sequence[Path], monitor: str) -> dict[str, SimilarityHistory]:
    """The histories by name of their run; by path where runs share a name."""
    read = {path: read_history(path, name=monitor) for path in paths}
    names = [history.run or str(path) for path, history in read.items()]
    return {
        name if names.count(name) == 1 else str(path): history
        for name, (path, history) in zip(names, read.items(), strict=True)
    }


def _print(rows: Sequence[Row], form: str) -> None:
    if form == "json":
        print(json.dumps([row.to_record() for row in rows], indent=1, allow_nan=False))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_record() for row in rows)
    else:
        _print_table(rows)


def _print_table(rows: Sequence[Row]) -> None:
    try:
        from rich.console import Console
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the table needs rich: pip install 'lightning-sim[demo]', or give --format json or csv"
        ) from error
    from lightning_sim.report.table import summary_table

    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # sparklines in a terminal that is not Unicode
    console = Console(file=stream)
    if not console.is_terminal:  # into a file or a pipe nothing needs to fit
        console.width = 160
    console.print(summary_table(rows, width=console.width))
