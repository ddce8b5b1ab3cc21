"""``python -m tests.benchmarks [--quick] [--out FILE.json] [--only NAME ...] [--device cuda]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tests.benchmarks import finished, fold, importing, matrix, passes, scaling, training, whole
from tests.benchmarks.figure import Figure, table
from tests.benchmarks.settings import Settings, machine

PIECES: Mapping[str, Callable[[Settings], Iterator[Figure]]] = {
    "whole": whole.measure,
    "fold": fold.measure,
    "features": passes.features,
    "gradients": passes.gradients,
    "matrix": matrix.measure,
    "finished": finished.measure,
    "scaling": scaling.measure,
    "training": training.measure,
    "import": importing.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces, print the table, write the JSON; 1 if a bar was not met."""
    options = _parser().parse_args(arguments)
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    settings = Settings(torch.device(options.device), size)
    described = machine(settings.device)
    print(", ".join(f"{name}: {value}" for name, value in described.items()), flush=True)
    figures: list[Figure] = []
    for name in options.only or PIECES:
        start = time.perf_counter()
        figures += PIECES[name](settings)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(figures))
    if options.out is not None:
        content = {"machine": described, "size": size, "figures": [figure.to_json() for figure in figures]}
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(figure.met is False for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer rounds and samples: minutes, not a quarter hour")
    size.add_argument("--tiny", action="store_true", help="sizes that show that everything runs, and measure nothing")
    parser.add_argument("--out", type=Path, help="write every figure with the times of all rounds as JSON")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), metavar="NAME", help=f"of {', '.join(PIECES)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main())
