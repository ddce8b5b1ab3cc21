"""Monitored trainings on corrupted and attacked samples: values from definitions, without traces, and on resume."""

import copy

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from sklearn.metrics import cohen_kappa_score
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityEngine, SimilarityMonitor, read_history
from lightning_sim.conditions import Attack, Corruption
from lightning_sim.functional import centered_kernel_alignment
from tests.callbacks.launching import forked
from tests.callbacks.training import digits, features, fit, new_network, random_states


def dimmed(images):
    return 0.6 * images + 0.2


class Noisy:
    """Draws from the global random state, by which every sample gets its own."""

    name = "noisy"

    def __call__(self, images):
        assert len(images) == 1
        return images + 0.2 * torch.randn_like(images)


ATTACKS = [Attack("pgd", 0.03, crafted_on=on) for on in ("reference", "self", "network")]
CONDITIONS = ("clean", "impulse_noise_3", "fog", dimmed, Noisy(), *ATTACKS)
NAMES = ["impulse_noise_3", "fog", "dimmed", "noisy", "pgd_0.03", "pgd_0.03_self", "pgd_0.03_network"]
OUTPUTS = ["agreement", "jsd", "rank_correlation", "error_consistency", "accuracy", "reference_accuracy"]
PROBE = digits(300, 361)


def trained(root):
    return fit(network=new_network(), epochs=2, root=root)[1]


def shares(network, other, mine, theirs, labels):
    """Agreement, both accuracies and kappa."""
    with torch.no_grad():
        a, b = network(mine).argmax(1), other(theirs).argmax(1)
    right = a == labels, b == labels
    found = [x.double().mean().item() for x in (a == b, *right)]
    return dict(zip(OUTPUTS[:1] + OUTPUTS[4:], found, strict=True)) | {"error_consistency": cohen_kappa_score(*right)}


@pytest.mark.parametrize("batch_size", [61, 13])
def test_values_are_those_of_both_networks_on_these_samples(tmp_path, batch_size):
    network = trained(tmp_path).eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    engine = SimilarityEngine(network, other, DataLoader(PROBE, batch_size), conditions=CONDITIONS, num_samples=61)
    measured = engine.measure()
    images, labels = PROBE.tensors
    ids = torch.arange(61)
    crafted = {
        name: Attack("pgd", 0.03)(who, (images, labels), ids)[0]
        for name, who in zip("no", (network, other), strict=True)
    }
    samples = {
        "": (images, images),
        "/impulse_noise_3": (Corruption("impulse_noise", 3)(images, ids),) * 2,
        "/fog": (Corruption("fog")(images, ids),) * 2,
        "/dimmed": (dimmed(images),) * 2,
        "/pgd_0.03": (crafted["o"],) * 2,
        "/pgd_0.03_self": (crafted["n"], crafted["o"]),
        "/pgd_0.03_network": (crafted["n"],) * 2,
    }
    for condition, (mine, theirs) in samples.items():
        for measure, expected in shares(network, other, mine, theirs, labels).items():
            assert measured.values[measure + condition] == pytest.approx(expected, abs=1e-7), (measure, condition)
    assert set(measured.values) >= {f"{measure}/{name}" for measure in OUTPUTS for name in NAMES}
    assert measured.values["accuracy/pgd_0.03_network"] < measured.values["accuracy"] - 0.03
    rows = [row for row in engine.history.to_records() if row["measure"] == "agreement"]
    assert [row["condition"] for row in rows] == ["", *NAMES]
    assert all(0 <= row["chance_mean"] <= 1 for row in rows)


def test_layers_under_a_condition(tmp_path):
    network, other = trained(tmp_path).eval(), new_network(7).eval()
    settings = {"conditions": ["stripe"], "layers_under_conditions": True, "num_samples": 61}
    engine = SimilarityEngine(network, other, PROBE, **settings)
    measured = engine.measure()
    images, labels = PROBE.tensors
    striped = TensorDataset(Corruption("stripe")(images, torch.arange(61)), labels)
    expected = centered_kernel_alignment(*(features(each, "net.0", striped) for each in (network, other)))
    assert measured.values["cka/features@stripe/net.0"] == pytest.approx(float(expected), abs=1e-4)
    assert engine.history.matrix("cka", condition="stripe").values[0, 0] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("reference", ["init", "previous"])
