"""Random combinations of training options: each ends well, or in a refusal that the README lists."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks import test_setups as setups
from tests.callbacks.training import DigitsNet, digits, fit, new_network

OPTIONS = {
    "kind": [DigitsNet, setups.Frozen, setups.Reused, setups.Checkpointed, setups.Reentrant, setups.Manual],
    "precision": ["32-true", "bf16-mixed", "bf16-true", "64-true"],
    "accumulate_grad_batches": [1, 2, 4],
    "limit_val_batches": [0, 1, 1.0],
    "limit_train_batches": [1, 3, 1.0],
    "check_val_every_n_epoch": [1, 2],
    "val_check_interval": [0.5, 1.0],
    "num_sanity_val_steps": [0, 2],
    "inference_mode": [True, False],
    "fast_dev_run": [False, False, False, 2],
    "overfit_batches": [0, 0, 0, 2],
    "validate": [True, True, True, False],
    "logger": ["none", "tensorboard", "csv", "both"],
    "averaging": [False, False, True],
    "stopping": [False, True],
    "checkpointing": [False, True],
}
MONITOR = {
    "reference": ["init", "previous", "module"],
    "layers": ["auto", "*"],
    "measures": [("cka",), ("cka", "nbs"), ("jsd", "agreement"), None],
    "estimator": ["unbiased", "biased"],
    "num_samples": [4, 30, 1000],
    "num_buckets": [16, 1024],
    "num_projections": [16, 1024],
    "every_n_epochs": [1, 2],
    "probe": ["given", None],
    "name": ["similarity", "drift"],
}


def draw(choices, generator):
    return {name: generator.choice(values) for name, values in choices.items()}


def run(seed, root):
    """One combination; returns the monitor."""
    generator = random.Random(seed)
    options, settings = draw(OPTIONS, generator), draw(MONITOR, generator)
    if settings["measures"] is None:
        del settings["measures"]
    if settings["layers"] == "*":
        settings["layers"] = ["*.0", "*.8"] if issubclass(options["kind"], DigitsNet) else "*"
    if options["kind"] is setups.Reused:
        settings["layers"] = ["square", "last"]
    if settings["reference"] == "module":
        settings["reference"] = options["kind"]()
    settings["probe"] = digits(300, 360) if settings["probe"] else None
    if options["kind"] is setups.Manual:
        options["accumulate_grad_batches"] = 1
    kind, logger = options.pop("kind"), options.pop("logger")
    loggers = {"tensorboard": [TensorBoardLogger], "csv": [CSVLogger], "both": [CSVLogger, TensorBoardLogger]}
    options["logger"] = [make(root) for make in loggers[logger]] if logger in loggers else False
    monitor = SimilarityMonitor(**settings)
    callbacks = [monitor]
    if options.pop("averaging"):
        callbacks.insert(generator.randrange(2), WeightAveraging())
    if options.pop("stopping"):
        callbacks.append(EarlyStopping(f"{monitor.name}/seconds", patience=100, strict=False))
    if options.pop("checkpointing"):
        callbacks.append(ModelCheckpoint(root / "checkpoints"))
        options["enable_checkpointing"] = True
    new_network()
    trainer, network = fit(callbacks, network=kind(), root=root, epochs=2, **options)
    return trainer, network, monitor


def check(seed, root):
    trainer, network, monitor = run(seed, root)
    assert not any(module._forward_hooks for module in network.modules())
    if trainer.fast_dev_run:
        assert not list(root.rglob("record.jsonl"))
    elif monitor.history.measurements:
        directory = trainer.log_dir or root
        read = read_history(directory, source="record", name=monitor.name)
        assert repr(read.to_records()) == repr(monitor.history.to_records())  # NaN equals NaN
    for measurement in monitor.history.measurements:
        assert not any(np.isinf(value) for value in measurement.values.values())
    return len(monitor.history)


QUIET = [
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
]


def _quiet(function):
    for pattern in QUIET:
        function = pytest.mark.filterwarnings(pattern)(function)
    return function


@_quiet
@pytest.mark.parametrize("seed", range(16))
def test_a_random_combination(tmp_path, seed):
    torch.manual_seed(seed)
    check(seed, tmp_path)


@_quiet
@pytest.mark.study
@pytest.mark.timeout(1800)
def test_two_hundred_random_combinations(tmp_path):
    measured = 0
    for seed in range(200):
        (tmp_path / str(seed)).mkdir()
        measured += check(seed, tmp_path / str(seed)) > 0
    assert measured > 100  # the others check nothing: too few epochs, or no validation in them
