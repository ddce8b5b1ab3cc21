"""What ``lightning-sim report`` does: which runs are read, and where the report goes."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_sim.figures.labels import without_prefix
from lightning_sim.record import SimilarityHistory, read_history
from lightning_sim.views.page import report_page
from lightning_sim.views.summary import COLUMNS, Row, summarize
from lightning_sim.views.table import summary_table

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the report and write the page; the exit status is 1 where something could not be read or written."""
    try:
        histories = _read(arguments.runs, arguments.name)
        rows = summarize(histories)
        _print(rows, arguments.format)
        if arguments.out is not None:
            _write(arguments.out, report_page(histories))
            # Not among the numbers, which scripts read from the standard output.
            print(f"Wrote {arguments.out}", file=sys.stderr)
    except BrokenPipeError:  # of `| head`
        sys.stdout = None
        return 0
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"lightning-sim: {error}", file=sys.stderr)
        return 1
    return 0


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OSError(f"--out {path} cannot be written to: {error.strerror or error}") from error


def _read(paths: Sequence[Path], monitor: str) -> dict[str, SimilarityHistory]:
    """The histories by what tells the names of their runs apart, or their paths where runs share a name."""
    read = {path: read_history(path, name=monitor) for path in paths}
    names = [history.run or str(path) for path, history in read.items()]
    if len(set(names)) < len(names):
        names = [path.absolute().as_posix() for path in read]
    for _ in range(2):  # what they end with, and what they begin with
        names = without_prefix(["/".join(name.split("/")[::-1]) for name in names], "/")
    return dict(zip(names, read.values(), strict=True))


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
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # sparklines in a terminal that is not Unicode
    # Into a file or a pipe nothing needs to fit.
    print(summary_table(rows, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 160))
