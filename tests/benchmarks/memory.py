"""Peak memory of one contender for the layer x layer matrix, in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.benchmarks.settings import Settings

__all__ = ["peak_growth"]


def peak_growth(contender: str, network: str, num_samples: int, settings: Settings) -> float:
    """Bytes by which the process (on CUDA: what is allocated there) grows beyond the two networks and the inputs.

    Ours includes the reference's sketches and the pass that makes them.

    Raises:
        RuntimeError: when the contender fails, with the end of what it said.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.memory", contender, network]
    command += [str(num_samples), settings.size, str(settings.device), str(torch.get_num_threads())]
    # glibc's heaps, and those of every thread, would keep some of what was freed, more or less by chance.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("contender", "network", "num_samples", "size", "device", "threads"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    import lightning.pytorch  # noqa: F401  # which a training has imported before, and torch's compiler with it

    from tests.benchmarks.contenders import contenders
    from tests.benchmarks.workloads import workload

    torch.set_num_threads(int(arguments.threads))
    settings = Settings(torch.device(arguments.device), arguments.size)
    chosen = next(contender for contender in contenders() if contender.name == arguments.contender)
    load = workload(arguments.network, settings, int(arguments.num_samples))
    changed = load.changed()
    before = torch.cuda.memory_allocated() if settings.cuda else _resident()
    if settings.cuda:
        torch.cuda.reset_peak_memory_stats()
    chosen.prepare(load, changed)()
    print(json.dumps((torch.cuda.max_memory_allocated() if settings.cuda else _peak_resident()) - before))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_resident() -> int:
    # What getrusage gives starts from the size of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _main()
