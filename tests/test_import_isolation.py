"""Importing a part of the package loads no more than that part needs; each import in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
OPTIONAL = {"matplotlib", "pandas", "sklearn", "tensorboard", "transformers", "wandb"}

# Prints which top-level packages modules of ours asked for by themselves, and which are loaded in the end:
# torchmetrics and Lightning load matplotlib and transformers where they are installed, which hides our own.
SCRIPT = """
import builtins, importlib, json, pkgutil, sys

asked = set()
original = builtins.__import__

def record(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and str((globals or {}).get("__name__")).split(".")[0] == "lightning_sim":
        asked.add(name.split(".")[0])
    return original(name, globals, locals, fromlist, level)

def import_all_of(package):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The kernel for CUDA devices is written in what torch's builds for them bring along.
        if not module.name.endswith(("__main__", "triton_fold")):
            importlib.import_module(module.name)

builtins.__import__ = record
%s
print(json.dumps([sorted(asked), sorted({name.split(".")[0] for name in sys.modules})]))
"""


def after(statements: str) -> tuple[set[str], set[str]]:
    """The packages that ours asked for and all that are loaded after the statements."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT % statements]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    asked, loaded = json.loads(process.stdout)
    return set(asked), set(loaded)


@pytest.fixture(scope="module")
def dependencies() -> set[str]:
    """What the required dependencies load by themselves."""
    return after("import lightning.pytorch, safetensors.torch, torchmetrics")[1]


def test_functions_sketches_and_metrics_need_no_lightning(dependencies: set[str]) -> None:
    asked, loaded = after(
        "import lightning_sim.functional, lightning_sim.sketch, lightning_sim.metrics\n"
        "for part in (lightning_sim.functional, lightning_sim.sketch, lightning_sim.metrics): import_all_of(part)"
    )
    assert {"torch", "torchmetrics"} <= asked  # the recording works
    assert not loaded & LIGHTNING
    assert not asked & OPTIONAL
    assert not loaded & OPTIONAL - dependencies


def test_functions_and_sketches_need_no_torchmetrics() -> None:
    _, loaded = after(
        "import lightning_sim.functional, lightning_sim.sketch\n"
        "for part in (lightning_sim.functional, lightning_sim.sketch): import_all_of(part)"
    )
    assert "lightning_sim" in loaded
    assert not loaded & (LIGHTNING | OPTIONAL | {"torchmetrics"})


def test_the_package_needs_no_optional_dependency(dependencies: set[str]) -> None:
    asked, loaded = after(
        "import lightning_sim\n"
        "for name in lightning_sim.__all__: getattr(lightning_sim, name)\n"
        "import_all_of(lightning_sim)"
    )
    assert {"torch", "lightning", "torchmetrics"} <= asked
    assert not asked & OPTIONAL
    assert not loaded & OPTIONAL - dependencies
