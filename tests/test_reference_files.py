"""References from files as people have them: a part of the network, wrapped, adapted, sharded, with another head."""

import json
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import Reference, SimilarityMonitor
from tests.sketch import exact

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, (INPUTS.sum(1) > 0).long())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc2(self.fc1(x).relu())


class Encoder(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.stem, self.blocks = nn.Linear(6, 8), nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Classifier(LightningModule):
    def __init__(self, classes=3, depth=3):
        super().__init__()
        self.encoder, self.head = Encoder(depth), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, under the names that PEFT gives."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Wrapper(nn.Module):
    """Puts its name in front of those of another network."""

    def __init__(self, name, network):
        super().__init__()
        self.add_module(name, network)

    def forward(self, x):
        return next(self.children())(x)


class AdaptedClassifier(Classifier):
    """As PEFT leaves a network: wrapped twice, with additions that are not zero."""

    def __init__(self):
        super().__init__()
        for block in self.encoder.blocks:
            block.fc1 = Adapted(block.fc1)
        self.encoder = Wrapper("base_model", Wrapper("model", self.encoder))


def written(state, path, **containers):
    torch.save({**containers, "state_dict": state} if containers else state, path)
    return path


def fitted(network, **settings):
    """The monitor after an epoch, and what it said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = SimilarityMonitor(**settings)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[monitor], **quiet)
        trainer.fit(network, DataLoader(DATA, 16))
    return monitor, [str(item.message) for item in caught if str(item.message).startswith("lightning_sim")]


def trajectory(monitor, layer):
    return monitor.history.trajectory("cka", layer=layer).values[-1]


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("front", ["", "encoder.", "bert.", "model.bert.", "module._orig_mod.", "base_model.model."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", None])
def test_names_and_containers_in_which_weights_are_found(tmp_path, front, key):
    source = Encoder()
    state = {front + name: value for name, value in source.state_dict().items()}
    torch.save(state if key is None else {"epoch": 3, "optimizer": {"state": {}}, key: state}, tmp_path / "weights.pt")
    weights = Reference(tmp_path / "weights.pt").weights_for(Wrapper("trunk", Wrapper("encoder", Encoder())))
    assert weights.is_whole
    for name, value in source.state_dict().items():
        assert torch.equal(weights[f"trunk.encoder.{name}"], value)


def test_two_state_dicts_in_a_file_or_two_fitting_parts_are_refused(tmp_path):
    a, b = Encoder().state_dict(), Encoder().state_dict()
    torch.save({"generator": a, "discriminator": b}, tmp_path / "pair.pt")
    with pytest.raises(ValueError, match="several state dicts, generator, discriminator; save the one"):
        Reference(tmp_path / "pair.pt").weights_for(Encoder())
    both = {
        f"{part}.{name}": value for part, state in (("student", a), ("teacher", b)) for name, value in state.items()
    }
    with pytest.raises(ValueError, match="its parts student, teacher fit alike"):
        Reference(written(both, tmp_path / "both.pt")).weights_for(Encoder())


def test_one_file_serves_all_parts_that_it_fits(tmp_path):
    source = Encoder().state_dict()
    network = nn.ModuleDict({"question": Encoder(), "answer": Wrapper("model", Encoder())})
    weights = Reference(written(source, tmp_path / "a.pt")).weights_for(network)
    assert torch.equal(weights["question.stem.weight"], source["stem.weight"])
    assert torch.equal(weights["answer.model.stem.weight"], source["stem.weight"])


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "sharded bin"])
def test_folders_as_hugging_face_saves_them(tmp_path, kind):
    state = Encoder().state_dict()
    (tmp_path / "config.json").write_text("{}")
    suffix, write = (".safetensors", save_file) if "bin" not in kind else (".bin", torch.save)
    name = f"{'model' if 'bin' not in kind else 'pytorch_model'}"
    if "sharded" in kind:
        names = list(state)
        parts = {f"{name}-0000{i}-of-00002{suffix}": names[i - 1 :: 2] for i in (1, 2)}
        for part, held in parts.items():
            write({key: state[key] for key in held}, tmp_path / part)
        index = {"weight_map": {key: part for part, held in parts.items() for key in held}}
        (tmp_path / f"{name}{suffix}.index.json").write_text(json.dumps(index))
    else:
        write(state, tmp_path / f"{name}{suffix}")
    reference = Reference(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in reference.weights_for(Encoder()).items())
    described = reference.describe()
    assert described["kind"] == "checkpoint"
    changed = next(path for path in tmp_path.iterdir() if path.suffix == suffix)
    write({"other": torch.ones(1)}, changed)
    assert Reference(tmp_path).describe()["sha256"] != described["sha256"]


def test_folders_that_do_not_hold_the_weights_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"folder of an adapter.*merge_and_unload"):
        Reference(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"names elsewhere\.safetensors, which is not there"):
        Reference(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="not a readable index"):
        Reference(tmp_path)
    with pytest.raises(ValueError, match=r"nor a folder\. .*snapshot_download"):
        Reference("sentence-transformers/all-MiniLM-L6-v2")


def test_a_tied_weight_that_the_file_leaves_out_is_found(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

    source = Tied().state_dict()
    del source["head.weight"]
    weights = Reference(written(source, tmp_path / "tied.pt")).weights_for(Tied())
    assert weights.is_whole
    assert torch.equal(weights["head.weight"], source["embedding.weight"])


@pytest.mark.parametrize("case", ["no head", "another head", "deeper", "more"])
def test_a_head_that_the_file_lacks_is_skipped_with_one_notice(tmp_path, case):
    source = Classifier(5)
    state = source.state_dict()
    if case == "no head":
        state = source.encoder.state_dict()
    if case == "deeper":
        source = Classifier(3, depth=5)
        state = source.state_dict()
    if case == "more":  # which the network has no place for, and which comes last
        source = Classifier(3)
        state = {**source.state_dict(), "pooler.weight": torch.zeros(8, 8)}
    network = Classifier(3)
    layers = ["encoder.stem", "encoder.blocks.*", "h*"]
    monitor, said = fitted(network, reference=written(state, tmp_path / "a.pt"), layers=layers)
    assert len(said) == 1
    about = {
        "no head": "head, outputs (depends on head.weight, head.bias",
        "another head": "(5, 8) for (3, 8)",
        "deeper": "outputs (may depend on encoder.blocks.3",
        "more": "outputs (may depend on pooler",
    }
    assert about[case] in said[0]
    assert not {"agreement", "jsd", "rank_correlation"}.intersection(monitor.history.measurements[-1].values)
    assert ("head" in monitor.history.layers) == (case == "more")
    with torch.no_grad():
        mine, theirs = (net.encoder.blocks[0](net.encoder.stem(INPUTS)) for net in (network, source))
    assert trajectory(monitor, "encoder.blocks.0") == pytest.approx(exact.cka_unbiased(mine, theirs), abs=1e-5)
    left_out = monitor.history.metadata["left_out"]
    assert "agreement" in left_out["measures"]
    assert ("head" in left_out["layers"]) == (case != "more")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": "head"}, r"cannot be measured: head \(depends on head.weight"),
        ({"measures": ["cka", "jsd"]}, r"do not apply: jsd \(the output of the reference depends on head.weight"),
        ({"measures": "fisher_rao_distance"}, "does not hold all of the network's parameters"),
        ({"representations": "gradients"}, "gradients need the whole reference"),
        ({"representations": "gradients", "loss": lambda output, batch: output.sum(1)}, "gradients need the whole"),
    ],
)
def test_what_needs_the_missing_head_is_refused_where_it_is_asked_for(tmp_path, settings, said):
    path = written(Encoder().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=said):
        fitted(Classifier(), reference=path, **settings)


def test_frozen_parts_and_functional_uses_of_weights_are_seen(tmp_path):
    """What a layer depends on is found without derivatives, and also where a module's weight is used without it."""

    class Sly(Classifier):
        def forward(self, x):
            with torch.no_grad():
                x = nn.functional.linear(self.encoder.stem(x), self.encoder.blocks[0].fc1.weight)
            return self.head(x)

    state = {name: value for name, value in Classifier().state_dict().items() if "blocks.0.fc1" not in name}
    monitor, said = fitted(Sly(), reference=written(state, tmp_path / "a.pt"), layers=["encoder.stem", "h*"])
    assert monitor.history.layers == ["encoder.stem"]
    assert "head, outputs (depends on encoder.blocks.0.fc1.weight" in said[0]


def test_a_network_with_adapters_runs_without_them_as_the_file(tmp_path):
    source, network = Classifier(), AdaptedClassifier()
    before = dict(network.encoder.base_model.model.blocks[0].fc1.__dict__)
    monitor, said = fitted(network, reference=written(source.state_dict(), tmp_path / "a.pt"))
    assert said == []
    layers = monitor.history.layers
    assert "encoder.base_model.model.blocks.0.fc1" in layers  # the adapted layer stands for what it is made of
    assert not any("lora" in layer or "base_layer" in layer for layer in layers)
    with torch.no_grad():
        mine, theirs = network.encoder.base_model.model(INPUTS), source.encoder(INPUTS)
        logits = network.head(mine), source.head(theirs)
    agreement = (logits[0].argmax(1) == logits[1].argmax(1)).float().mean()
    assert monitor.history.trajectory("agreement").values[-1] == pytest.approx(float(agreement))
    assert trajectory(monitor, "head") == pytest.approx(exact.cka_unbiased(*logits), abs=1e-5)
    assert network.encoder.base_model.model.blocks[0].fc1.__dict__.keys() == before.keys()


def test_adapters_of_the_file_are_not_left_out_silently(tmp_path):
    state = AdaptedClassifier().state_dict()
    monitor, said = fitted(Classifier(), reference=written(state, tmp_path / "a.pt"))
    assert monitor.history.layers == ["encoder.stem"]
    assert "which the network has no place for" in said[0] or "may depend on" in said[0]
    assert "lora_A" in said[0]


def test_a_module_of_the_plain_network_is_a_reference_of_the_adapted_one():
    source, network = Encoder(), AdaptedClassifier()
    monitor, said = fitted(network, reference=source)
    assert monitor.history.metadata["layers"]["encoder.base_model.model.blocks.1.fc1"] == "blocks.1.fc1"
    assert len(said) == 1
    assert "head (has no counterpart in the reference)" in said[0]


def test_a_file_of_another_architecture_is_refused_in_few_words(tmp_path):
    state = nn.Sequential(*[nn.Linear(11, 11) for _ in range(300)]).state_dict()
    with pytest.raises(ValueError, match=r"does not fit Classifier: missing encoder\.stem\.weight") as refused:
        fitted(Classifier(), reference=written(state, tmp_path / "a.pt"))
    message = str(refused.value)
    assert len(message) < 1000
    assert "nearest to encoder.stem.weight in the file: " in message
    assert all(way in message for way in ("as an nn.Module", "torch.save(network.state_dict()", "layers=[...]"))


def test_first_names_of_layer_norm_in_files_of_bert(tmp_path):
    network = nn.ModuleDict({"dense": nn.Linear(4, 4), "LayerNorm": nn.LayerNorm(4)})
    state = {"bert.dense.weight": torch.ones(4, 4), "bert.dense.bias": torch.ones(4),
             "bert.LayerNorm.gamma": torch.full((4,), 2.0), "bert.LayerNorm.beta": torch.full((4,), 3.0)}  # fmt: skip
    weights = Reference(written(state, tmp_path / "a.pt")).weights_for(network)
    assert weights["LayerNorm.weight"].tolist() == [2] * 4
    assert weights["LayerNorm.bias"].tolist() == [3] * 4


def test_counters_that_old_files_lack_do_not_matter(tmp_path):
    state = {name: value for name, value in nn.BatchNorm1d(4).state_dict().items() if "num_batches" not in name}
    weights = Reference(written(state, tmp_path / "a.pt")).weights_for(nn.BatchNorm1d(4))
    assert weights.is_whole
    assert "num_batches_tracked" not in weights
