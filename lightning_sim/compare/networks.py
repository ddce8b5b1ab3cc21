"""Comparing two checkpoints of a network, which a function makes, on a data set, which another function makes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sim._arguments import check_callable
from lightning_sim.engine import compare_networks
from lightning_sim.measures import DEFAULT_MEASURES
from lightning_sim.record import SimilarityHistory
from lightning_sim.reference import Reference

__all__ = ["compare_checkpoints"]


def compare_checkpoints(parsed: argparse.Namespace) -> SimilarityHistory:
    """The one measurement that compares the network of the first path with that of the second.

    Raises:
        ValueError: for arguments that do not fit each other, functions that cannot be found or run, and whatever cannot
            be compared.
    """
    if len(parsed.paths) != 2 or not (parsed.network and parsed.data):
        raise ValueError(
            "two checkpoints are compared with --network package.module:function, which makes the network without "
            "their weights, and --data package.module:function, which makes a DataLoader or Dataset"
        )
    if parsed.epoch is not None:
        raise ValueError("--epoch is of saved sketches; a checkpoint is of one epoch")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` would have it, for modules that are not installed
    network = _made(parsed.network, "--network")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network {parsed.network} made a {type(network).__name__}, which is no torch.nn.Module")
    mine, theirs = parsed.paths
    weights = Reference(mine).weights_for(network)
    if weights is None:
        raise ValueError(f"{mine} holds sketches; compare sketches without --network and --data")
    if not weights.is_whole:
        raise ValueError(weights.refusal())
    network.load_state_dict(weights, strict=False)
    return compare_networks(
        network,
        theirs,
        _made(parsed.data, "--data"),
        progress=sys.stderr.isatty(),
        layers=parsed.layer or "auto",
        measures=tuple(dict.fromkeys((parsed.measure, *DEFAULT_MEASURES))),
        representations=tuple(dict.fromkeys((parsed.representation, "features"))),
        estimator=parsed.estimator,
        name=f"{mine.stem} and {theirs.stem}",
    )


def _made(function: str, argument: str) -> Any:
    make = check_callable(function, argument, "package.module:function")
    try:
        return make()
    except Exception as error:
        raise ValueError(f"{argument} {function} failed: {type(error).__name__}: {error}") from error
