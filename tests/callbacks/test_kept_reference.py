"""The reference of a run lies once beside its record, and checkpoints say where."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_sim import SimilarityEngine, SimilarityMonitor

from ..functional.test_centered_kernel_alignment import cka_by_definition
from .training import DigitsNet, digits, features, fit, new_network

PROBE = digits(300, 420)


class Deep(DigitsNet):
    """16 layers of 256."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        hidden = (layer for _ in range(14) for layer in (nn.Linear(256, 256), nn.ReLU()))
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), *hidden, nn.Linear(256, 10))


def trained(root, callbacks, epochs=1, **options):
    """The checkpoint of a run in a directory of its own."""
    saving = ModelCheckpoint(root / "run" / "checkpoints", filename="{epoch}")
    options |= {"epochs": epochs, "root": root, "enable_checkpointing": True}
    fit([*callbacks, saving], **options)
    return root / "run" / "checkpoints" / f"epoch={epochs - 1}.ckpt"


def monitor(root, **options):
    return SimilarityMonitor(probe=PROBE, layers=["net.0", "net.3"], directory=root / "run", **options)


def test_checkpoints_of_16_layers_grow_by_less_than_a_megabyte(tmp_path):
    bare = trained(tmp_path / "bare", [], network=Deep())
    every = trained(tmp_path / "kept", [SimilarityMonitor(probe=PROBE, directory=tmp_path / "kept")], network=Deep())
    (file,) = (tmp_path / "kept" / "similarity").glob("reference-*.pt")
    assert file.stat().st_size > 120 * 256 * 16 * 4  # what would be in every checkpoint
    assert every.stat().st_size - bare.stat().st_size < 100_000


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_run_finds_it_where_it_was_and_where_the_checkpoint_is(tmp_path, moved):
    checkpoint = trained(tmp_path, [whole := monitor(tmp_path)], epochs=2)
    if moved:
        shutil.move(tmp_path / "run", tmp_path / "elsewhere")
        checkpoint = tmp_path / "elsewhere" / "checkpoints" / checkpoint.name
    resumed = SimilarityMonitor(probe=PROBE, layers=["net.0", "net.3"])
    logger = CSVLogger(tmp_path / "logs")
    _, network = fit([resumed], root=tmp_path, epochs=3, ckpt_path=checkpoint, logger=logger)
    *before, last = resumed.history.measurements
    assert before == whole.history.measurements
    x, y = (features(either, "net.3", PROBE).double().numpy() for either in (network, new_network()))
    assert last.values["cka/features/net.3"] == pytest.approx(cka_by_definition(x, y, "unbiased"), abs=1e-6)


def test_without_the_file_it_says_what_is_missing_and_how_to_go_on(tmp_path):
    checkpoint = trained(tmp_path, [monitor(tmp_path)])
    (file,) = (tmp_path / "run" / "similarity").glob("reference-*.pt")
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes(100))
    with pytest.raises(ValueError, match=rf"{file.name}, and .*{file.name} was changed since"):
        fit([monitor(tmp_path)], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    file.unlink()
    with pytest.raises(ValueError, match=rf'"init".*{file.name}, and it is not in .*similarity.* `name`, to begin'):
        fit([monitor(tmp_path)], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    anew = monitor(tmp_path, name="anew")
    with pytest.warns(UserWarning, match="the network as it is now"):
        fit([anew], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    assert anew.history.measurements[0].values["cka/features/net.0"] == pytest.approx(1, abs=1e-6)
    file.write_bytes(content)
    fit([again := monitor(tmp_path)], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    assert len(again.history) == 3


def test_where_it_cannot_be_written_it_is_in_the_checkpoint(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_sim.kept_reference.replace_file", full)
    with pytest.warns(UserWarning, match="is in checkpoints: .*No space left"):
        checkpoint = trained(tmp_path, [monitor(tmp_path)])
    assert not list((tmp_path / "run" / "similarity").glob("reference-*"))
    fit([resumed := monitor(tmp_path)], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    assert len(resumed.history) == 3


def test_a_reference_that_is_given_again_is_not_kept(tmp_path):
    torch.manual_seed(0)
    teacher = DigitsNet()
    checkpoint = trained(tmp_path, [monitor(tmp_path, reference=teacher)])
    assert not list((tmp_path / "run" / "similarity").glob("reference-*"))
    state = torch.load(checkpoint, weights_only=True)["callbacks"]
    (ours,) = (value for key, value in state.items() if "SimilarityMonitor" in key)
    assert ours["session"]["reference"] is None
    fit([resumed := monitor(tmp_path, reference=teacher)], root=tmp_path, epochs=2, ckpt_path=checkpoint)
    assert len(resumed.history) == 3


def test_a_loop_of_one_s_own_resumes_from_it(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4))
    settings = {"probe": torch.randn(20, 6), "layers": "0", "measures": "cka", "directory": tmp_path}
    with SimilarityEngine(network, "init", **settings) as engine:
        engine.measure()
        state = engine.state_dict()
    assert "sketches" not in state["session"]["reference"]
    nn.init.normal_(network[0].weight)
    with SimilarityEngine(network, "init", state=state, **settings) as engine:
        assert engine.measure(epoch=1).values["cka/features/0"] < 0.9
        assert len(engine.history) == 2


def test_a_run_whose_directory_was_taken_is_found_after_it_has_moved(tmp_path):
    (tmp_path / "run" / "similarity").mkdir(parents=True)
    (tmp_path / "run" / "similarity" / "record.jsonl").write_bytes(b"of another run")
    checkpoint = trained(tmp_path, [whole := monitor(tmp_path)])
    assert whole.directory.name == "similarity-1"
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    resumed = SimilarityMonitor(probe=PROBE, layers=["net.0", "net.3"])
    path = tmp_path / "elsewhere" / "checkpoints" / checkpoint.name
    fit([resumed], root=tmp_path, epochs=2, ckpt_path=path)
    assert len(resumed.history) == 3


def test_a_file_that_was_removed_is_written_with_the_next_checkpoint(tmp_path):
    settings = {"probe": torch.randn(20, 6), "layers": "0", "measures": "cka", "directory": tmp_path}
    network = nn.Sequential(nn.Linear(6, 4))
    with SimilarityEngine(network, "init", **settings) as engine:
        engine.measure()
        file = Path(engine.state_dict()["session"]["reference"]["file"])
        shutil.rmtree(tmp_path / "similarity")
        assert not file.exists()
        state = engine.state_dict()
    assert Path(state["session"]["reference"]["file"]).is_file()


def test_a_start_that_fails_leaves_the_run_as_it_was(tmp_path):
    kept = monitor(tmp_path)
    trainer, network = fit([kept], root=tmp_path, epochs=1)
    loader = DataLoader(digits(0, 100), 50)
    forward, kept.settings = kept.settings, replace(kept.settings, layers=("net.0", "absent"))
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ValueError, match="absent"):
        trainer.fit(network, loader, DataLoader(digits(300, 420), 50))
    kept.settings = forward
    trainer.fit(network, loader, DataLoader(digits(300, 420), 50))
    assert len(kept.history) == 3
    assert kept.history.measurements[-1].values["cka/features/net.0"] < 1