def test_the_same_training_bit_for_bit(tmp_path, reference):
    weights, states = [], []
    for conditions in (None, CONDITIONS):
        monitor = SimilarityMonitor(reference, num_samples=50, conditions=conditions or "clean", on_error="raise")
        _, network = fit([monitor] if conditions else [], epochs=2, root=tmp_path)
        weights.append(network.state_dict())
        states.append(random_states())
    assert states[0] == states[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    values = monitor.history.measurements[-1].values
    assert all(np.isfinite(values[f"{measure}/{name}"]) for measure in OUTPUTS for name in NAMES)
    assert read_history(monitor.directory) == monitor.history


def test_ranks_measure_what_one_process_would(tmp_path):
    told = forked(tmp_path, 2, 61, epochs=1, kind="conditions")
    start, network = new_network().eval(), new_network().eval()
    network.load_state_dict(torch.load(tmp_path / "trained.ckpt", weights_only=True)["state_dict"])
    images, labels = PROBE.tensors
    fogged = Corruption("fog")(images, torch.arange(61))
    attacked, mine, theirs = (
        Attack(kind, 0.03)(whose, (images, labels), torch.arange(61))[0]
        for kind, whose in (("pgd", start), ("fgsm", network), ("fgsm", start))
    )
    samples = {"fog": (fogged, fogged), "pgd_0.03": (attacked, attacked), "fgsm_0.03_self": (mine, theirs)}
    values = {(row["measure"], row["condition"]): row["value"] for row in told["records"]}
    for condition, inputs in samples.items():
        expected = shares(network, start, *inputs, labels)
        del expected["error_consistency"]  # the start may be wrong on all
        for measure, value in expected.items():
            assert values[measure, condition] == pytest.approx(value, abs=1e-7), (measure, condition)


@pytest.mark.parametrize("reference", ["init", "previous"])
def test_a_resumed_training_measures_the_same(tmp_path, reference):
    def monitored(name, **options):
        monitor = SimilarityMonitor(reference, num_samples=50, conditions=CONDITIONS, directory=tmp_path / name)
        trainer, _ = fit([monitor], root=tmp_path / name, **options)
        return monitor, trainer

    whole, _ = monitored("whole", epochs=3)
    _, trainer = monitored("part", epochs=2)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    seed_everything(4, verbose=False)
    resumed, _ = monitored("part", epochs=3, ckpt_path=tmp_path / "part.ckpt", network=new_network(9))
    before, after = (monitor.history.measurements[-2:] for monitor in (whole, resumed))
    chosen = [f"agreement/{name}" for name in NAMES]
    assert [before[0].values[key] for key in chosen] == [after[0].values[key] for key in chosen]
    assert resumed.history.epochs[-1] == 2
    assert all(np.isfinite(after[1].values[key]) for key in chosen)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("rain", "`conditions` must be of clean, shot_noise, .* got 'rain'"),
        (["fog_9"], "`severity` must be an integer"),
        (["fog", Corruption("fog")], "two conditions have the name 'fog'"),
        ({"a/b": "fog"}, "a condition needs a name without / and @, got 'a/b'"),
        ([3], "got 3"),
    ],
)
def test_conditions_that_are_none(conditions, message):
    with pytest.raises(ValueError, match=message):
        SimilarityMonitor(conditions=conditions)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Attack("pgd", bounds=(0.5, 1)), "the condition 'pgd' cannot be made: pixels must lie in the bounds"),
        (lambda images: images[:0], "must give one tensor for inputs .1, 1, 8, 8."),
        (lambda images: 3, r"got 3 \(int\)"),
    ],
)
def test_conditions_that_cannot_be_made_are_refused_before_training(tmp_path, condition, message):
    with pytest.raises(ValueError, match=message):
        fit([SimilarityMonitor(conditions={getattr(condition, "name", "mine"): condition})], epochs=1, root=tmp_path)


def test_integers_and_saved_sketches_are_refused(tmp_path):
    network = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    tokens = torch.arange(40).view(10, 4) % 5
    with pytest.raises(
        ValueError, match=r"inputs must be floating-point to be corrupted or attacked, got torch\.int64"
    ):
        SimilarityEngine(network, "init", tokens, layers="2", conditions="pgd")
    engine = SimilarityEngine(new_network(), "init", PROBE, directory=tmp_path, save_sketches=True)
    engine.measure()
    (file,) = (engine.directory / "sketches").iterdir()
    with pytest.raises(ValueError, match="conditions need the reference itself"):
        SimilarityEngine(new_network(), file, PROBE, conditions="fog")


