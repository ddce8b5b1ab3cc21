import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sim.choosing import refusal
from lightning_sim.measures import MEASURES, Pairs, Side
from lightning_sim.probe import Probe, Snapshot
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.sketch import Sketch
from tests.callbacks.training import random_states

SAMPLES, CLASSES = 11, 3
FISHER_MEASURES = ("fisher_rao_norm", "fisher_rao_distance", "task2vec")


class FisherMeasures:
    """The three of them on one probe."""

    def __init__(self, runner, names):
        self.runner = runner
        self.measures = [MEASURES[name] for name in names]

    def problems(self, network, other):
        sides = Side(Snapshot(), self.runner, network), Side(Snapshot(), self.runner, other)
        reasons = {measure.name: refusal(measure, *sides, Pairs({})) for measure in self.measures}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def complete(self, snapshot, network, weights=None):
        for measure in self.measures:
            Side(snapshot, self.runner, network, weights).kept(measure)

    def measure(self, network, current, other, reference):
        found = {}
        for measure in self.measures:
            values = measure.compare(
                Side(current, self.runner, network), Side(reference, self.runner, other), Pairs({})
            )
            assert not values.problems
            assert list(values.numbers) == measure.keys(Pairs({}))
            found |= {key.name: value for key, value in values.numbers.items()}
        return found


class Notes(Dataset):
    """Samples as dictionaries, with words that no network can be given as a tensor."""

    def __init__(self):
        self.tokens = torch.randn(SAMPLES, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "name": f"sample {index}"}


