"""Measures of how far a network must move for the probe: mean embeddings, Fisher-Rao lengths and task vectors."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from lightning_sim import Reference, SimilarityMonitor, read_history
from lightning_sim.demo import DigitsNetwork
from tests.callbacks.launching import forked
from tests.callbacks.test_gradients import features_and_gradients
from tests.callbacks.training import DigitsNet, digits, features, fit, new_network, random_states

FISHER = ("fisher_rao_norm", "fisher_rao_distance", "task2vec")
PROBE = digits(300, 313)
EVERY = ("features", "gradients", "features*gradients")


def scores(network, images):
    """For every sample the probabilities (classes,) and the gradients of their logarithms (classes, parameters)."""
    network = copy.deepcopy(network).double().eval().requires_grad_(True)
    for image in images.double():
        log_probabilities = network(image[None]).log_softmax(1)[0]
        rows = [torch.autograd.grad(value, network.parameters(), retain_graph=True) for value in log_probabilities]
        gradients = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
        yield log_probabilities.detach().exp(), gradients


def expected_values(network, reference, images):
    """The definitions, sample by sample and class by class, in float64."""
    at = []
    flat = [torch.cat([value.detach().double().flatten() for value in n.parameters()]) for n in (network, reference)]
    difference = flat[0] - flat[1]
    for one in (network, reference):
        found = list(scores(one, images))
        lengths = [
            sum(float(p @ (gradients @ direction) ** 2) for p, gradients in found) / len(images)
            for direction in (flat[0], difference)
        ]
        diagonal = sum(p @ gradients**2 for p, gradients in found) / len(images)
        values = list(one.parameters())
        parts = zip(values, diagonal.split([value.numel() for value in values]), strict=True)
        task = torch.cat([part.view(len(value), -1).mean(1) if value.ndim > 1 else part for value, part in parts])
        at.append((*lengths, task))
    a, b = at[0][2], at[1][2]
    kept = (a + b) > 1e-12 * (a + b).max()
    a, b = (a / (a + b))[kept], (b / (a + b))[kept]
    return {
        "fisher_rao_norm": at[0][0] ** 0.5,
        "fisher_rao_distance": ((at[0][1] + at[1][1]) / 2) ** 0.5,
        "task2vec": float(a @ b / a.norm() / b.norm()),
    }


def last(monitor, names=FISHER):
    return {name: monitor.history.measurements[-1].values[name] for name in names}


def test_fisher_measures_of_the_demos_network(tmp_path):
    torch.manual_seed(0)
    network = DigitsNetwork()
    start = copy.deepcopy(network)
    monitor = SimilarityMonitor(probe=PROBE, measures=FISHER, layers=["dense"])
    fit([monitor], network=network, root=tmp_path, epochs=2)
    assert last(monitor) == pytest.approx(expected_values(network, start, PROBE.tensors[0]), rel=1e-4)
    assert monitor.history.names == list(FISHER)
    assert read_history(tmp_path).to_records() == monitor.history.to_records()


def test_mean_embeddings_of_every_representation(tmp_path):
    probe = digits(300, 420)
    settings = {"probe": probe, "representations": EVERY, "num_projections": 4096}
    monitor = SimilarityMonitor(measures=("mean_embedding",), layers=["net.0", "net.8"], **settings)
    _, network = fit([monitor], root=tmp_path, epochs=1)
    values = monitor.history.measurements[-1].values
    assert len([name for name in values if name.startswith("mean_embedding")]) == 18
    f, g = (z.numpy() for z in features_and_gradients(network, "net.8", probe.tensors[0]))
    kernels = {"features": f @ f.T, "gradients": g @ g.T, "features*gradients": f @ f.T * (g @ g.T)}
    for representation, kernel in kernels.items():
        norm = kernel.mean() ** 0.5
        expected = {
            "mean_embedding": norm,
            "mean_embedding_diagonal": norm / np.diag(kernel).mean() ** 0.5,
            "mean_embedding_frobenius": kernel.sum() / (len(kernel) * np.linalg.norm(kernel)),
        }
        found = {name: values[f"{name}/{representation}/net.8"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4)
    wide = features(network, "net.0", probe).double()  # of width 384
    assert values["mean_embedding/features/net.0"] == pytest.approx(float(wide.mean(0).norm()), rel=1e-5)


def test_training_is_the_same_bit_for_bit(tmp_path):
    _, plain = fit(root=tmp_path)
    states = random_states()
    monitor = SimilarityMonitor(probe=PROBE, measures=("mean_embedding", *FISHER))
    _, monitored = fit([monitor], root=tmp_path)
    assert random_states() == states
    for (name, value), other in zip(plain.state_dict().items(), monitored.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert [m.training for m in monitored.modules()] == [m.training for m in plain.modules()]
    assert all(value.requires_grad for value in monitored.parameters())


class Named(LightningModule):
    """Takes dictionaries, with attention; gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, rows):
        return {"hidden": rows, "logits": self.head(self.encoder(rows).mean(1))}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0][:, 0])["logits"], batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_dictionaries_attention_and_mixed_precision(tmp_path, precision):
    samples = [{"rows": image[0], "name": "a digit", "label": label} for image, label in PROBE]
    network = Named()
    start = copy.deepcopy(network)
    if precision == "bf16-mixed":
        try:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                copy.deepcopy(network).eval()(PROBE.tensors[0][:, 0])
        except RuntimeError:
            pytest.skip(f"torch {torch.__version__} runs no encoder layer under autocast on the CPU; 2.13 does")
    monitor = SimilarityMonitor(probe=samples, measures=FISHER, layers=["head"])
    fit([monitor], network=network, root=tmp_path, epochs=1, precision=precision)
    logits = [nn.Sequential(Logits(one)) for one in (network, start)]
    # In full precision also where the training is not.
    assert last(monitor) == pytest.approx(expected_values(*logits, PROBE.tensors[0]), rel=1e-3)


