"""What a monitor compares: outputs that hold logits, weights of chosen layers, measures that apply; and its copies."""

import copy
import importlib.metadata
import pickle
import re
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from lightning_sim import SimilarityMonitor
from lightning_sim.functional import open_gate_alignment, open_gate_kernels
from lightning_sim.measures import DEFAULT_MEASURES
from tests.callbacks.training import DigitsNet, digits, fit, new_network
from tests.sketch import exact

OUTPUTS = ("agreement", "jsd", "rank_correlation")


class Dense(DigitsNet):
    """A chain of linear layers 64, 32, 16, 10, run by `run(net, x)`."""

    def __init__(self, run=None):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)
        )
        self.run = run

    def forward(self, images):
        return self.net(images) if self.run is None else self.run(self.net, images.flatten(1))

    def on_train_epoch_start(self):
        pass


class Autoencoder(DigitsNet):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))

    def forward(self, images):
        code = self.net[0](images.flatten(1))
        return {"rec": self.net[1](code.relu()), "z": code}

    def on_train_epoch_start(self):
        pass

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0])["rec"], batch[0].flatten(1))

    def validation_step(self, batch, batch_idx):
        pass


def seeded(kind, *arguments, seed=1):
    seed_everything(seed, verbose=False)
    return kind(*arguments)


def wcka(mine, theirs):
    """By the definition, of chains of linear layers in torch's layout."""
    products = []
    for chain in (mine, theirs):
        product = torch.eye(chain[0].shape[1])
        for weight in chain:
            product = product @ weight.detach().T
        products.append(product)
    return exact.cka_biased(*products)


def test_an_output_without_logits_is_not_scored(tmp_path):
    monitor = SimilarityMonitor()
    fit([monitor], root=tmp_path, network=seeded(Autoencoder), epochs=1)
    assert not set(OUTPUTS) & set(monitor.history.measures)
    assert monitor.history.measures[:2] == ["cka", "nbs"]
    words = "the output holds no logits, its keys are rec, z"
    with pytest.raises(ValueError, match=rf"agreement \({words}\)"):
        fit([SimilarityMonitor(measures=("agreement",))], root=tmp_path, network=seeded(Autoencoder), epochs=1)
    with pytest.raises(ValueError, match=r"gradients need logits.* its keys are rec, z; pass .*loss="):
        fit([SimilarityMonitor(representations=("gradients",))], root=tmp_path, network=seeded(Autoencoder), epochs=1)
    with pytest.raises(ValueError, match=r"fisher_rao_norm \(it needs logits .* its keys are rec, z"):
        fit([SimilarityMonitor(measures=("fisher_rao_norm",))], root=tmp_path, network=seeded(Autoencoder), epochs=1)


def test_gradients_of_a_loss_and_chosen_outputs_need_no_name(tmp_path):
    def loss(output, batch):
        return (output["rec"] - batch[0].flatten(1)).square().mean(1)

    monitor = SimilarityMonitor(measures=("cka",), representations=("gradients",), loss=loss, before_training=False)
    fit([monitor], root=tmp_path, network=seeded(Autoencoder), epochs=1)
    assert np.isfinite(monitor.history.trajectory("cka", layer="net.0", representation="gradients").values).all()
    chosen = SimilarityMonitor(
        measures=("agreement",), forward=lambda network, batch: network(batch[0])["rec"], before_training=False
    )
    fit([chosen], root=tmp_path, network=seeded(Autoencoder), epochs=1)
    assert len(chosen.history) == 1


def test_weights_are_compared_for_the_chosen_layers(tmp_path):
    monitor = SimilarityMonitor(layers=["net.3", "net.4"])
    network = fit([monitor], root=tmp_path, network=seeded(Dense), epochs=1)[1]
    matrix = monitor.history.matrix("wcka", representation="weights")
    assert (matrix.rows, matrix.columns) == (("net.3",), ("net.3",))
    chains = [[net.net[1].weight, net.net[3].weight] for net in (network, seeded(Dense))]
    assert matrix.values[0, 0] == pytest.approx(wcka(*chains), abs=1e-5)


