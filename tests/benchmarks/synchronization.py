"""Bytes that ranks hand to one another when sketches are added up, in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import multiprocessing

from lightning_sim.sketch import Sketch, all_reduce_sketches

__all__ = ["bytes_per_rank", "state_bytes"]


def state_bytes(sketches: list[Sketch]) -> int:
    """Of the tensors of all sketches."""
    return sum(value.numel() * value.element_size() for sketch in sketches for value in sketch.sums())


def bytes_per_rank(layers: int, width: int, num_samples: int, num_ranks: int) -> tuple[int, int]:
    """What a rank puts into collectives for one measurement, and the state of its sketches, in bytes."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        path = Path(directory) / "bytes.json"
        arguments = (layers, width, num_samples, num_ranks, port, str(path))
        if num_ranks == 1:
            _rank(0, *arguments)
        else:
            multiprocessing.spawn(_rank, arguments, nprocs=num_ranks)
        sent, state = json.loads(path.read_text())
    return sent, state


def _rank(rank: int, layers: int, width: int, num_samples: int, num_ranks: int, port: int, path: str) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    try:
        ids = torch.arange(num_samples)[rank::num_ranks]
        sketches = [Sketch() for _ in range(layers)]
        for sketch in sketches:
            for batch in ids.split(256):
                sketch.update(torch.ones(len(batch), width), batch)
        sent = 0

        def counted(collective: Callable[..., Any], position: int) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal sent
                sent += args[position].numel() * args[position].element_size()
                return collective(*args, **kwargs)

            return call

        with (
            mock.patch.object(dist, "all_reduce", counted(dist.all_reduce, 0)),
            mock.patch.object(dist, "all_gather", counted(dist.all_gather, 1)),
        ):
            all_reduce_sketches(sketches)
        if rank == 0:
            Path(path).write_text(json.dumps([sent, state_bytes(sketches)]))
    finally:
        dist.destroy_process_group()
