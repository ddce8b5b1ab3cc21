"""What several processes must not do to each other, in real ones: fall silent, talk too much, or change buffers."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.callbacks.test_distributed import launch


def start(tmp_path, rank, port, *arguments):
    """One process of two, started as a cluster does it: nobody ends the one when the other has ended."""
    command = [sys.executable, "-m", "tests.callbacks.distributed_script", tmp_path, 2, *arguments]
    ranks = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {name: str(value) for name, value in ranks.items()}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), env=environment, **pipes)


@pytest.mark.parametrize("kind", ["killed", "killed in scalars"])
def test_a_training_whose_other_process_was_killed_ends_with_an_error(tmp_path, kind):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path, rank, port, 14, 1, kind) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert processes[1].returncode == -9, errors[1][-2000:]
    assert processes[0].returncode == 1, errors[0][-2000:]
    assert "LostRanksError: a measurement lost the other ranks" in errors[0]


def test_processes_log_the_same_values_without_advice_to_reduce_them(tmp_path):
    result = launch(tmp_path, 2, 101, warnings="default")
    assert "sync_dist" not in "".join(line for line in result["errors"].splitlines() if "similarity/" in line)
    assert "self.log('accuracy', ..., sync_dist=True)" in result["errors"]  # the network's own
    first, second = (rank["logged"] for rank in result["ranks"])
    recorded = {}
    for row in result["records"]:
        if row["epoch"] == 1:
            parts = ["similarity", row["measure"], row["representation"], row["layer"]]
            recorded["/".join(part for part in parts if part)] = float(np.float32(row["value"]))
    assert len(recorded) >= 9
    for name, value in recorded.items():
        if name != "similarity/seconds":
            assert first[name] == second[name] == value


def test_buffers_that_evaluation_moves_are_as_without_a_monitor_on_every_rank(tmp_path):
    for kind in ("moving", "unmonitored"):
        (tmp_path / kind).mkdir()
        launch(tmp_path / kind, 2, 101, epochs=1, kind=kind)
    for rank in (0, 1):
        monitored, plain = (torch.load(tmp_path / kind / f"rank-{rank}.pt") for kind in ("moving", "unmonitored"))
        assert monitored["mean"] > 0.1  # on its way to 0.3, the mean of the pixels
        for name, value in plain.items():
            assert torch.equal(monitored[name], value), name
