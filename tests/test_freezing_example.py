from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from lightning_sim.record import Measurement, SimilarityHistory

PATH = Path(__file__).parents[1] / "examples" / "freeze_converged_layers.py"
LAYERS = ["conv1", "conv2", "conv3"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("freeze_converged_layers", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_converge_bottom_up_and_stay_as_they_are_once_frozen(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, torch.Tensor]] = []

    class Recorder(Callback):
        def on_train_epoch_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
            weights.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})

    trainer_class = example.Trainer
    monkeypatch.setattr(
        example, "Trainer", lambda callbacks, **rest: trainer_class(callbacks=[*callbacks, Recorder()], **rest)
    )
    freezing, monitor, trainer = example.train(epochs=8, root=str(tmp_path))
    assert list(freezing.frozen) == LAYERS[: len(freezing.frozen)]
    assert len(freezing.frozen) >= 2
    assert list(freezing.frozen.values()) == sorted(freezing.frozen.values())
    for layer, epoch in freezing.frozen.items():
        before = monitor.history.trajectory("cka", layer=layer).values[:epoch]
        assert (before[-2:] >= 0.995).all()
        for later in range(epoch, 8):
            assert torch.equal(weights[later][f"{layer}.weight"], weights[epoch - 1][f"{layer}.weight"])
        assert not torch.equal(weights[epoch - 1][f"{layer}.weight"], weights[epoch - 2][f"{layer}.weight"])
    assert not torch.equal(weights[-1]["classifier.weight"], weights[-2]["classifier.weight"])
    assert float(trainer.callback_metrics["accuracy"]) > 0.85


def test_a_layer_waits_for_those_below_it(example: ModuleType) -> None:
    history = SimilarityHistory({})
    freezing = example.FreezeConverged(SimpleNamespace(history=history), LAYERS)
    network = example.Network()
    for epoch, values in enumerate([(0.5, 1.0, 1.0), (1.0, 1.0, 0.5), (1.0, 1.0, float("nan")), (1.0, 1.0, 1.0)]):
        history.append(Measurement(epoch, epoch, {f"cka/features/{n}": v for n, v in zip(LAYERS, values, strict=True)}))
        freezing.on_train_epoch_start(SimpleNamespace(current_epoch=epoch + 1), network)
        trained = [name for name in LAYERS if network.get_submodule(name).weight.requires_grad]
        assert trained == (LAYERS if epoch < 2 else ["conv3"])
    assert freezing.frozen == {"conv1": 3, "conv2": 3}


def test_a_resumed_training_freezes_again(example: ModuleType) -> None:
    freezing = example.FreezeConverged(SimpleNamespace(history=SimilarityHistory({})), LAYERS)
    freezing.load_state_dict({"conv1": 4})
    network = example.Network()
    freezing.on_train_epoch_start(SimpleNamespace(current_epoch=6), network)
    assert not network.conv1.weight.requires_grad
    assert network.conv2.weight.requires_grad
    assert freezing.state_dict() == {"conv1": 4}