class Reader(nn.Module):
    """Attention, an encoder layer and a recurrent one, which torch runs fused where it may; tied and frozen weights."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.head, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.head.weight
        self.out = nn.Linear(6, CLASSES)
        self.out.bias.requires_grad_(False)
        self.norm.running_mean.normal_()
        self.double()

    def forward(self, tokens, name):
        assert all(word.startswith("sample") for word in name)
        x = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        x = self.recurrent(self.encoder(x))[0][:, -1]
        return {"loss": x.sum(), "logits": self.out(self.again(self.head(self.norm(x))))}


def measures(*names, forward=lambda network, batch: network(**batch), dataset=None, batch_size=4):
    dataset = Notes() if dataset is None else dataset
    probe = Probe(DataLoader(dataset, batch_size=batch_size), SAMPLES)
    return FisherMeasures(ProbeRunner(probe, Sketch, forward=forward), names or FISHER_MEASURES)


def scores(network):
    """Probability and gradient of the log-probability (parameters,) of every sample and class, one by one."""
    network = copy.deepcopy(network).eval().requires_grad_(True)
    parameters, found = list(network.parameters()), []
    for index in range(SAMPLES):
        sample = Notes()[index]
        logits = network(sample["tokens"][None], [sample["name"]])["logits"]
        for log_probability in logits.log_softmax(1)[0]:
            gradients = torch.autograd.grad(log_probability, parameters, retain_graph=True)
            score = torch.cat([gradient.flatten() for gradient in gradients])
            found.append((float(log_probability.detach().exp()), score))
    return found


def length(network, direction):
    return sum(p * float(direction @ score) ** 2 for p, score in scores(network)) / SAMPLES


def task_vector(network):
    diagonal = sum(p * score**2 for p, score in scores(network)) / SAMPLES
    values = list(network.parameters())
    parts = zip(values, diagonal.split([value.numel() for value in values]), strict=True)
    return torch.cat([part.reshape(len(value), -1).mean(1) if value.ndim > 1 else part for value, part in parts])


def flat(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def cosine(a, b):
    kept = (a + b) > 1e-25  # attention does not depend on the bias of its keys
    x, y = (a / (a + b))[kept], (b / (a + b))[kept]
    return float(x @ y / x.norm() / y.norm())


@pytest.mark.parametrize("as_module", [True, False])
def test_all_are_those_of_the_definition(as_module):
    network, start = Reader(), Reader(seed=1)
    fisher, current, reference = measures(), Snapshot(), Snapshot()
    if as_module:
        other, weights = start, None
    else:
        # What lies in a checkpoint: all names, those of tied weights too.
        other, weights = network, start.state_dict()
    assert fisher.problems(network, other) == {}
    fisher.complete(reference, other, weights)
    values = fisher.measure(network, current, other, Snapshot.from_state_dict(reference.state_dict()))
    difference = flat(network) - flat(start)
    expected = {
        "fisher_rao_norm": length(network, flat(network)) ** 0.5,
        "fisher_rao_distance": ((length(network, difference) + length(start, difference)) / 2) ** 0.5,
        "task2vec": cosine(task_vector(network), task_vector(start)),
    }
    assert values == pytest.approx(expected, rel=1e-8)
    assert torch.allclose(current.kept["task2vec"]["vector"], task_vector(network), rtol=1e-8, atol=1e-14)


def test_batches_do_not_matter():
    network, start = Reader(), Reader(seed=1)
    found = []
    for batch_size in (2, 11):
        fisher, reference = measures(batch_size=batch_size), Snapshot()
        fisher.complete(reference, start)
        found.append(fisher.measure(network, Snapshot(), start, reference))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def test_a_network_is_no_distance_from_itself():
    network, fisher, reference = Reader(), measures("fisher_rao_distance", "task2vec"), Snapshot()
    fisher.complete(reference, network)
    values = fisher.measure(network, Snapshot(), network, reference)
    assert values == {"fisher_rao_distance": 0, "task2vec": pytest.approx(1)}


def test_no_trace_is_left():
    network, fisher, reference = Reader(), measures(), Snapshot()
    network.norm.eval()
    flags = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {name: value.data_ptr() for name, value in network.state_dict().items()}
    states, fused = random_states(), torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        fisher.complete(reference, network)
        fisher.measure(network, Snapshot(), network, reference)
        assert fisher.problems(network, network) == {}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == tensors
    assert [module.training for module in network.modules()] == flags
    assert all(value.grad is None for value in network.parameters())
    assert [name for name, value in network.named_parameters() if not value.requires_grad] == ["out.bias"]
    assert random_states() == states
    assert torch.backends.mha.get_fastpath_enabled() is fused
    assert torch.backends.mkldnn.enabled


class CubedOneByOne(torch.autograd.Function):
    """Its backward pass looks at values, as no batched one can."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        assert gradient.sum().item() == gradient.sum().item()
        return 3 * ctx.saved_tensors[0] ** 2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_runs_layers_again_with_the_weights_of_the_reference(frozen):
    class Plain(nn.Sequential):
        def __init__(self, seed):
            torch.manual_seed(seed)
            super().__init__(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))
            self.double().requires_grad_(not frozen)

        def forward(self, x):
            return self[2](self.inner(x))

        def inner(self, x):
            return self[1](self[0](x))

    class Checkpointed(Plain):
        def inner(self, x):
            return checkpoint(super().inner, x, use_reentrant=False)

    x = torch.randn(SAMPLES, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    runner = ProbeRunner(Probe(TensorDataset(x), SAMPLES), Sketch)
    found = []
    for kind in (Plain, Checkpointed):
        network, kept = kind(1), Snapshot()
        FisherMeasures(runner, ["task2vec"]).complete(kept, network, kind(2).state_dict())
        found.append(kept.kept["task2vec"]["vector"])
    torch.testing.assert_close(*found)


def test_backward_passes_that_cannot_be_batched_are_made_one_by_one():
    class Cubed(nn.Linear):
        def forward(self, x):
            return self.power(super().forward(x))

    torch.manual_seed(0)
    dataset = torch.utils.data.TensorDataset(torch.randn(SAMPLES, 4, dtype=torch.float64))
    vectors = []
    for power in (CubedOneByOne.apply, lambda x: x**3):
        network, snapshot = Cubed(4, CLASSES).double(), Snapshot()
        nn.init.ones_(network.weight[1])
        network.load_state_dict(vectors[0][1] if vectors else network.state_dict())
        network.power = power
        measures("task2vec", dataset=dataset, forward=lambda n, batch: n(batch[0])).complete(snapshot, network)
        vectors.append((snapshot.kept["task2vec"]["vector"], network.state_dict()))
    assert vectors[0][0].any()
    assert torch.allclose(vectors[0][0], vectors[1][0], rtol=1e-12)


def test_masked_classes_do_not_count():
    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([3]), -torch.inf)

    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 4, dtype=torch.float64)
    dataset = torch.utils.data.TensorDataset(x)
    network, plain = Masked(4, 4).double(), nn.Linear(4, 3).double()
    plain.load_state_dict({name: value[:3] for name, value in network.state_dict().items()})
    found = []
    for tried in (network, plain):
        fisher = measures("fisher_rao_norm", "task2vec", dataset=dataset, forward=lambda n, batch: n(batch[0]))
        snapshot = Snapshot()
        fisher.complete(snapshot, tried)
        values = fisher.measure(tried, snapshot, tried, snapshot)
        found.append((values["fisher_rao_norm"], snapshot.kept["task2vec"]["vector"][[0, 1, 2]].tolist()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-10)


class Frozen(Reader):
    def forward(self, tokens, name):
        with torch.no_grad():
            return super().forward(tokens, name)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda network, batch: network(**batch)["logits"][:, :1], r"shape \(4, 1\)"),
        (lambda network, batch: network(**batch)["logits"][:, :, None], r"shape \(4, 3, 1\)"),
        (lambda network, batch: network(**batch)["logits"].repeat(2, 1), r"for 4 samples is of shape \(8, 3\)"),
        (lambda network, batch: network(**batch)["logits"].argmax(1), "int64"),
        (lambda network, batch: "words", "holds no logits, it is of type str"),
    ],
)
def test_outputs_that_are_no_logits_are_named(forward, reason):
    network = Reader()
    problems = measures("fisher_rao_norm", forward=forward).problems(network, network)
    assert list(problems) == ["fisher_rao_norm"]
    assert re.search(reason, problems["fisher_rao_norm"])


def test_what_cannot_be_differentiated_or_compared_is_named():
    network, fisher = Frozen(), measures()
    assert "does not require grad" in fisher.problems(network, network)["task2vec"]
    other = Reader()
    other.out = nn.Linear(6, 4).double()
    problems = fisher.problems(Reader(), other)
    assert list(problems) == ["fisher_rao_distance", "task2vec"]
    assert "these differ: out.bias, out.weight" in problems["task2vec"]
