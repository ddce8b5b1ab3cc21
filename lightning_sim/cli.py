"""The command line, ``lightning-sim demo | report | compare``: its arguments.

What loads torch is imported when a command runs: help and wrong arguments are answered at once.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_sim._version import __version__

__all__ = ["main"]

_SUFFIXES = (".csv", ".png", ".pdf", ".svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, or 1 where something is missing.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    return run(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-sim", description="Watch how similar a network is to a reference while it trains."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_report(commands)
    _add_compare(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train and compare three small networks on real data, in less than a minute",
        description=(
            "Train a network on handwritten digits, fine-tune a second one from its checkpoint and train a third "
            "from scratch, both on rotated digits and monitored; show how similar they stay to the checkpoint."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--out", metavar="DIR", type=Path, default="demo_runs", help="results go to DIR/version_0, version_1, ..."
    )
    demo.add_argument("--epochs", metavar="N", type=_integer(1, 1000), default=8, help="of each training")
    demo.add_argument("--seed", metavar="N", type=_integer(0, 2**32 - 2), default=0, help="of weights and sample order")
    demo.set_defaults(run=_demo)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report",
        help="show monitored runs as a table, and as a page for the browser",
        description=(
            "Show first, last and lowest value and trend of every similarity of one or more runs; with --out write "
            "a page with trajectories, matrices over the epochs, similarity against divergence of the outputs, and "
            "the configuration. The page is one file that loads nothing from anywhere."
        ),
    )
    report.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="directory of a run, or a record, event file, metrics.csv or offline W&B file",
    )
    report.add_argument("--out", metavar="FILE", type=Path, help="write the page to this file, such as report.html")
    report.add_argument(
        "--format",
        choices=("table", "json", "csv"),
        default="table",
        help="what is printed: a table to look at (default), or the same numbers for scripts",
    )
    report.add_argument("--name", default="similarity", help="name of the monitor in the runs (default: %(default)s)")
    report.set_defaults(run=_report)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare saved sketches, or two checkpoints: layers of two networks, epochs of a run, or many runs",
        description=(
            "Compare saved sketches, or with --network and --data two checkpoints. Each PATH is a checkpoint, or a "
            "sketch file, a folder of them, or a run that was monitored with save_sketches. One or two: every layer "
            "with every layer, at the last epoch. One or two with --layer: "
            "that layer, every epoch with every epoch. Three or more: every run with every run, the mean over the "
            "layers that they share, or --layer. A measure of outputs compares runs likewise, and of one or two every "
            "epoch with every epoch."
        ),
    )
    compare.add_argument("paths", metavar="PATH", nargs="+", type=Path)
    compare.add_argument("--measure", metavar="NAME", default="cka", help="of layers or of outputs, default: cka")
    compare.add_argument("--estimator", choices=("unbiased", "biased"), default="unbiased", help="of CKA")
    compare.add_argument("--representation", metavar="NAME", default="features", help="default: features")
    compare.add_argument("--layer", metavar="NAME", help="only this layer")
    compare.add_argument(
        "--network", metavar="MODULE:FUNCTION", help="makes the network of two checkpoints, without their weights"
    )
    compare.add_argument("--data", metavar="MODULE:FUNCTION", help="makes the DataLoader or Dataset that both run on")
    compare.add_argument("--record", metavar="DIR", type=Path, help="write the record of checkpoints, for `report`")
    compare.add_argument("--epoch", metavar="N", type=int, help="this epoch instead of the last")
    compare.add_argument(
        "--out",
        metavar="FILE",
        type=_output,
        action="append",
        default=[],
        help="write the picture (.png, .pdf, .svg) or the numbers (.csv); may be repeated",
    )
    compare.set_defaults(run=_compare)


def _report(parsed: argparse.Namespace) -> int:
    from lightning_sim.views.command import run

    return run(parsed)


def _compare(parsed: argparse.Namespace) -> int:
    from lightning_sim.compare.command import run

    return run(parsed)


def _demo(parsed: argparse.Namespace) -> int:
    modules = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib", "tensorboard": "tensorboard"}
    missing = [package for module, package in modules.items() if find_spec(module) is None]
    if missing:
        return _fail(
            f"the demo needs {', '.join(missing)}: pip install 'lightning-sim[demo]' "
            "(in a checkout: pip install -e '.[demo]')"
        )
    try:
        directory = _next_version(parsed.out)
    except OSError as error:
        return _fail(f"--out {parsed.out} cannot be written to: {error.strerror or error}")
    print("Loading torch and lightning ...", flush=True)
    from rich.console import Console

    from lightning_sim.demo.terminal import show_demo

    show_demo(directory, epochs=parsed.epochs, seed=parsed.seed, console=Console())
    return 0


def _next_version(out: Path) -> Path:
    """A new directory ``version_<n>`` in `out`, so that no earlier run is overwritten."""
    for number in itertools.count():
        directory = out / f"version_{number}"
        if not directory.exists():
            break
    directory.mkdir(parents=True)
    return directory


def _fail(message: str) -> int:
    print(f"lightning-sim: {message}", file=sys.stderr)
    return 1


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be between {lowest} and {highest}, got {value}")
        return value

    return integer


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(_SUFFIXES)}, got {text!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
