"""Gradients with respect to what layers give, against a backward pass of our own for every sample and class."""

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.utils.checkpoint import checkpoint

from lightning_sim.probe import call_network, take_snapshot
from lightning_sim.probe.capture import first_tensor, replace_first_tensor
from lightning_sim.probe.gradients import expected_loss, total_loss
from lightning_sim.sketch import Sketch

SAMPLES = 24


class Convolutional(nn.Module):
    """A normalisation, an activation in place, dropout, and a layer that the logits do not depend on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.dense = nn.Linear(108, 6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.other = nn.Linear(6, 2)
        self.eval()

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.dense(x.flatten(1)))
        self.other(x)
        return self.head(self.drop(x))


class Reused(nn.Module):
    """One layer twice, and one that returns a tuple."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.memory, self.head = nn.Linear(5, 5), nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x):
        x = self.dense(torch.tanh(self.dense(x)))
        return self.head(self.memory(x[:, None])[0][:, 0])


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.use_reentrant = use_reentrant
        self.first, self.block, self.head = nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant))


def images():
    return torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def vectors():
    return torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))


def run(network, x, layers, *, batch_size=10, labels=None, **options):
    ids = torch.arange(len(x)).split(batch_size)
    batches = ((part, x[part] if labels is None else (x[part], labels[part])) for part in ids)
    return take_snapshot(
        network,
        batches,
        layers,
        forward=call_network,
        make_sketch=lambda: Sketch(num_buckets=32, num_projections=4096, dtype=torch.float64),
        **{"representations": ("gradients",)} | options,
    )


def sketched_rows(sketch):
    """What was added to a sketch for every sample: without collisions, the buckets hold them but for their signs."""
    from lightning_sim.sketch.hashing import sample_buckets, sample_signs

    ids = torch.arange(sketch.count)
    rows = sketch.sums()[0][0][sample_buckets(ids, sketch.num_buckets)]
    return rows * sample_signs(ids, sketch.seed)[:, None]


def by_looping(network, x, layer, losses_of):
    """Gradient of the loss of every sample by itself, with respect to the output of `layer`, by our own hook."""
    network = copy.deepcopy(network).requires_grad_()
    rows = []
    for i in range(len(x)):
        outputs = []

        def keep(module, arguments, output, outputs=outputs):
            outputs.append(first_tensor(output))
            return replace_first_tensor(output, outputs[-1].clone())

        name, _, use = layer.partition("[")
        handle = network.get_submodule(name).register_forward_hook(keep)
        output = network(x[i : i + 1])
        handle.remove()
        captured = outputs[int(use.rstrip("]") or 0)]
        row = 0
        for weight, loss in losses_of(output[0], i):
            row = row + weight * torch.autograd.grad(loss, captured, retain_graph=True)[0]
        rows.append(row.flatten())
    return torch.stack(rows).double()


def expected(beta):
    def losses_of(logits, i):
        with torch.no_grad():
            q = softmax(logits.double(), 0) ** beta
            q = q / q.sum()
        return [(float(q[y]), -log_softmax(logits, 0)[y]) for y in range(len(logits))]

    return losses_of


@pytest.mark.parametrize("beta", [0.5, 0.0, 2.0])
def test_gradients_are_the_expectation_over_the_classes(beta):
    network, x = Convolutional(), images()
    layers = ["conv", "norm", "dense", "head"]
    snapshot = run(network, x, layers, objective=expected_loss(beta))
    for layer in layers:
        rows = sketched_rows(snapshot.of("gradients")[layer])
        truth = by_looping(network, x, layer, expected(beta))
        assert truth.abs().max() > 1e-3
        assert torch.allclose(rows, truth, rtol=0, atol=1e-5 * float(truth.abs().max())), layer


def test_reused_layers_and_tuples():
    network, x = Reused(), vectors()
    snapshot = run(network, x, ["dense", "memory"])
    assert set(snapshot.of("gradients")) == {"dense", "dense[1]", "memory"}
    for layer, sketch in snapshot.of("gradients").items():
        truth = by_looping(network, x, layer, expected(0.5))
        assert torch.allclose(sketched_rows(sketch), truth, rtol=0, atol=1e-5 * float(truth.abs().max())), layer


