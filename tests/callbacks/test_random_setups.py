"""Random combinations of training options and measurement settings: each ends well, or in a refusal that says why."""

import random
import re
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks as averaging
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torchmetrics import MeanSquaredError

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.measures import MEASURES, LayerFunction, OutputFunction, Scale
from lightning_sim.probe.pooling import POOLS
from lightning_sim.probe.representations import REPRESENTATIONS
from tests.callbacks import test_setups as setups
from tests.callbacks.training import DigitsNet, digits, fit, new_network


class Rows(DigitsNet):
    """Reads the eight rows of an image as a sequence."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 12), nn.Identity())
        self.head = nn.Linear(12, 10)

    def forward(self, images):
        return self.head(self.net(images.squeeze(1)).mean(1))


class Chain(DigitsNet):
    """Dense layers behind each other, which have a wCKA."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.Identity(), nn.Linear(16, 10)
        )


def mean_difference(x, y):
    return (x.mean() - y.mean()).abs()


OF_ROWS = MeanSquaredError()  # of two layers of one width; of others it fails, alone
OWN_MEASURES = [
    mean_difference,
    LayerFunction(mean_difference, name="every_pair", scale=Scale(low=0, same=0), every_pair=True),
    OutputFunction(mean_difference, name="of_outputs"),
    OF_ROWS,
]
# Name -> a layer whose width is another, and globs.
LAYERS = {
    DigitsNet: ({"net.0": "net.3", "net.8": "net.8"}, ["*.0", "*.8"]),
    setups.Reused: ({"square": "last", "last": "square"}, ["square", "last"]),
    Rows: ({"net.0": "head", "net.3": "net.3"}, ["net.*", "head"]),
    Chain: ({"net.1": "net.3", "net.5": "net.5"}, ["net.[135]"]),
}
OPTIONS = {
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
KINDS = [DigitsNet, setups.Frozen, setups.Reused, setups.Checkpointed, setups.Reentrant, setups.Manual, Rows, Chain]
MONITOR = {
    "reference": ["init", "previous", "module", "checkpoint", "other"],
    "layers": ["auto", "globs", "mapping"],
    "estimator": ["unbiased", "biased"],
    "sketch": ["default", "default", "default", "tang2020"],
    "pool": POOLS,
    "num_samples": [4, 30, 1000],
    "num_buckets": [16, 1024],
    "num_projections": [16, 1024],
    "beta": [0.5, 0.0],
    "every_n_epochs": [1, 2],
    "probe": ["given", "masked", None],
    "name": ["similarity", "drift"],
}


def draw(choices, generator):
    return {name: generator.choice(values) for name, values in choices.items()}


def some(choices, generator, most):
    return generator.sample(choices, generator.randint(1, most))


def masked(dataset, generator):
    """Samples as mappings with a mask of the rows, and how a network runs on them."""
    lengths = (generator.randint(1, 8) for _ in range(len(dataset)))
    samples = [
        {"image": image, "attention_mask": (torch.arange(8) < length).long()}
        for (image, _), length in zip(dataset, lengths, strict=True)
    ]
    return {"probe": samples, "forward": lambda network, batch: network(batch["image"])}


def drawn_settings(kind, generator, root):
    """Arguments of a monitor of a network of this kind."""
    settings = draw(MONITOR, generator)
    if generator.random() < 0.8:  # else the default ones
        settings["measures"] = some([*MEASURES, *OWN_MEASURES], generator, 5)
    settings["representations"] = some(list(REPRESENTATIONS), generator, 3)
    known = next(LAYERS[base] for base in kind.__mro__ if base in LAYERS)
    reference = settings["reference"]
    if reference == "other":
        settings["reference"] = Chain()
        settings["layers"] = dict.fromkeys(known[0], "net.1")
    elif settings["layers"] != "auto":
        settings["layers"] = known[0] if settings["layers"] == "mapping" else known[1]
    if reference == "module":
        settings["reference"] = kind()
    if reference == "checkpoint":
        settings["reference"] = root / "reference.pt"
        torch.save(kind().state_dict(), settings["reference"])
    probe = settings.pop("probe")
    given = masked(digits(300, 360), generator) if probe == "masked" else {"probe": probe and digits(300, 360)}
    return settings | given


def train(kind, options, callbacks, root):
    new_network()
    return fit(callbacks, network=kind(), root=root, epochs=2, **options)


def trained(seed, root):
    """One combination without and with the monitor: the trainers, the networks and the monitor."""
    generator = random.Random(seed)
    kind, options = generator.choice(KINDS), draw(OPTIONS, generator)
    if kind is setups.Manual:
        options["accumulate_grad_batches"] = 1
    logger = options.pop("logger")
    loggers = {"tensorboard": [TensorBoardLogger], "csv": [CSVLogger], "both": [CSVLogger, TensorBoardLogger]}
    others = []
    if options.pop("averaging") and hasattr(averaging, "WeightAveraging"):  # lightning >= 2.6
        others.append(averaging.WeightAveraging)
    if options.pop("stopping"):
        others.append(lambda: EarlyStopping("accuracy", patience=100, strict=False))
    if options.pop("checkpointing"):
        others.append(lambda: ModelCheckpoint(root / "checkpoints"))
        options["enable_checkpointing"] = True
    place = generator.randrange(len(others) + 1)
    settings = drawn_settings(kind, generator, root)
    plain = train(kind, options | {"logger": False}, [make() for make in others], root)
    while True:
        options["logger"] = [make(root) for make in loggers.get(logger, [])] or False
        callbacks = [make() for make in others]
        monitor = SimilarityMonitor(**settings)
        callbacks.insert(place, monitor)
        try:
            return plain, train(kind, options, callbacks, root), monitor
        except ValueError as refused:
            settings |= {"measures": without_refused(settings, str(refused))}


def without_refused(settings, message):
    """The measures that a refusal does not name, which must then do."""
    said = re.fullmatch(r"measures that do not apply: (.*)", message)
    assert said, message
    asked = settings["measures"]
    names = [item if isinstance(item, str) else getattr(item, "name", None) or function_name(item) for item in asked]
    kept = [item for item, name in zip(asked, names, strict=True) if f"{name} (" not in said[1]]
    assert len(kept) < len(asked), message
    return kept or ["cka"]


def function_name(item):
    return item.__name__ if item is mean_difference else type(item).__name__


def check(seed, root):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (_, plain), (trainer, network), monitor = trained(seed, root)
    for (name, value), other in zip(plain.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not any(module._forward_hooks for module in network.modules())
    history = monitor.history
    if trainer.fast_dev_run:
        assert not list(root.rglob("record.jsonl"))
    elif history.measurements:
        read = read_history(trainer.log_dir or root, source="record", name=monitor.name)
        assert repr(read.to_records()) == repr(history.to_records())  # NaN equals NaN
    said = "\n".join(str(warning.message) for warning in caught)
    for measurement in history.measurements:
        for key, value in measurement.by_key.items():
            scale = history.scale(key.measure)
            assert not np.isinf(value), key
            if np.isnan(value):
                assert "NaN" in said, key
            elif scale.high is not None:
                assert value <= scale.high + 1e-3, key
    return len(history)


@pytest.mark.parametrize("seed", range(16))
def test_a_random_combination(tmp_path, seed):
    torch.manual_seed(seed)
    check(seed, tmp_path)


@pytest.mark.study
@pytest.mark.timeout(3600)
def test_two_hundred_random_combinations(tmp_path):
    measured = 0
    for seed in range(200):
        (tmp_path / str(seed)).mkdir()
        torch.manual_seed(seed)
        measured += check(seed, tmp_path / str(seed)) > 0
    assert measured > 100  # the others check nothing: too few epochs, or no validation in them
