"""Monitoring gradients, and features and gradients at once, while a network trains."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.functional import log_softmax, softmax

from lightning_sim import SimilarityMonitor, Sketch
from lightning_sim.demo import DigitsNetwork, digits_loader
from lightning_sim.functional import product_kernel_similarity
from lightning_sim.probe.capture import first_tensor, replace_first_tensor
from tests.callbacks.training import CONVOLUTIONS, DigitsNet, digits, fit, new_network, random_states
from tests.sketch import exact

ALL = ("features", "gradients", "features*gradients")


def features_and_gradients(network, layer, images, beta=0.5):
    """What a layer gives, and the expected gradient with respect to it, one class after the other."""
    network, captured = copy.deepcopy(network).eval().requires_grad_(False), []

    def keep(module, arguments, output):
        captured.append(first_tensor(output).requires_grad_())
        return replace_first_tensor(output, captured[-1].clone())

    network.get_submodule(layer).register_forward_hook(keep)
    log_probabilities = log_softmax(network(images), 1)
    q = softmax(beta * log_probabilities.detach().double(), 1)
    gradients = 0
    for label in range(q.shape[1]):
        (gradient,) = torch.autograd.grad(-log_probabilities[:, label].sum(), captured[0], retain_graph=True)
        gradients = gradients + q[:, label].view(-1, *[1] * (gradient.ndim - 1)) * gradient
    return captured[0].detach().double().flatten(1), gradients.flatten(1)


def test_training_is_the_same_bit_for_bit(tmp_path):
    class Watched(DigitsNet):
        def on_validation_epoch_end(self):
            left.extend(name for name, value in self.named_parameters() if value.grad is not None)

    left = []
    _, plain = fit(network=None, root=tmp_path)
    states = random_states()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Watched()
    network.load_state_dict(new_network().state_dict())
    monitor = SimilarityMonitor(representations=ALL, before_training=False)
    _, monitored = fit([monitor], network=network, root=tmp_path)
    assert random_states() == states
    for (name, value), other in zip(plain.state_dict().items(), monitored.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert [m.training for m in monitored.modules()] == [m.training for m in plain.modules()]
    assert not any(module._forward_hooks or module._backward_hooks for module in monitored.modules())
    assert len(monitor.history) == 3


def test_no_gradient_is_left_in_parameters(tmp_path):
    class Checked(SimilarityMonitor):
        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.optimizers[0].zero_grad()
            super().on_validation_epoch_end(trainer, pl_module)
            assert all(parameter.grad is None for parameter in pl_module.parameters())

    monitor = Checked(representations=ALL, on_error="raise", before_training=False)
    fit([monitor], root=tmp_path, epochs=1)
    assert len(monitor.history) == 1


def test_values_are_those_of_the_definition(tmp_path):
    start = copy.deepcopy(new_network())
    layers = [*CONVOLUTIONS, "net.8"]
    options = {"layers": layers, "measures": ("cka", "nbs"), "representations": ALL}
    monitor = SimilarityMonitor(**options, num_projections=4096, every_n_epochs=3)
    trainer, network = fit([monitor], root=tmp_path)
    images = digits(300, 420).tensors[0]
    for layer in layers:
        after, before = (features_and_gradients(net, layer, images) for net in (network, start))

        def last(measure, representation, layer=layer):
            return float(trainer.callback_metrics[f"similarity/{measure}/{representation}/{layer}"])

        assert last("cka", "features") == pytest.approx(exact.cka_unbiased(after[0], before[0]), abs=1e-5)
        assert last("cka", "gradients") == pytest.approx(exact.cka_unbiased(after[1], before[1]), abs=1e-5)
        assert last("nbs", "gradients") == pytest.approx(exact.nbs(after[1], before[1]), abs=1e-5)
        tolerance = 1e-5 if layer == "net.8" else 0.02  # 10 x 10 products are exact
        product = float(product_kernel_similarity(*after, *before))
        assert last("cka", "features*gradients") == pytest.approx(product, abs=tolerance)
        product = float(product_kernel_similarity(*after, *before, measure="nbs"))
        assert last("nbs", "features*gradients") == pytest.approx(product, abs=tolerance)
    for representation in ALL:
        matrix = monitor.history.matrix("cka", representation=representation)
        assert matrix.values[0, 0] == pytest.approx(last("cka", representation, "net.0"), abs=1e-6)


def test_products_of_real_features_and_gradients_at_the_default_sizes(tmp_path):
    networks = [fit(root=tmp_path, network=new_network(seed=seed), epochs=3)[1] for seed in (1, 2)]
    images = digits(300, 750).tensors[0]
    for layer in CONVOLUTIONS:
        x, y = (features_and_gradients(network, layer, images) for network in networks)
        truth = float(product_kernel_similarity(*x, *y))
        errors = [float(sketched(*x, seed).cka(sketched(*y, seed))) - truth for seed in range(5)]
        assert abs(sum(errors) / len(errors)) < 0.01
        assert max(map(abs, errors)) < 0.04


def sketched(features, gradients, seed):
    sketch = Sketch(seed=seed)
    sketch.update(features.float(), torch.arange(len(features)), gradients=gradients.float())
    return sketch


@pytest.mark.parametrize("kind", ["previous", "module", "checkpoint"])
def test_every_kind_of_reference_has_gradients(tmp_path, kind):
    trainer, other = fit(root=tmp_path, network=new_network(seed=5), epochs=1)
    trainer.save_checkpoint(tmp_path / "reference.ckpt")
    reference = {"module": other, "checkpoint": tmp_path / "reference.ckpt"}.get(kind, kind)
    options = {"layers": ["net.3"], "measures": ("cka",), "representations": ("gradients",)}
    monitor = SimilarityMonitor(reference, **options)
    _, network = fit([monitor], root=tmp_path, epochs=1)
    images = digits(300, 420).tensors[0]
    compared = new_network() if kind == "previous" else other
    pair = (features_and_gradients(net, "net.3", images)[1] for net in (network, compared))
    value = monitor.history.trajectory("cka", layer="net.3", representation="gradients").values[-1]
    assert value == pytest.approx(exact.cka_unbiased(*pair), abs=1e-5)
    assert all(parameter.grad is None for parameter in other.parameters()) or kind != "module"


def test_a_frozen_network_has_gradients(tmp_path):
    class Frozen(DigitsNet):
        def __init__(self):
            super().__init__()
            self.net[:6].requires_grad_(False)

    torch.manual_seed(0)
    options = {"layers": CONVOLUTIONS, "measures": ("cka",), "representations": ("gradients",)}
    monitor = SimilarityMonitor(**options, on_error="raise")
    fit([monitor], network=Frozen(), root=tmp_path, epochs=1)
    values = monitor.history.measurements[-1].values
    assert 0.3 < values["cka/gradients/net.0"] < 0.9999  # the classifier moved, and gradients pass through it


@pytest.mark.parametrize("sketch", ["default", "tang2020"])
def test_the_papers_other_combinations_by_name(tmp_path, sketch):
    names = ("features*gradients", "features+gradients", "elementwise", "transport_map")
    options = {"layers": ["net.3", "net.8"], "measures": ("cka", "nbs"), "num_buckets": 128}
    monitor = SimilarityMonitor(
        **options, representations=names, sketch=sketch, on_error="raise", before_training=False
    )
    start = copy.deepcopy(new_network())
    trainer, network = fit([monitor], root=tmp_path, epochs=1)
    values = monitor.history.measurements[-1].values
    assert {f"{m}/{name}/net.3" for m in ("cka", "nbs") for name in names} <= values.keys()
    assert all(0 < value <= 1 for name, value in values.items() if name.startswith(("cka/", "nbs/")))
    assert all(monitor.history.matrix("cka", representation=name).values.shape == (2, 2) for name in names)
    assert not any(name.startswith(("cka/features/", "cka/gradients/")) for name in values)  # were not asked for
    (f, g), (before_f, before_g) = (
        features_and_gradients(net, "net.8", digits(300, 420).tensors[0]) for net in (network, start)
    )
    if sketch == "default":
        together, before = torch.cat([f, g], 1), torch.cat([before_f, before_g], 1)
        assert values["cka/features+gradients/net.8"] == pytest.approx(exact.cka_unbiased(together, before), abs=1e-5)
        product = exact.cka_unbiased(f * g, before_f * before_g)
        assert values["cka/elementwise/net.8"] == pytest.approx(product, abs=1e-5)
    else:
        assert monitor.history.metadata["estimator"] == "biased"
        with pytest.raises(ValueError, match="cannot be saved"):
            SimilarityMonitor(sketch="tang2020", save_sketches=True, before_training=False)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = SimilarityMonitor(
        **options, representations=names, sketch=sketch, on_error="raise", before_training=False
    )
    fit([resumed], root=tmp_path, epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert resumed.history.epochs == [0, 1]
    assert resumed.history.measurements[0].values == values


class Unused(DigitsNet):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(64, 3)

    def forward(self, images):
        self.auxiliary(images.flatten(1))
        return super().forward(images)


def test_a_layer_without_gradient_is_named_and_reads_nan(tmp_path):
    torch.manual_seed(0)
    monitor = SimilarityMonitor(layers=["auxiliary", "net.3"], measures=("cka",), representations=ALL)
    with pytest.warns(UserWarning, match="auxiliary has gradients that cannot be computed: the loss does not"):
        fit([monitor], network=Unused(), root=tmp_path, epochs=1)
    values = monitor.history.measurements[-1].values
    assert values["cka/features/auxiliary"] == pytest.approx(1, abs=1e-5)
    assert all(torch.isnan(torch.tensor(values[f"cka/{name}/auxiliary"])) for name in ALL[1:])
    assert values["cka/gradients/net.3"] > 0


class OneNumber(DigitsNet):
    def forward(self, images):
        return super().forward(images)[:, :1]

    def training_step(self, batch, batch_idx):
        return (self(batch[0])[:, 0] - batch[1]).square().mean() / 100


def test_a_network_without_logits_needs_a_loss(tmp_path):
    options = {"layers": CONVOLUTIONS, "measures": ("cka",), "representations": ("gradients",)}
    torch.manual_seed(0)
    network = OneNumber()
    with pytest.raises(ValueError, match=r"gradients need logits.*shape \(7, 1\); pass SimilarityMonitor.*loss="):
        fit([SimilarityMonitor(**options)], network=network, root=tmp_path, epochs=1)
    monitor = SimilarityMonitor(**options, loss=lambda output, batch: (output[:, 0] - batch[1]).square())
    fit([monitor], network=network, root=tmp_path, epochs=1)
    assert 0.3 < monitor.history.measurements[-1].values["cka/gradients/net.0"] < 1
    with pytest.raises(ValueError, match=r"one loss for every sample.*got shape \(\)"):
        fit([SimilarityMonitor(**options, loss=lambda output, batch: output.mean())], network=network, root=tmp_path)


def test_resuming_keeps_the_sketches_of_the_start(tmp_path):
    options = {"layers": CONVOLUTIONS, "measures": ("cka",), "representations": ALL}
    whole = SimilarityMonitor(**options)
    fit([whole], root=tmp_path, epochs=4)
    first = SimilarityMonitor(**options)
    trainer, _ = fit([first], root=tmp_path, epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = SimilarityMonitor(**options)
    fit([resumed], root=tmp_path, epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.history.epochs == [0, 1, 2, 3]
    for epoch in (2, 3):
        values = resumed.history.measurements[epoch].values
        assert values["cka/features*gradients/net.0"] < 0.9999
        assert values["cka/gradients/net.0"] < 0.9999
    changed = SimilarityMonitor(**options | {"representations": ("features",)})
    with pytest.raises(ValueError, match="representations: was"):
        fit([changed], root=tmp_path, epochs=4, ckpt_path=tmp_path / "half.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"representations": ("activations",)}, "`representations` must be of 'features'.*activations"),
        ({"representations": ()}, "`representations` must be one name or a list.*got none"),
        ({"beta": 1.0}, "`beta`.*zero"),
        ({"sketch": "tang"}, "`sketch` must be one of 'default', 'tang2020'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimilarityMonitor(**options)


def test_the_demo_is_measured_exactly_at_the_default_sizes(tmp_path):
    # 450 samples leave half of 1024 buckets empty, whose memory serves as columns: 1024 + 1024 of them are needed.
    torch.manual_seed(0)
    network = DigitsNetwork()
    start = copy.deepcopy(network)
    monitor = SimilarityMonitor(measures=("cka",), representations=ALL, every_n_epochs=2, before_training=False)
    trainer = Trainer(
        max_epochs=2,
        callbacks=[monitor],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    probe = digits_loader("held-out")
    trainer.fit(network, digits_loader("training"), probe)
    (measurement,) = monitor.history.measurements
    images = probe.dataset.tensors[0]
    for layer in ("conv1", "conv2", "conv3", "dense", "classifier"):
        found = features_and_gradients(network, layer, images) + features_and_gradients(start, layer, images)
        truth = product_kernel_similarity(*found)
        assert measurement.values[f"cka/features*gradients/{layer}"] == pytest.approx(float(truth), abs=1e-5)
        for representation, x, y in (("features", *found[::2]), ("gradients", *found[1::2])):
            value = measurement.values[f"cka/{representation}/{layer}"]
            assert value == pytest.approx(exact.cka_unbiased(x, y), abs=1e-5)
    assert monitor.history.metadata["sketch"]["num_buckets"] == 512


def test_measurements_use_the_memory_of_the_last_one_again(tmp_path):
    class Watched(SimilarityMonitor):
        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            if not trainer.sanity_checking and self._run._session._last is not None:
                held = self._run._session._last.sketches
                sketches = [sketch for layers in held.values() for sketch in layers.values()]
                places.append([value.data_ptr() for sketch in sketches for value in sketch.sums()])

    places = []
    values = []
    for every in (1, 3):
        monitor = Watched(representations=ALL, layers=["net.0", "net.8"], every_n_epochs=every)
        fit([monitor], root=tmp_path)
        values.append(monitor.history.measurements[-1].values)
    assert places[0] == places[1] == places[2]
    for name, value in values[0].items():  # with and without measurements before
        if name.startswith(("cka", "nbs")) and "_" not in name.split("/")[0]:
            assert value == values[1][name], name
