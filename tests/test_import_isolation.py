"""Importing a part of the package loads no more than that part needs: part after part in one fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
OPTIONAL = {"matplotlib", "pandas", "sklearn", "tensorboard", "transformers", "wandb"}

# Prints after every part which top-level packages our modules asked for by themselves so far, and which are loaded:
# torchmetrics and Lightning load matplotlib and transformers where they are installed, which hides our own.
SCRIPT = """
import builtins, importlib, json, pkgutil, sys

asked = set()
original = builtins.__import__

def record(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and str((globals or {}).get("__name__")).split(".")[0] == "lightning_sim":
        asked.add(name.split(".")[0])
    return original(name, globals, locals, fromlist, level)

def import_all_of(*names):
    for name in names:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            # The kernel for CUDA devices is written in what torch's builds for them bring along.
            if not module.name.endswith(("__main__", "triton_fold")):
                importlib.import_module(module.name)

def say():
    print(json.dumps([sorted(asked), sorted({name.split(".")[0] for name in sys.modules})]))

builtins.__import__ = record
import_all_of("lightning_sim.functional", "lightning_sim.sketch")
say()
import torchmetrics
say()
import_all_of("lightning_sim.metrics")
say()
import lightning.pytorch, safetensors.torch
say()
import lightning_sim
for name in lightning_sim.__all__:
    getattr(lightning_sim, name)
import_all_of("lightning_sim")
say()
"""


@pytest.fixture(scope="module")
def loads() -> list[tuple[set[str], set[str]]]:
    """(Asked for, loaded) after functions and sketches, torchmetrics, metrics, lightning, and the whole package."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    pairs = [json.loads(line) for line in process.stdout.splitlines()]
    return [(set(asked), set(loaded)) for asked, loaded in pairs]


def test_functions_and_sketches_need_no_torchmetrics(loads: list[tuple[set[str], set[str]]]) -> None:
    asked, loaded = loads[0]
    assert "torch" in asked  # the recording works
    assert "lightning_sim" in loaded
    assert not loaded & (LIGHTNING | OPTIONAL | {"torchmetrics"})


def test_metrics_need_no_lightning(loads: list[tuple[set[str], set[str]]]) -> None:
    (_, of_torchmetrics), (asked, loaded) = loads[1:3]
    assert "torchmetrics" in asked
    assert not loaded & LIGHTNING
    assert not asked & OPTIONAL
    assert not loaded & OPTIONAL - of_torchmetrics


def test_the_package_needs_no_optional_dependency(loads: list[tuple[set[str], set[str]]]) -> None:
    (_, of_dependencies), (asked, loaded) = loads[3:]
    assert {"torch", "lightning", "torchmetrics"} <= asked
    assert not asked & OPTIONAL
    assert not loaded & OPTIONAL - of_dependencies