def test_weights_are_compared_as_a_mapping_pairs_them(tmp_path):
    teacher = nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in ((64, 20), (20, 20), (20, 10))))
    monitor = SimilarityMonitor(teacher, layers={"net.1": "2", "net.5": "3"}, measures=("cka", "wcka"))
    network = fit([monitor], root=tmp_path, network=seeded(Dense), epochs=1)[1]
    matrix = monitor.history.matrix("wcka", representation="weights")
    assert (matrix.rows, matrix.columns) == (("net.1", "net.5"), ("2", "3"))
    mine, theirs = [network.net[i].weight for i in (1, 3, 5)], [teacher[i].weight for i in (1, 2, 3)]
    expected = [[wcka(mine[:i], theirs[:j]) for j in (2, 3)] for i in (1, 3)]
    assert matrix.values == pytest.approx(np.array(expected), abs=1e-5)
    for layer, value in {"net.1": expected[0][0], "net.5": expected[1][1]}.items():
        found = monitor.history.trajectory("wcka", layer=layer, representation="weights").values[-1]
        assert found == pytest.approx(value, abs=1e-5)


def test_weights_of_compiled_parts_have_their_own_names_and_come_from_files(tmp_path):
    start = seeded(Dense)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    network = seeded(Dense, seed=2)
    network.net = torch.compile(network.net, backend="eager")
    monitor = SimilarityMonitor(tmp_path / "start.pt")
    fit([monitor], root=tmp_path, network=network, epochs=1)
    matrix = monitor.history.matrix("wcka", representation="weights")
    assert matrix.rows == matrix.columns == ("net.1", "net.3", "net.5")
    chains = [[net[i].weight for i in (1, 3, 5)] for net in (network.net._orig_mod, start.net)]
    assert matrix.values[2, 2] == pytest.approx(wcka(*chains), abs=1e-5)


@pytest.mark.parametrize(
    ("network", "settings", "words"),
    [
        (seeded(Dense, lambda net, x: net[3](net[1](x).relu())), {"layers": ["net.1"]}, r"the network .*skips net\.5"),
        (seeded(Dense, lambda net, x: net[5](net[3](net[1](x).cumsum(1)))), {}, r"net\.1 gives is mixed or normalised"),
        (seeded(DigitsNet), {}, r"net\.0\.weight belongs to none"),
        (
            seeded(Dense),
            {
                "reference": nn.Sequential(nn.Flatten(), nn.ConstantPad1d((0, 2), 0), nn.Linear(66, 10)),
                "layers": {"net.1": "2"},
            },
            "takes 64 inputs, and that of the reference 66",
        ),
    ],
)
def test_weights_that_are_no_chain_are_compared_where_named_and_left_out_of_the_default(
    tmp_path, network, settings, words
):
    named = SimilarityMonitor(**settings, measures=("cka", "wcka"))
    fit([named], root=tmp_path, network=network, epochs=1)
    assert {"wcka", "wcka_standard_error"} <= set(named.history.measures)
    monitor = SimilarityMonitor(**settings)
    fit([monitor], root=tmp_path, network=network, epochs=1)
    assert "cka" in monitor.history.measures
    assert "wcka" not in monitor.history.measures
    assert re.search(words, monitor.history.metadata["left_out"]["measures"]["wcka"])


class Gated(DigitsNet):
    def forward(self, images):
        return super().forward(images * images.mean((2, 3), keepdim=True))


def test_wcka_of_what_is_not_linear_with_open_gates_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"wcka \(the network \(Gated\) is not linear with open gates"):
        fit([SimilarityMonitor(measures=("cka", "wcka"))], root=tmp_path, network=Gated(), epochs=1)


