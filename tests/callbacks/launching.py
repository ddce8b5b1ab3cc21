"""Monitored trainings in several processes: started by Lightning, or forked, which spares them seconds of imports."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

from tests.callbacks.distributed_script import main
from tests.processes import Process


def launch(root, devices, num_samples, epochs=2, kind="plain", timeout=240, warnings="ignore"):
    """As a user starts it: one process, and Lightning starts the others. What rank 0 tells, and all errors."""
    command = [sys.executable, "-m", "tests.callbacks.distributed_script", root, devices, num_samples, epochs, kind]
    # What free() keeps for later moves by megabytes; given back at once, resident memory is what is held.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": warnings, "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"errors": done.stderr}


@contextmanager
def ranks(root, devices, *arguments, run=main):
    """As a cluster starts it: every process by itself, and nobody ends the others when one has ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [Process(_rank, rank, devices, port, root, run, *arguments) for rank in range(devices)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def forked(root, devices, num_samples, epochs=2, kind="plain"):
    """What rank 0 tells of a training started as a cluster does it."""
    with ranks(root, devices, num_samples, epochs, kind) as processes:
        found = processes[0].hear()
        for process in processes:
            process.finish()
    return found


def _rank(pipe, rank, devices, port, root, run, *arguments):
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": devices, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    with open(f"{root}/errors-{rank}.txt", "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    found = run(str(root), devices, *arguments)
    if rank == 0:
        pipe.send(found)
