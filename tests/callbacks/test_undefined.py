"""Layers without a similarity in a monitored training: NaN, a warning that says why, and all others measured."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_sim import SimilarityEngine, SimilarityMonitor
from tests.callbacks.training import DigitsNet, digits, features, fit, new_network
from tests.sketch import exact


class Dying(DigitsNet):
    """One unit is active for one image of the probe only, as of a rectifier that nearly died; `equal` tells none."""

    def __init__(self):
        super().__init__()
        self.dying, self.equal = nn.ReLU(), nn.Identity()

    def forward(self, images):
        brightest = images.flatten(1).sum(1, keepdim=True) - 24.65
        self.dying(brightest * torch.arange(1.0, 9.0))
        self.equal(torch.ones(len(images), 4))
        return super().forward(images)


def dying(seed=1):
    torch.manual_seed(seed)
    return Dying()


def warned(monitor, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, network = fit([monitor], **options)
    return [str(item.message) for item in caught if "SimilarityMonitor" in str(item.message)], trainer, network


def test_one_active_sample_is_undefined_and_says_so_once(tmp_path):
    probe = digits(300, 420)
    assert int((features(dying(), "dying", probe) != 0).any(1).sum()) == 1
    monitor = SimilarityMonitor(layers=["net.0", "dying", "net.8"], measures=("cka", "nbs"))
    messages, _, network = warned(monitor, network=dying(), root=tmp_path)
    about = [message for message in messages if "dying" in message]
    assert len(about) == len(messages) == 1
    assert "dying tells no samples from others, which leaves no unbiased CKA" in about[0]
    assert "logged as NaN" in about[0]
    matrix = monitor.history.matrix("cka")
    assert np.isnan(matrix.values[matrix.rows.index("dying")]).all()
    assert np.isnan(monitor.history.trajectory("cka", layer="dying").values).all()
    assert monitor.history.trajectory("nbs", layer="dying").values[-1] == pytest.approx(1, abs=1e-5)
    before = features(dying(), "net.0", probe)
    truth = exact.cka_unbiased(features(network, "net.0", probe), before)
    assert monitor.history.trajectory("cka", layer="net.0").values[-1] == pytest.approx(truth, abs=1e-5)


def test_a_layer_of_the_reference_is_named_as_such(tmp_path):
    monitor = SimilarityMonitor(dying(3), layers={"net.0": "net.0", "net.3": "dying"}, measures=("cka",))
    messages, *_ = warned(monitor, root=tmp_path, epochs=2)
    assert len(messages) == 1
    assert "net.3 tells no samples from others" in messages[0]
    assert "(in the reference)" in messages[0]
    assert not np.isnan(monitor.history.trajectory("cka", layer="net.0").values).any()
    assert np.isnan(monitor.history.trajectory("cka", layer="net.3").values).all()


def test_pairs_beside_the_diagonal_warn_of_nothing(tmp_path):
    # `equal` is constant, and a problem of its own; none is reported of its pairs with other layers.
    monitor = SimilarityMonitor(layers=["net.0", "equal"], measures=("cka",))
    messages, *_ = warned(monitor, network=dying(), root=tmp_path, epochs=1)
    assert len(messages) == 1
    assert "equal is constant over the samples" in messages[0]


class Sequences(DigitsNet):
    """Rows of an image as positions, and a head that sees their mean."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"a": nn.Linear(8, 12), "b": nn.Linear(12, 12), "head": nn.Linear(12, 10)})

    def forward(self, images):
        hidden = self.net["b"](torch.relu(self.net["a"](images[:, 0])))
        return self.net["head"](hidden.mean(1))

    def on_train_epoch_start(self):
        pass


def tokens(network, layer):
    found = []
    hook = network.get_submodule(layer).register_forward_hook(lambda m, i, output: found.append(output.detach()))
    with torch.no_grad():
        network(digits(300, 420).tensors[0])
    hook.remove()
    return found[0].flatten(0, -2)


def test_positions_beside_one_output_per_sample(tmp_path):
    torch.manual_seed(0)
    start, network = Sequences(), Sequences()
    monitor = SimilarityMonitor(start, layers=["net.*"], measures=("cka", "nbs"), pool="tokens", num_buckets=1024)
    messages, *_ = warned(monitor, network=network, root=tmp_path)
    assert messages == []
    matrix = monitor.history.matrix("cka")
    assert matrix.rows == ("net.a", "net.b", "net.head")
    assert np.isnan(matrix.values).tolist() == [[False, False, True]] * 2 + [[True, True, False]]
    for layer in matrix.rows:
        for measure, truth in (("cka", exact.cka_unbiased), ("nbs", exact.nbs)):
            value = monitor.history.trajectory(measure, layer=layer).values[-1]
            assert value == pytest.approx(truth(tokens(network, layer), tokens(start, layer)), abs=0.03)