def test_a_loss_of_ones_own():
    network, x = Convolutional(), images()
    labels = torch.arange(SAMPLES) % 4

    def loss(output, batch):
        return cross_entropy(output, batch[1], reduction="none")

    snapshot = run(network, x, ["dense"], labels=labels, objective=total_loss(loss))
    truth = by_looping(network, x, "dense", lambda logits, i: [(1, cross_entropy(logits, labels[i]))])
    assert torch.allclose(sketched_rows(snapshot.of("gradients")["dense"]), truth, rtol=0, atol=1e-6)


def test_all_representations_come_from_one_pass():
    network, x = Convolutional(), images()
    names = ("features", "gradients", "features*gradients", "features+gradients", "elementwise")
    snapshot = run(network, x, ["dense"], representations=names)
    rows = {name: sketched_rows(snapshot.of(name)["dense"]) for name in names}
    f, g = rows["features"], rows["gradients"]
    assert torch.allclose(f, network.dense(network.norm(network.conv(x)).relu().flatten(1)).double(), atol=1e-5)
    assert torch.allclose(rows["features*gradients"] @ rows["features*gradients"].T, (f @ f.T) * (g @ g.T))
    assert torch.allclose(rows["features+gradients"] @ rows["features+gradients"].T, f @ f.T + g @ g.T)
    assert torch.allclose(rows["elementwise"], f * g, atol=1e-7)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_frozen_or_not_and_wherever_called_from(frozen, mode):
    network, x = Convolutional().requires_grad_(not frozen), images()
    before = copy.deepcopy(network.state_dict())
    with mode():
        snapshot = run(network, x, ["conv", "dense"])
    truth = by_looping(network, x, "conv", expected(0.5))
    assert torch.allclose(sketched_rows(snapshot.of("gradients")["conv"]), truth, rtol=0, atol=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(value.requires_grad for sketch in snapshot.of("gradients").values() for value in sketch.sums())


def test_with_other_weights_than_its_own():
    network, other, x = Convolutional(), Convolutional(), images()
    with torch.no_grad():
        for value in other.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    snapshot = run(network, x, ["conv"], weights=other.state_dict())
    truth = by_looping(other, x, "conv", expected(0.5))
    assert torch.allclose(sketched_rows(snapshot.of("gradients")["conv"]), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_runs_layers_again_without_counting_them(frozen):
    network, x = Checkpointed(use_reentrant=False).requires_grad_(not frozen), vectors()
    layers = ["first", "block.0", "block.1", "head"]
    snapshot = run(network, x, layers)
    assert list(snapshot.of("gradients")) == layers
    for layer in layers:
        truth = by_looping(network, x, layer, expected(0.5))
        assert torch.allclose(sketched_rows(snapshot.of("gradients")[layer]), truth, rtol=0, atol=1e-5), layer


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_runs_layers_again_with_the_weights_that_were_given(frozen):
    network, other = (Checkpointed(use_reentrant=False).requires_grad_(not frozen) for _ in range(2))
    for value in other.parameters():
        nn.init.normal_(value, generator=torch.Generator().manual_seed(7))
    before = {name: (id(value), value.detach().clone()) for name, value in network.named_parameters()}
    layers = ["first", "block.0", "block.1", "head"]
    snapshot = run(network, vectors(), layers, weights=other.state_dict())
    for layer in layers:
        truth = by_looping(other, vectors(), layer, expected(0.5))
        assert torch.allclose(sketched_rows(snapshot.of("gradients")[layer]), truth, rtol=0, atol=1e-5), layer
    for name, value in network.named_parameters():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(ValueError, match="use_reentrant=False"):
        run(Checkpointed(use_reentrant=True), vectors(), ["first"])


def test_layers_that_the_loss_does_not_depend_on_are_named():
    snapshot = run(Convolutional(), images(), ["other", "dense"], representations=("features", "gradients"))
    assert set(snapshot.of("features")) == {"other", "dense"}
    assert set(snapshot.of("gradients")) == {"dense"}
    assert "gradients that cannot be computed: the loss does not depend" in snapshot.problem_of("other", "gradients")
    assert snapshot.problem_of("other") is None


def test_batches_do_not_matter():
    snapshots = [run(Convolutional(), images(), ["conv"], batch_size=size) for size in (1, 24)]
    rows = [sketched_rows(snapshot.of("gradients")["conv"]) for snapshot in snapshots]
    assert torch.allclose(*rows, rtol=0, atol=1e-6)


def test_impossible_logits_have_gradients_all_the_same():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([1]), -torch.inf)

    torch.manual_seed(0)
    masked = Masked(nn.Linear(3, 4), nn.Linear(4, 3))
    torch.manual_seed(0)
    two = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    with torch.no_grad():
        weight, bias = two[1].weight[[0, 2]], two[1].bias[[0, 2]]
        two[1] = nn.Linear(4, 2)
        two[1].weight.copy_(weight)
        two[1].bias.copy_(bias)
    rows = [sketched_rows(run(network, x, ["0"]).of("gradients")["0"]) for network in (masked, two)]
    assert torch.allclose(*rows, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2))), r"shape \(10, 2, 2\)"),
        (nn.Sequential(nn.Linear(5, 1)), r"shape \(10, 1\)"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(network, problem):
    with pytest.raises(ValueError, match=problem):
        run(network, vectors(), ["0"])


def test_losses_that_are_not_one_for_every_sample_are_refused():
    with pytest.raises(ValueError, match=r"\(samples,\), got shape \(\)"):
        run(Reused(), vectors(), ["dense"], objective=total_loss(lambda output, batch: output.mean()))


@pytest.mark.parametrize("beta", [1, -0.5, float("nan")])
def test_a_beta_without_gradients_is_refused(beta):
    with pytest.raises(ValueError, match="`beta`"):
        expected_loss(beta)


@dataclass(frozen=True)
class Output:
    loss: None
    logits: torch.Tensor


Pair = namedtuple("Pair", ["hidden", "other"])


def test_replacing_leaves_the_rest_and_the_original():
    x, new = torch.ones(2), torch.zeros(2)
    for output in (x, (None, [x]), {"a": {"b": x}, "c": 3}, Output(None, x), Pair((x, 1), 0)):
        replaced = replace_first_tensor(output, new)
        assert first_tensor(replaced) is new
        assert first_tensor(output) is x
        assert type(replaced) is type(output)
    assert replace_first_tensor(Pair((x, 1), 0), new).hidden[1] == 1


class ChangingItsMind(nn.Module):
    """Changes what its layer gives in place in one batch only."""

    def __init__(self, batch):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.batch, self.calls = nn.Linear(5, 6), nn.Linear(6, 4), batch, 0

    def forward(self, x):
        self.calls += 1
        x = self.first(x)
        return self.head(x.relu_() if self.calls == self.batch + 1 else x.relu())


@pytest.mark.parametrize("batch", [0, 1])
def test_a_change_in_place_that_comes_later_is_noticed(batch):
    snapshot = run(ChangingItsMind(batch), vectors(), ["first", "head"])
    if batch == 0:  # copies are handed on until a forward has shown that they are not needed
        truth = by_looping(ChangingItsMind(-2), vectors(), "first", expected(0.5))
        assert torch.allclose(sketched_rows(snapshot.of("gradients")["first"]), truth, rtol=0, atol=1e-5)
    else:
        assert snapshot.gradient_problems == {
            "first": "cannot be computed: its output was changed in place in some batches only",
        }
    assert list(snapshot.of("gradients")) == (["first", "head"] if batch == 0 else ["head"])


def test_outputs_that_nothing_changes_are_not_copied_after_the_first_forward():
    network, handed_on = Convolutional(), []
    for layer in (network.norm, network.act, network.dense, network.drop):
        layer.register_forward_pre_hook(lambda module, arguments: handed_on.append(arguments[0]))
    outputs = []
    for layer in (network.conv, network.norm):
        layer.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    run(network, images(), ["conv", "norm"])
    for index in range(3):
        conv, norm = outputs[2 * index : 2 * index + 2]
        normed, activated = handed_on[5 * index], handed_on[5 * index + 1]
        assert (conv is normed) == (index > 0)  # only the normalisation is followed by an activation in place
        assert norm is not activated
