import csv
import shutil
import warnings

import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from lightning_sim import Reference, SimilarityMonitor, run_directory
from lightning_sim.cli import main
from lightning_sim.sketch import Sketch, SketchSet, load_sketches, save_sketches

from ..loggers.test_wandb import records
from ..sketch.data import sketched
from .training import CONVOLUTIONS, digits, features, fit, new_network

SIZES = {"num_samples": 100, "probe_choice": "first", "num_buckets": 128, "num_projections": 128}


def files_of(root):
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained network and the file of its sketches after the last epoch."""
    root = tmp_path_factory.mktemp("teacher")
    monitor = SimilarityMonitor("init", layers=CONVOLUTIONS, save_sketches=True, **SIZES, before_training=False)
    _, network = fit([monitor], epochs=2, root=root)
    return network, root / "similarity" / "sketches" / "epoch=1-step=11.safetensors"


def test_every_measurement_becomes_a_file_of_what_it_was_computed_from(trained):
    network, path = trained
    assert files_of(path.parents[2]) == [f"similarity/sketches/epoch={n}-step={6 * n + 5}.safetensors" for n in (0, 1)]
    held = load_sketches(path)
    assert (held.network, held.epoch, held.step) == ("DigitsNet", 1, 11)
    assert list(held.of("features")) == CONVOLUTIONS
    probe = digits(300, 400)
    for layer, sketch in held.of("features").items():
        own, found = Sketch(128, 128), features(network, layer, probe)
        own.directions = "first"
        for ids in torch.arange(100).split(50):
            own.update(found[ids], ids)
        assert own.num_directions == 16
        assert float(sketch.cka(own)) == pytest.approx(1, abs=1e-5)
        assert float(sketch.cka(sketched(found, num_buckets=128, num_projections=128))) == pytest.approx(1, abs=0.02)
    with torch.no_grad():
        assert torch.allclose(held.logits, network.eval()(probe.tensors[0]), atol=1e-5)


@pytest.mark.parametrize(("every", "epochs"), [(2, [1, 3]), (3, [2]), (False, [])])
def test_saving_every_nth_measurement(tmp_path, every, epochs):
    fit(
        [SimilarityMonitor(layers="net.0", save_sketches=every, **SIZES, before_training=False)],
        epochs=4,
        root=tmp_path,
    )
    expected = [f"similarity/sketches/epoch={n}-step={6 * n + 5}.safetensors" for n in epochs]
    assert files_of(tmp_path) == expected


def test_files_are_versions_of_an_artifact_which_are_compared_wherever_they_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    logger = WandbLogger(project="tests", offline=True, save_dir=tmp_path)
    monitor = SimilarityMonitor(layers="net.0", log_sketches=True, name="a b", **SIZES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="wandb")
        fit([monitor], epochs=2, root=tmp_path, logger=logger)
    wandb.finish()
    wandb.teardown()  # its process may still be writing
    (directory,) = tmp_path.glob("wandb/offline-run-*")
    versions = [artifact for artifact in records(tmp_path, "artifact") if artifact.type == "sketches"]
    assert {version.name for version in versions} == {f"a-b-sketches-{directory.name.rsplit('-', 1)[1]}"}
    names = ["epoch=0-step=0", "epoch=0-step=5", "epoch=1-step=11"]
    assert [set(version.aliases) for version in versions] == [{"latest", name} for name in names]
    downloaded = [tmp_path / f"artifacts/v{number}" for number in range(3)]
    for folder, version in zip(downloaded, versions, strict=True):
        (entry,) = version.manifest.contents
        folder.mkdir(parents=True)
        shutil.copy(entry.local_path, folder / entry.path)
    shutil.rmtree(monitor.directory)  # which the other machine does not have
    assert main(["compare", *map(str, downloaded), "--out", str(tmp_path / "m.csv")]) == 0
    with (tmp_path / "m.csv").open() as file:
        found = {(row["a"], row["b"]): float(row["value"]) for row in csv.DictReader(file)}
    (measured,) = (m for m in monitor.history.measurements if m.step == 11)
    assert found["v2", "v0"] == pytest.approx(measured.values["cka/features/net.0"], abs=1e-6)


def test_nothing_is_saved_in_a_fast_development_run(tmp_path):
    fit([SimilarityMonitor(layers="net.0", save_sketches=True, **SIZES)], root=tmp_path, fast_dev_run=True)
    assert files_of(tmp_path) == []


def test_a_full_disk_is_warned_about_and_ends_no_training(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "save_sketches", full)
    monitor = SimilarityMonitor(layers="net.0", save_sketches=True, **SIZES, before_training=False)
    with pytest.warns(UserWarning, match=r"sketches could not be saved.*No space left"):
        fit([monitor], epochs=1, root=tmp_path)
    assert len(monitor.history) == 1


@pytest.mark.parametrize("layers", ["auto", CONVOLUTIONS, {"net.3": "net.0"}])
def test_monitoring_without_the_reference_network_gives_the_same_numbers(tmp_path, trained, layers):
    network, path = trained
    given = [SimilarityMonitor(source, layers=layers, name=name, **SIZES)
             for source, name in ((path, "file"), (network, "network"))]  # fmt: skip
    fit(given, epochs=2, root=tmp_path, network=new_network(seed=5))
    by_file, by_network = (monitor.history for monitor in given)
    assert {"cka/features/net.3", "nbs/features/net.3", "agreement", "jsd"} <= set(by_file.names)
    for mine, theirs in zip(by_file.measurements, by_network.measurements, strict=True):
        for name in set(mine.values) - {"seconds"}:
            assert mine.values[name] == theirs.values[name], name
    assert by_file.metadata["reference"]["kind"] == "sketches"
    assert len(by_file.metadata["reference"]["sha256"]) == 64


def test_monitoring_gradients_without_the_reference_network(tmp_path):
    kinds = {"representations": ("gradients", "features*gradients"), "layers": "net.0", **SIZES}
    _, network = fit([SimilarityMonitor(save_sketches=True, **kinds)], epochs=1, root=tmp_path)
    path = tmp_path / "similarity" / "sketches" / "epoch=0-step=5.safetensors"
    given = [SimilarityMonitor(source, name=name, **kinds) for source, name in ((path, "file"), (network, "network"))]
    fit(given, epochs=1, root=tmp_path, network=new_network(seed=5))
    for name in ("cka/gradients/net.0", "cka/features*gradients/net.0"):
        by_file, by_network = (monitor.history.measurements[0].values[name] for monitor in given)
        assert by_file == by_network
    with pytest.raises(ValueError, match=r"different losses.*beta = 0\.25.*beta = 0\.5"):
        fit([SimilarityMonitor(path, beta=0.25, **kinds)], root=tmp_path)


def test_resuming_against_saved_sketches(tmp_path, trained):
    _, path = trained
    whole, first, second = (SimilarityMonitor(path, layers=CONVOLUTIONS, **SIZES) for _ in range(3))
    fit([whole], epochs=2, root=tmp_path / "whole")
    trainer, _ = fit([first], epochs=1, root=tmp_path / "parts")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit([second], epochs=2, root=tmp_path / "parts", ckpt_path=tmp_path / "last.ckpt")
    assert second.history.epochs == [0, 1]
    assert second.history.measurements[0].values["jsd"] == whole.history.measurements[0].values["jsd"]
    assert (tmp_path / "last.ckpt").stat().st_size < path.stat().st_size  # the reference stays in its file


def test_sketches_from_before_a_resume_are_kept(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    settings = {"layers": "net.0", "save_sketches": True, **SIZES}
    fit(
        [SimilarityMonitor(**settings, before_training=False), checkpoint],
        epochs=2,
        root=tmp_path,
        enable_checkpointing=True,
    )
    folder = tmp_path / "similarity" / "sketches"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resumed = SimilarityMonitor(**settings, before_training=False)
    fit([resumed], epochs=2, root=tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.directory == tmp_path / "similarity"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch=0-step=5.safetensors", "epoch=1-step=11-1.safetensors", "epoch=1-step=11.safetensors",
    ]  # fmt: skip
    assert (folder / "epoch=1-step=11-1.safetensors").read_bytes() == before["epoch=1-step=11.safetensors"]


def without_outputs(path, folder):
    held = load_sketches(path)
    save_sketches(SketchSet(held.sketches, probe=held.probe), folder / "x.safetensors")
    return folder / "x.safetensors"


def test_outputs_are_left_out_where_the_file_has_none(tmp_path, trained):
    path = without_outputs(trained[1], tmp_path)
    monitor = SimilarityMonitor(path, layers=CONVOLUTIONS, **SIZES)
    fit([monitor], epochs=1, root=tmp_path)
    assert monitor.history.measures == ["cka", "nbs"]
    with pytest.raises(ValueError, match=r"jsd \(the output of the reference is not in the file"):
        fit([SimilarityMonitor(path, layers=CONVOLUTIONS, measures=["cka", "jsd"], **SIZES)], root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 90}, "different probes"),
        ({"probe": digits(0, 100)}, "different probes"),
        ({"num_buckets": 256}, r"epoch=1-step=11\.safetensors.*num_buckets=128"),
        ({"seed": 4}, "seed=0"),
        ({"layers": ["net.6"]}, r"'net\.6' in the reference.*Available: net\.0, net\.3"),
        ({"layers": {"net.0": "conv"}}, "'conv' in the reference"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(tmp_path, trained, options, message):
    monitor = SimilarityMonitor(trained[1], **SIZES | options)
    with pytest.raises(ValueError, match=message):
        fit([monitor], root=tmp_path)


def test_other_samples_are_refused_where_the_probe_is_not_known(tmp_path):
    network = new_network()
    layer = features(network, "net.0", digits(300, 390))
    sketch = sketched(layer, num_buckets=128, num_projections=128)
    save_sketches(SketchSet({"features": {"net.0": sketch}}), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"90 samples.*0 to 99"):
        fit([SimilarityMonitor(tmp_path / "x.safetensors", **SIZES)], root=tmp_path)
    monitor = SimilarityMonitor(tmp_path / "x.safetensors", **SIZES | {"num_samples": 90})
    fit([monitor], epochs=1, root=tmp_path)
    assert monitor.history.layers == ["net.0"]


def test_references_made_from_files(tmp_path, trained):
    _, path = trained
    assert Reference(path).kind == Reference.from_sketches(path).kind == "sketches"
    assert Reference(Reference(path)).saved is not None
    assert Reference(path).weights_for(nn.Linear(2, 2)) is None
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-1])
    for reference in (Reference.from_sketches, lambda cut: Reference(cut).weights_for(nn.Linear(2, 2))):
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            reference(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Reference.from_sketches(tmp_path / "nowhere.safetensors")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"`save_sketches`.*-1"):
        SimilarityMonitor(save_sketches=-1)