def test_layers_of_different_samples_are_named_and_alone(tmp_path):
    torch.manual_seed(0)
    pairs = {"net.a": "net.a", "net.b": "net.head", "net.head": "net.head"}
    monitor = SimilarityMonitor(Sequences(), layers=pairs, measures=("cka", "nbs"), pool="tokens")
    messages, *_ = warned(monitor, network=Sequences(), root=tmp_path, epochs=2)
    assert len(messages) == 1
    assert "net.b is of other samples than its counterpart (960 and 120 of them)" in messages[0]
    for measure in ("cka", "nbs"):
        last = {layer: monitor.history.trajectory(measure, layer=layer).values[-1] for layer in pairs}
        assert {layer: bool(np.isnan(value)) for layer, value in last.items()} == {
            "net.a": False,
            "net.b": True,
            "net.head": False,
        }


class Sometimes(DigitsNet):
    """One layer runs for whole batches only, and the last of the probe is none."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(10, 10)

    def forward(self, images):
        output = super().forward(images)
        return output + self.extra(output) if len(images) == 50 else output


def test_a_layer_that_runs_in_some_batches_only(tmp_path):
    torch.manual_seed(0)
    start = Sometimes()
    network = Sometimes()
    monitor = SimilarityMonitor(start, layers=["net.0", "extra"], measures=("cka",))
    messages, *_ = warned(monitor, network=network, root=tmp_path)
    assert messages == []
    values = monitor.history.matrix("cka").values
    assert np.isnan(values).tolist() == [[False, True], [True, False]]
    probe = digits(300, 420)
    truth = exact.cka_unbiased(features(network, "net.0", probe), features(start, "net.0", probe))
    assert values[0, 0] == pytest.approx(truth, abs=1e-5)
    assert monitor.history.trajectory("cka", layer="extra").values[-1] == pytest.approx(values[1, 1])


def test_kappa_of_networks_that_are_both_always_right_ends_nothing():
    network, (images, _) = new_network().eval(), digits(300, 340).tensors
    with torch.no_grad():
        labels = network(images).argmax(1)
    samples = TensorDataset(images, labels)
    settings = {"measures": ("agreement", "error_consistency"), "on_error": "raise"}
    engine = SimilarityEngine(network, "init", samples, conditions={"same": torch.clone}, **settings)
    with pytest.warns(
        UserWarning, match="error_consistency, error_consistency/same is undefined: both .* are right on all"
    ):
        values = engine.measure().values
    assert np.isnan([values["error_consistency"], values["error_consistency/same"]]).all()
    assert values["agreement"] == values["accuracy"] == values["accuracy/same"] == 1
    engine.measure()  # says it once: warnings are errors here
    torch.nn.init.constant_(network.net[8].bias, torch.nan)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"could not measure: .*agreement"):
            engine.measure()


def test_a_problem_is_told_once_of_each_condition():
    network = nn.Sequential(nn.Linear(1, 2))  # predicts class 1, the label of all, where x + bias > 0
    samples = TensorDataset(torch.tensor([[-1.0], [1.0]]).repeat(5, 1), torch.ones(10, dtype=torch.long))

    def with_bias(bias):
        network.load_state_dict({"0.weight": torch.tensor([[0.0], [1.0]]), "0.bias": torch.tensor([0.0, bias])})
        return network

    settings = {"measures": "error_consistency", "conditions": {"zero": torch.zeros_like}}
    engine = SimilarityEngine(with_bias(-2.0), "init", samples, **settings)
    for bias, told in ((-0.5, "error_consistency/zero"), (-2.0, "error_consistency")):
        with_bias(bias)
        with pytest.warns(UserWarning, match=f": {told} is undefined: both networks are wrong on all samples"):
            engine.measure()


def test_undefined_values_can_end_the_training(tmp_path):
    monitor = SimilarityMonitor(layers=["net.0", "dying"], measures=("cka",), on_error="raise")
    with pytest.raises(RuntimeError, match="dying tells no samples from others"):
        fit([monitor], network=dying(), root=tmp_path)


def test_a_healthy_training_warns_of_nothing(tmp_path):
    messages, *_ = warned(SimilarityMonitor(new_network(3)), root=tmp_path, epochs=1)
    assert messages == []
