"""What is measured where nobody named it, and that it is said once and stands in the record."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.functional import centered_kernel_alignment
from tests.callbacks.test_transformers import Classifier, Sentences
from tests.callbacks.training import DigitsNet, digits, features, fit, new_network


class Plain(DigitsNet):
    """Other names and another depth."""

    def __init__(self):
        super().__init__()
        widths = [64, 32, 24, 16, 16, 10]
        layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths)]
        self.net, self.trunk = nn.ModuleDict({"4": nn.Identity()}), nn.ModuleDict(zip("abcde", layers, strict=True))

    def forward(self, images):
        x = images.flatten(1)
        for layer in self.trunk.values():
            x = layer(x)
        return x


class Numbered(DigitsNet):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(10, 10) for _ in range(12))

    def forward(self, images):
        x = self.net(images)
        for block in self.blocks:
            x = block(x)
        return x


def notices(monitor, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, network = fit([monitor], **options)
    return trainer, network, [str(w.message) for w in caught if str(w.message).startswith("lightning_sim")]


def resumed(tmp_path, **settings):
    """The history of a training that was stopped after one epoch and resumed."""
    trainer, _, _ = notices(SimilarityMonitor(**settings), network=new_network(), epochs=1, root=tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = SimilarityMonitor(**settings)
    notices(monitor, network=new_network(), epochs=2, root=tmp_path, ckpt_path=tmp_path / "last.ckpt")
    return monitor.history


def test_layers_paired_by_depth_are_named_in_a_notice_and_in_the_record(tmp_path):
    torch.manual_seed(0)
    monitor = SimilarityMonitor(Plain(), measures=("cka",))
    _, _, said = notices(monitor, root=tmp_path, epochs=1)
    assert len(said) == 1
    assert "paired by relative depth: net.0 with trunk.a.0, net.3 with trunk.c.0, net.8 with trunk.e.0" in said[0]
    metadata = read_history(monitor.directory).metadata
    assert metadata["pairing"] == "depth"
    assert metadata["layers"] == {"net.0": "trunk.a.0", "net.3": "trunk.c.0", "net.8": "trunk.e.0"}


def test_layers_are_matched_by_their_similarity_at_the_start(tmp_path):
    torch.manual_seed(0)
    reference, probe = Plain(), digits(300, 420)
    names = ["net.0", "net.3", "net.8"], [f"trunk.{letter}.0" for letter in "abcde"]
    mine = [features(new_network(), name, probe) for name in names[0]]
    theirs = [features(reference, name, probe) for name in names[1]]
    values = np.array([[float(centered_kernel_alignment(x, y)) for y in theirs] for x in mine])
    best = max(
        ((i, j, k) for i in range(5) for j in range(i + 1, 5) for k in range(j + 1, 5)),
        key=lambda match: values[range(3), match].sum(),
    )
    monitor = SimilarityMonitor(reference, layers="match", measures=("cka",), num_projections=2048)
    notices(monitor, root=tmp_path, epochs=1)
    assert monitor.history.metadata["pairing"] == "match"
    assert list(monitor.history.metadata["layers"].values()) == [names[1][place] for place in best]


def test_a_resumed_training_keeps_the_match(tmp_path):
    torch.manual_seed(0)
    history = resumed(tmp_path, reference=Plain(), layers="match", measures=("cka",))
    assert history.epochs == [0, 1]


class ZeroHead(DigitsNet):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.net[8].weight)


@pytest.mark.parametrize("layers", ["auto", ["net.0", "*.8"]])
def test_constant_layers_are_left_out_also_after_resuming(tmp_path, layers):
    settings = {"layers": layers, "measures": ("cka",)}
    trainer, _, said = notices(SimilarityMonitor(**settings), network=ZeroHead(), epochs=1, root=tmp_path)
    assert len(said) == 1
    assert "not measured: net.8 (is constant over the samples in the reference)" in said[0]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = SimilarityMonitor(**settings)
    notices(monitor, network=ZeroHead(), epochs=2, root=tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert monitor.history.epochs == [0, 1]  # though the resumed network's layer is constant no more
    assert "net.8" not in monitor.history.layers


def test_a_named_constant_layer_is_measured_as_asked(tmp_path):
    monitor = SimilarityMonitor(layers=["net.0", "net.8"], measures=("nbs",))
    with pytest.warns(UserWarning, match=r"net.8 is constant"):
        fit([monitor], network=ZeroHead(), epochs=1, root=tmp_path)
    assert monitor.history.layers == ["net.0", "net.8"]


def test_a_glob_that_has_room_for_one_digit_says_so(tmp_path):
    monitor = SimilarityMonitor(layers="blocks.?", measures=("cka",))
    _, _, said = notices(monitor, network=Numbered(), epochs=1, root=tmp_path)
    assert len(said) == 1
    assert "'blocks.?'" in said[0]
    assert "leaves out blocks.10, blocks.11" in said[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_embeddings_that_tell_no_sentence_from_another_are_left_out(tmp_path):
    class Quiet(Classifier):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(Sentences(32), batch_size=16)

    monitor = SimilarityMonitor(probe=Sentences(40), measures=("cka",))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, callbacks=[monitor], default_root_dir=str(tmp_path), accelerator="cpu", **quiet)
    with pytest.warns(UserWarning, match="lightning_sim") as caught:
        trainer.fit(Quiet())
    said = [str(w.message) for w in caught if str(w.message).startswith("lightning_sim")]
    assert len(said) == 1
    assert "position_embeddings (returned shape (1, 12, 16)" in said[0]
    # With padding at zero it would read 1 for ever: the length of a sentence.
    assert "token_type_embeddings (is constant over the samples in the reference)" in said[0]
    assert "model.bert.embeddings.word_embeddings" in monitor.history.layers