def test_wcka_of_a_convolutional_network(tmp_path, caplog):
    network = new_network()
    start = copy.deepcopy(network)
    monitor = SimilarityMonitor(measures=("cka", "wcka"))
    with caplog.at_level("INFO"):
        fit([monitor], root=tmp_path, network=network, epochs=2)
    assert "wcka with open gates takes about" in caplog.text
    history = monitor.history
    matrix = history.matrix("wcka", representation="weights")
    kernels = [open_gate_kernels(net, input_shape=(1, 8, 8), layers=list(matrix.rows)) for net in (network, start)]
    expected, errors = open_gate_alignment(*kernels)
    np.testing.assert_allclose(matrix.values, expected, atol=1e-5)
    for place, layer in enumerate(matrix.rows):
        error = history.trajectory("wcka_standard_error", layer=layer, representation="weights").values[-1]
        assert error == pytest.approx(float(errors[place, place]), abs=1e-5)
        assert 0 < history.trajectory("wcka_untrained_sd", layer=layer, representation="weights").values[-1] < 0.5
    for layer in {key.layer for key in history.measurements[-1].by_key if key.measure == "wcka_partial"}:
        partial = history.trajectory("wcka_partial", layer=layer, representation="weights").values
        assert partial[0] == pytest.approx(1, abs=1e-5)  # before training
        assert partial[-1] <= 1


def test_wcka_of_layers_that_have_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of the linear layers, net\.1, net\.3, net\.5, none is chosen"):
        fit([SimilarityMonitor(layers=["net.2"], measures=("cka", "wcka"))], root=tmp_path, network=Dense(), epochs=1)


def test_measures_beside_all_of_the_defaults_leave_out_what_does_not_apply(tmp_path):
    monitor = SimilarityMonitor(measures=("mean_embedding", *reversed(DEFAULT_MEASURES)), layers=["net.0"])
    fit([monitor], root=tmp_path, epochs=1)
    assert {"cka", "nbs", "mean_embedding", *OUTPUTS} <= set(monitor.history.measures)
    assert "wcka" not in monitor.history.measures
    monitor = SimilarityMonitor(measures=DEFAULT_MEASURES[:-1], layers=["net.0"], name="named")
    fit([monitor], root=tmp_path, epochs=1)
    assert "wcka" in monitor.history.measures


@pytest.mark.parametrize("copied", [lambda monitor: pickle.loads(pickle.dumps(monitor)), copy.deepcopy])
def test_a_copy_of_a_monitor_keeps_history_and_settings_and_trains_again(tmp_path, copied):
    settings = {"reference": new_network(seed=3), "layers": ["net.0"], "measures": ("cka",)}
    fresh = copied(SimilarityMonitor(**settings, probe=digits(300, 360), before_training=False))
    fit([fresh], root=tmp_path / "a", epochs=2)
    records = fresh.history.to_records()
    again = copied(fresh)
    assert again.history.to_records() == records
    assert [r["value"] for r in records if r["measure"] == "cka"] != [1.0, 1.0]
    fit([again], root=tmp_path / "b", epochs=2)
    keep = [[r["value"] for r in monitor.history.to_records() if r["measure"] == "cka"] for monitor in (fresh, again)]
    assert keep[0] == keep[1][-2:]


def test_a_monitor_can_be_copied_while_it_trains(tmp_path):
    copies = []

    class Copying(DigitsNet):
        def on_train_epoch_end(self):
            copies.append(pickle.loads(pickle.dumps(monitor)))

    monitor = SimilarityMonitor(layers=["net.0"], measures=("cka",), before_training=False)
    fit([monitor], root=tmp_path, network=seeded(Copying), epochs=2)
    assert [len(copied.history) for copied in copies] == [1, 2]
    assert monitor.history.epochs == [0, 1]


def test_packages_are_named_where_this_one_is_not_installed(tmp_path, monkeypatch):
    names = ("torch", "lightning", "torchmetrics", "numpy")
    expected = {name: version(name).partition("+")[0] for name in names}

    def nothing(name):
        raise PackageNotFoundError(name)

    for name in ("version", "distribution", "metadata"):
        monkeypatch.setattr(importlib.metadata, name, nothing)
    monitor = SimilarityMonitor(layers=["net.0"], measures=("cka",))
    fit([monitor], root=tmp_path, epochs=1)
    packages = monitor.history.metadata["packages"]
    # Builds may have a suffix, as in 2.4.0+cu121.
    assert {name: packages[name].partition("+")[0] for name in expected} == expected
    assert packages["lightning-sim"] == "0.1.0"
    assert type(packages["torch"]) is str  # and not torch's own type, which checkpoints may not hold