def test_one_condition_fails_alone(tmp_path):
    network = new_network()

    class FailsOnWhite(type(network)):
        def forward(self, images):
            if self.current_epoch == 1 and float(images.min()) > 0.99:
                raise RuntimeError("too bright")
            return super().forward(images)

    white = {"white": lambda images: images * 0 + 1, "mine": dimmed}
    monitor = SimilarityMonitor(num_samples=50, conditions=white)
    with pytest.warns(UserWarning, match=r"agreement/white.*RuntimeError: too bright"):
        fit([monitor], network=FailsOnWhite(), epochs=2, root=tmp_path)
    values = monitor.history.measurements[-1].values
    assert np.isnan(values["agreement/white"])
    assert np.isfinite([values["agreement/mine"], values["agreement"]]).all()


def test_many_samples_lie_in_a_file(monkeypatch):
    network, other = new_network(), new_network(7)
    settings = {"conditions": ["fog", ATTACKS[0]], "num_samples": 61}
    expected = SimilarityEngine(network, other, PROBE, **settings).measure().values
    monkeypatch.setattr("lightning_sim.conditioned._IN_MEMORY", 0)
    found = SimilarityEngine(network, other, PROBE, **settings).measure().values
    assert {key: value for key, value in found.items() if key != "seconds"} == pytest.approx(
        {key: value for key, value in expected.items() if key != "seconds"}, nan_ok=True
    )
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"'fog' cannot be made: its samples take .* GiB free; use fewer"):
        SimilarityEngine(network, other, PROBE, **settings)


def test_samples_made_anew_take_the_place_of_those_before(monkeypatch):
    size = digits(300, 361).tensors[0].nbytes
    monkeypatch.setattr("lightning_sim.conditioned._IN_MEMORY", 2 * size)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: pytest.fail("they lie in a file"))
    settings = {"conditions": ["fog", ATTACKS[0]], "num_samples": 61, "on_error": "raise"}
    engine = SimilarityEngine(new_network(), "previous", PROBE, **settings)
    for _ in range(3):
        engine.measure()


def test_what_a_condition_costs(monkeypatch):
    """Passes over the probe, of each network, and backwards through it."""
    network, other = new_network(), new_network(7)
    conditions = ["fog", torch.fliplr, Attack("fgsm"), Attack("fgsm", crafted_on="self")]
    samples = {"mine": 0, "theirs": 0, "back": 0}

    def counting(whose):
        return lambda module, given, output: samples.update({whose: samples[whose] + len(given[0])})

    network.net.register_forward_hook(counting("mine"))
    other.net.register_forward_hook(counting("theirs"))
    differentiate = torch.autograd.grad

    def counted(outputs, inputs, *args, **options):
        samples["back"] += len(inputs)
        return differentiate(outputs, inputs, *args, **options)

    monkeypatch.setattr("torch.autograd.grad", counted)

    def since(action):
        samples.update(dict.fromkeys(samples, 0))
        found = action()
        return found, {whose: count / 61 for whose, count in samples.items()}

    def made(conditions):
        settings = {"num_samples": 61, "conditions": conditions, "measures": ["agreement"]}
        return SimilarityEngine(network, other, DataLoader(PROBE, 13), **settings)

    (_, bare), (engine, start) = since(lambda: made("clean")), since(lambda: made(conditions))
    # The reference once under each, and twice more forward and backward to craft for it.
    assert {whose: start[whose] - bare[whose] for whose in start} == {"mine": 0, "theirs": 6, "back": 2}
    _, cost = since(engine.measure)
    assert cost == {"mine": 1 + 4 + 1, "theirs": 0, "back": 1}


@pytest.mark.parametrize("measure", ["cka", "fisher_rao_distance"])
def test_conditions_under_which_nothing_is_measured_are_refused(measure):
    with pytest.raises(ValueError, match=r"nothing is measured under `conditions`.*layers_under_conditions=True"):
        SimilarityEngine(new_network(), "init", PROBE, measures=measure, conditions="fog")
