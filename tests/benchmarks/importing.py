"""What importing the package adds to importing Lightning, in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.figure import Figure
from tests.benchmarks.settings import Settings

__all__ = ["measure"]

STATEMENTS = ("import lightning.pytorch", "import lightning_sim", "from lightning_sim import SimilarityMonitor")
BARS = {"import lightning_sim": 0.2}

SCRIPT = f"""
import json, time
seconds = []
for statement in {STATEMENTS!r}:
    start = time.perf_counter()
    exec(statement)
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


def measure(settings: Settings) -> Iterator[Figure]:
    """The package itself, and then the monitor with all that it needs, after Lightning."""
    rounds = [_in_new_process() for _ in range(settings.rounds)]
    seconds = {statement: [taken[index] for taken in rounds] for index, statement in enumerate(STATEMENTS)}
    for statement in STATEMENTS[1:]:
        yield Figure(
            f"{statement}, after Lightning",
            statistics.median(seconds[statement]),
            unit="s",
            bar=BARS.get(statement),
            spread=(min(seconds[statement]), max(seconds[statement])),
            note=f"Lightning takes {statistics.median(seconds[STATEMENTS[0]]):.2f} s",
            seconds=seconds,
        )


def _in_new_process() -> list[float]:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds
