"""The command line: ``lightning-sim demo | report | compare``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_sim import __version__
from lightning_sim.compare import command as compare
from lightning_sim.report import command as report

__all__ = ["main"]


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
    report.add_parser(commands)
    compare.add_parser(commands)
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


if __name__ == "__main__":
    sys.exit(main())