class Logits(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.encoder, self.head = network.encoder, network.head

    def forward(self, images):
        return self.head(self.encoder(images[:, 0]).mean(1))


@pytest.mark.parametrize("kind", ["ckpt", "module", "previous"])
def test_other_references_of_the_same_parameters(tmp_path, kind):
    class Keep(Callback):
        networks = ()

        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.networks = (*self.networks, copy.deepcopy(pl_module.net))

    keep, reference = Keep(), kind
    if kind != "previous":
        trainer, other = fit(root=tmp_path, network=new_network(seed=5), epochs=1)
        reference = tmp_path / "other.ckpt" if kind == "ckpt" else other
        trainer.save_checkpoint(tmp_path / "other.ckpt")
    monitor = SimilarityMonitor(reference, probe=PROBE, measures=FISHER, layers=["net.8"])
    _, network = fit([monitor, keep], root=tmp_path, epochs=2)
    other = keep.networks[0] if kind == "previous" else other.net
    assert last(monitor) == pytest.approx(expected_values(network.net, other, PROBE.tensors[0]), rel=1e-4)


def test_resuming_keeps_the_first_reference(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    settings = {"probe": PROBE, "layers": ["net.8"]}
    first = SimilarityMonitor(measures=FISHER, **settings)
    fit([first, checkpoint], root=tmp_path, epochs=1, enable_checkpointing=True)
    resumed = SimilarityMonitor(measures=FISHER, **settings)
    path = tmp_path / "epoch=0.ckpt"
    _, network = fit([resumed], root=tmp_path, epochs=2, network=new_network(seed=9), ckpt_path=path)
    assert resumed.history.epochs == [0, 1]
    assert last(resumed) == pytest.approx(expected_values(network.net, new_network().net, PROBE.tensors[0]), rel=1e-4)

    state = torch.load(path, weights_only=True)
    key = next(key for key in state["callbacks"] if "SimilarityMonitor" in key)
    session = state["callbacks"][key]["session"]
    reference = torch.load(session["reference"]["file"], weights_only=True)
    assert reference["kept"]["fisher_rao_distance"].keys() == dict(new_network().state_dict()).keys()
    del reference["kept"]["fisher_rao_distance"]
    session["reference"] = reference  # as checkpoints had it before there was a file
    torch.save(state, tmp_path / "without.ckpt")
    resumed = SimilarityMonitor(measures=FISHER, **settings)
    with pytest.raises(ValueError, match=r"monitored without fisher_rao_distance, and the reference is gone"):
        fit([resumed], root=tmp_path, epochs=2, ckpt_path=tmp_path / "without.ckpt")


def test_two_processes_measure_what_one_does(tmp_path):
    result = forked(tmp_path, 2, 15, kind="scalars")
    trained = new_network()
    trained.load_state_dict(torch.load(tmp_path / "trained.ckpt", weights_only=True)["state_dict"])
    values = {(r["measure"], r["layer"]): r["value"] for r in result["records"] if r["epoch"] == 1}
    probe = digits(300, 315)
    expected = expected_values(trained.net, new_network().net, probe.tensors[0])
    assert {name: values[name, None] for name in FISHER} == pytest.approx(expected, rel=1e-4)
    mean = features(trained, "net.3", probe).double().mean(0)
    assert values["mean_embedding", "net.3"] == pytest.approx(float(mean.norm()), rel=1e-5)


def test_a_failure_while_training_is_nan_with_one_warning(tmp_path):
    class Broken(DigitsNet):
        def forward(self, images):
            output = super().forward(images)
            # In passes with derivatives, from the second measurement on.
            if self.current_epoch >= 1 and not self.training and len(images) == 1:
                raise RuntimeError("the user's own error")
            return output

    monitor = SimilarityMonitor(probe=PROBE, measures=("cka", *FISHER), layers=["net.8"], before_training=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([monitor], network=Broken(), root=tmp_path, epochs=3)
    about = [str(warning.message) for warning in caught if "task2vec" in str(warning.message)]
    assert len(about) == 1
    assert "task2vec could not be computed: RuntimeError: the user's own error" in about[0]
    assert np.isnan(monitor.history.trajectory("task2vec").values).tolist() == [False, True, True]
    for name in FISHER[:2]:
        assert np.isfinite(monitor.history.trajectory(name).values).all()
    with pytest.raises(RuntimeError, match="task2vec could not be computed"):
        fit(
            [SimilarityMonitor(probe=PROBE, measures=FISHER, on_error="raise", before_training=False)],
            network=Broken(),
            root=tmp_path,
        )


def test_nan_weights_are_nan(tmp_path):
    class Break(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                nn.init.constant_(pl_module.net[3].weight, math.nan)

    monitor = SimilarityMonitor(
        probe=PROBE, measures=("mean_embedding", *FISHER), layers=["net.3"], before_training=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([monitor, Break()], root=tmp_path, epochs=2)
    first, second = (measurement.values for measurement in monitor.history.measurements)
    assert all(math.isfinite(value) for value in first.values())
    nan = [name for name, value in second.items() if math.isnan(value)]
    layers = [f"mean_embedding{form}/features/net.3" for form in ("", "_diagonal", "_frobenius")]
    assert sorted(nan) == sorted([*layers, *FISHER])
    assert len([w for w in caught if "net.3 holds NaN" in str(w.message)]) == 1


class Sequence(DigitsNet):
    def forward(self, images):
        return super().forward(images)[:, None].expand(-1, 5, -1)

    def training_step(self, batch, batch_idx):
        raise AssertionError("a step was made")


@pytest.mark.parametrize("measure", FISHER)
def test_outputs_that_are_no_logits_are_refused_before_the_first_step(tmp_path, measure):
    monitor = SimilarityMonitor(probe=PROBE, measures=("cka", measure))
    with pytest.raises(ValueError, match=rf"do not apply: {measure} \(it needs logits .* of shape \(\d+, 5, 10\)"):
        fit([monitor], network=Sequence(), root=tmp_path, validate=False)


@pytest.mark.parametrize("measure", FISHER[1:])
def test_references_without_the_same_parameters_are_refused_before_the_first_step(tmp_path, measure):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    settings = {"probe": PROBE, "measures": ("cka", measure), "layers": {"net.3": "1", "net.8": "3"}}
    with pytest.raises(ValueError, match=rf"{measure} \(the reference must have the same parameters, .*: 1\."):
        fit([SimilarityMonitor(teacher, **settings)], root=tmp_path)
    fit([SimilarityMonitor(probe=PROBE, measures=("cka",), save_sketches=True)], root=tmp_path, epochs=1)
    reference = Reference.from_sketches(next(tmp_path.rglob("*.safetensors")))
    with pytest.raises(ValueError, match=rf"{measure} \(sketches hold neither"):
        fit([SimilarityMonitor(reference, probe=PROBE, measures=("cka", measure))], root=tmp_path)
    monitor = SimilarityMonitor(reference, probe=PROBE, measures=("mean_embedding", "fisher_rao_norm"))
    fit([monitor], root=tmp_path, epochs=1)
    assert monitor.history.trajectory("fisher_rao_norm").values[-1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sketch": "tang2020"}, r'mean_embedding \(it needs a sum of samples, which sketch="tang2020" lacks'),
        ({"representations": ("features", "transport_map")}, "not defined for the representation"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit([SimilarityMonitor(measures=("mean_embedding",), **settings)], root=tmp_path, epochs=1)


def test_a_layer_that_gives_zeros_has_a_norm_and_no_normalised_one(tmp_path):
    probe = TensorDataset(torch.zeros(9, 1, 8, 8), torch.zeros(9, dtype=torch.int64))
    network = new_network()
    network.net[0].bias = None
    monitor = SimilarityMonitor(probe=probe, measures=("mean_embedding",), layers=["net.0", "net.8"])
    with pytest.warns(UserWarning, match=r"net\.0 is zero for every sample"):
        fit([monitor], network=network, root=tmp_path, epochs=1)
    values = monitor.history.measurements[-1].values
    assert values["mean_embedding/features/net.0"] == 0
    assert math.isnan(values["mean_embedding_diagonal/features/net.0"])
    assert values["mean_embedding_diagonal/features/net.8"] == pytest.approx(1, abs=1e-5)
