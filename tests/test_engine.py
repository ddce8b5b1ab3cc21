"""Measuring without a Trainer: in one call, and from loops of one's own."""

import inspect
from dataclasses import MISSING, fields

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityEngine, SimilarityMonitor, compare_networks, read_history
from lightning_sim.settings import Settings

from .functional.test_centered_kernel_alignment import cka_by_definition
from .processes import Process

SAMPLES = torch.randn(96, 6, generator=torch.Generator().manual_seed(7))


def new_network(seed, width=10):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def train(network, steps=5):
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        network(SAMPLES).square().mean().backward()
        optimizer.step()


def expected_cka(first, second, layers):
    """Layer -> CKA of all samples by its definition in float64."""
    with torch.no_grad():
        return {
            layer: cka_by_definition(
                *(network[: int(layer) + 1](SAMPLES).double().numpy() for network in (first, second)), "unbiased"
            )
            for layer in layers
        }


def test_one_call_compares_two_networks_as_a_monitored_run_does(tmp_path):
    first, second = new_network(0), new_network(1, width=7)
    data = DataLoader(TensorDataset(SAMPLES), 16)
    history = compare_networks(first, second, data, progress=False, directory=tmp_path)
    for layer, value in expected_cka(first, second, "02").items():
        assert history.trajectory("cka", layer=layer).values == pytest.approx([value], abs=1e-6)
    assert history.matrix("cka").values.shape == (2, 2)
    assert read_history(tmp_path / "similarity") == history


def test_a_loop_of_one_s_own_measures_and_keeps_what_a_monitor_would(tmp_path):
    network, before = new_network(0), new_network(0)
    engine = SimilarityEngine(network, "init", SAMPLES, measures="cka", directory=tmp_path, name="own")
    for epoch in range(3):
        train(network)
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        random_state = torch.get_rng_state()
        measurement = engine.measure(epoch=epoch, step=5 * epoch + 4)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
        for layer, value in expected_cka(network, before, "02").items():
            assert measurement.values[f"cka/features/{layer}"] == pytest.approx(value, abs=1e-6)
    engine.close()
    held = read_history(engine.directory)
    assert held == engine.history
    assert [m.step for m in held.measurements] == [4, 9, 14]
    assert held.run == "own"


def test_a_loop_that_is_resumed_compares_with_the_same_start_and_continues_the_record(tmp_path):
    network, before = new_network(0), new_network(0)
    engine = SimilarityEngine(network, "init", SAMPLES, measures="cka", directory=tmp_path)
    train(network)
    engine.measure(epoch=0, step=4)
    torch.save({"weights": network.state_dict(), "similarity": engine.state_dict()}, tmp_path / "loop.ckpt")
    engine.close()

    state = torch.load(tmp_path / "loop.ckpt", weights_only=True)
    resumed = new_network(5)
    resumed.load_state_dict(state["weights"])
    engine = SimilarityEngine(
        resumed, "init", SAMPLES, measures="cka", directory=tmp_path, state=state["similarity"]
    )
    train(resumed)
    measurement = engine.measure(epoch=1, step=9)
    for layer, value in expected_cka(resumed, before, "02").items():
        assert measurement.values[f"cka/features/{layer}"] == pytest.approx(value, abs=1e-6)
    assert [m.epoch for m in read_history(tmp_path / "similarity").measurements] == [0, 1]
    with pytest.raises(ValueError, match="other settings"):
        SimilarityEngine(resumed, "init", SAMPLES, measures="cka", seed=3, state=state["similarity"])


def test_wrappers_of_fabric_and_of_the_compiler_are_taken_off():
    network, before = new_network(0), new_network(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, _ = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    train(network)
    for given in (wrapped, torch.compile(network), nn.parallel.DataParallel(network)):
        history = compare_networks(given, before, SAMPLES, measures="cka", progress=False)
        assert history.layers == ["0", "2"]
        value = expected_cka(network, before, "2")["2"]
        assert history.trajectory("cka", layer="2").values == pytest.approx([value], abs=1e-6)


def rank_of_two(pipe, rank, store):
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(new_network(0))
    history = compare_networks(network, new_network(1), SAMPLES, progress=False)
    pipe.send(history.measurements[0].values)
    torch.distributed.destroy_process_group()


def test_ranks_share_the_probe_and_agree_with_one_process(tmp_path):
    ranks = [Process(rank_of_two, rank, tmp_path / "store") for rank in (0, 1)]
    alone = compare_networks(new_network(0), new_network(1), SAMPLES, progress=False).measurements[0].values
    for rank in ranks:
        found = rank.hear()
        assert found.keys() == alone.keys()
        assert all(found[name] == pytest.approx(alone[name], abs=1e-5) for name in alone if name != "seconds")
        rank.finish()


def test_a_layer_that_fails_is_told_once_and_is_nan():
    network = new_network(0)
    engine = SimilarityEngine(network, "init", SAMPLES, measures="cka")
    with torch.no_grad():
        network[2].weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"SimilarityEngine: 2 .*NaN"):
        values = engine.measure(epoch=0).values
    assert values["cka/features/2"] != values["cka/features/2"]
    assert values["cka/features/0"] == pytest.approx(1)
    engine.measure(epoch=1)  # warnings are errors here
    strict = SimilarityEngine(new_network(0), "init", SAMPLES, measures="cka", on_error="raise")
    with torch.no_grad(), pytest.raises(RuntimeError, match="2 "):
        strict.measure(network)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"layer": "0"}, TypeError, "'layer'.*layers"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"name": "a/b"}, ValueError, "name"),
        ({"num_samples": 3}, ValueError, "num_samples"),
        ({"layers": "nowhere"}, ValueError, "nowhere"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, error, said):
    with pytest.raises(error, match=said):
        SimilarityEngine(new_network(0), "init", SAMPLES, **settings)


def test_defaults_are_those_of_the_monitor():
    monitor = {name: p.default for name, p in inspect.signature(SimilarityMonitor).parameters.items()}
    for field in fields(Settings):
        if field.default is not MISSING:
            assert field.default == monitor[field.name], field.name


def test_sketches_are_not_kept_for_nowhere():
    with pytest.raises(ValueError, match="needs a `directory`"):
        SimilarityEngine(new_network(0), "init", SAMPLES, save_sketches=True)


def test_a_measurement_that_raises_is_kept_and_the_record_let_go(tmp_path):
    network = new_network(0)
    with torch.no_grad():
        network[2].weight.fill_(torch.nan)
    options = {"measures": "cka", "progress": False, "directory": tmp_path, "on_error": "raise"}
    for place in ("similarity", "similarity-1"):
        with pytest.raises(RuntimeError, match="2 "):
            compare_networks(network, new_network(1), SAMPLES, **options)
        (measurement,) = read_history(tmp_path / place).measurements
        assert measurement.values["cka/features/0"] > 0


def test_another_estimator_does_not_continue_a_run():
    network = new_network(0)
    state = SimilarityEngine(network, "init", SAMPLES, measures="cka").state_dict()
    with pytest.raises(ValueError, match="estimator: was unbiased, is biased"):
        SimilarityEngine(network, "init", SAMPLES, measures="cka", estimator="biased", state=state)
    del state["session"]["identity"]["estimator"]  # as earlier versions kept it
    SimilarityEngine(network, "init", SAMPLES, measures="cka", state=state)
