"""Networks stitched together by hand, with plain calls of their parts, and what running them leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sim.functional import LinearMap, stitching_map
from lightning_sim.measures.parties import explained
from lightning_sim.stitching import Stitch, Stitched, StitchingSums, score_stitched
from lightning_sim.stitching.positions import gram_of
from lightning_sim.stitching.scores import tally

from .networks import Convolutional, Dense, Tokens, images, labelled


def drawn(p1: int, p2: int) -> LinearMap:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return LinearMap(draw(p1, p2) / p1**0.5, draw(p2), torch.tensor(0.0))


def test_convolutions_of_different_widths_and_grids() -> None:
    front, back = Convolutional(6, stride=2).eval(), Convolutional(5, seed=1).eval()
    linear, x = drawn(6, 5), images()
    given = Stitched(front, "norm", back, "norm", linear)(x)
    features = front.norm(front.first(x))
    features = F.interpolate(features, (8, 8), mode="bilinear", align_corners=False)
    mapped = F.conv2d(features, linear.weight.T[:, :, None, None], linear.bias)
    expected = back.head(back.second(mapped.relu()).relu().mean((2, 3)))
    torch.testing.assert_close(given, expected)


def test_tokens() -> None:
    front, back = Tokens(8).eval(), Tokens(6, seed=1).eval()
    linear, x = drawn(8, 6), images()
    given = Stitched(front, "blocks.0", back, "blocks.0", linear)(x)
    tokens = front.blocks[0](front.embed(x.movedim(2, 1).flatten(2))) @ linear.weight + linear.bias
    torch.testing.assert_close(given, back.head(back.blocks[1](tokens).mean(1)))


def test_dense_layers_and_uses_of_one_that_runs_twice() -> None:
    front, back = Dense(10).eval(), Dense(7, seed=1).eval()
    linear, x = drawn(10, 7), images()
    given = Stitched(front, "body.2", back, "relu[1]", linear)(x)
    torch.testing.assert_close(given, back.head(front.body[:3](x) @ linear.weight + linear.bias))
    given = Stitched(front, "body.2", back, "relu", linear)(x)
    torch.testing.assert_close(given, back.head((front.body[:3](x) @ linear.weight + linear.bias).relu()))


def test_nothing_is_run_that_is_not_needed() -> None:
    front, back = Convolutional().eval(), Convolutional(seed=1).eval()
    stitched = Stitched(front, "norm", back, "norm", None)
    front.ran.clear(), back.ran.clear()
    stitched(images())
    assert front.ran == ["first", "norm"]
    assert back.ran == ["relu", "second", "relu", "head"]


def test_what_skips_over_the_layer_is_computed() -> None:
    front, back = Convolutional().eval(), Convolutional(seed=1, skip=True).eval()
    linear, x = drawn(6, 6), images()
    given = Stitched(front, "second", back, "second", linear)(x)
    own = back.norm(back.first(x)).relu()
    second = front.second(front.norm(front.first(x)).relu())
    mapped = F.conv2d(second, linear.weight.T[:, :, None, None], linear.bias)
    torch.testing.assert_close(given, back.head((mapped + own).relu().mean((2, 3))))


def test_networks_that_look_at_values_before_the_layer() -> None:
    class Looks(Dense):
        def forward(self, x):
            if x.sum() > 1e9:
                raise AssertionError
            x = x.clone().clamp_(-1, 1)
            return super().forward(x if float(x.norm()) > 0 else -x)

    front, back = Dense().eval(), Looks(seed=1).eval()
    linear, x = drawn(10, 10), images()
    expected = back.head((front.body(x) @ linear.weight + linear.bias).relu().relu())
    torch.testing.assert_close(Stitched(front, "body", back, "body", linear)(x), expected)


def test_both_networks_are_left_as_they_are() -> None:
    front, back = Convolutional(), Convolutional(seed=1)
    front.second.eval()
    back.first.weight.requires_grad_(False)
    networks = (front, back)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    flags = [[module.training for module in network.modules()] for network in networks]
    wanted = [[parameter.requires_grad for parameter in network.parameters()] for network in networks]
    hooks = [len(module._forward_hooks) for network in networks for module in network.modules()]
    random = torch.get_rng_state()
    stitched = Stitched(front, "norm", back, "norm", drawn(6, 6))
    stitched.train()
    stitched(images()).square().sum().backward()
    with pytest.raises(RuntimeError):
        stitched(images()[:, :2])
    for network, state, modes, grads in zip(networks, before, flags, wanted, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert [module.training for module in network.modules()] == modes
        assert [parameter.requires_grad for parameter in network.parameters()] == grads
        assert all(parameter.grad is None for parameter in network.parameters())
    assert [len(module._forward_hooks) for network in networks for module in network.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    own = {"stitch.factors.0", "stitch.bias"}
    assert {name for name, _ in stitched.named_parameters()} == set(stitched.state_dict()) == own
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in stitched.parameters())


def test_gradients_are_those_of_the_parts() -> None:
    front, back = Convolutional().eval(), Convolutional(seed=1).eval()
    linear, x = drawn(6, 6), images()
    stitched = Stitched(front, "norm", back, "norm", linear)
    stitched(x).square().sum().backward()
    weight, bias = linear.weight.clone().requires_grad_(), linear.bias.clone().requires_grad_()
    mapped = F.conv2d(front.norm(front.first(x)).detach(), weight.T[:, :, None, None], bias).relu()
    back.head(back.second(mapped).relu().mean((2, 3))).square().sum().backward()
    torch.testing.assert_close(stitched.stitch.factors[0].grad, weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stitched.stitch.bias.grad, bias.grad, rtol=1e-4, atol=1e-4)


def test_moving_and_casting_reach_both_networks() -> None:
    front, back = Dense(), Dense(seed=1)
    stitched = Stitched(front, "body.1", back, "body.1", drawn(10, 10)).double()
    assert {parameter.dtype for network in (front, back) for parameter in network.parameters()} == {torch.float64}
    assert stitched(images().double()).dtype == torch.float64


def test_a_low_rank_starts_from_the_map_of_that_rank() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = x @ torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    found = stitching_map(x, y, kind="reduced_rank", rank=2)
    stitch = Stitch(found, rank=2)
    assert [tuple(factor.shape) for factor in stitch.factors] == [(6, 2), (2, 5)]
    torch.testing.assert_close(stitch(x), x @ found.weight + found.bias, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_together_is_refused_with_words() -> None:
    convolutional, tokens, dense = Convolutional().eval(), Tokens().eval(), Dense().eval()
    x = images()
    with pytest.raises(ValueError, match=r"no layer 'middle' in the network.*Available: first, norm"):
        Stitched(convolutional, "middle", dense, "head", None)
    with pytest.raises(ValueError, match=r"positions do not correspond \(8x8 of a grid, and none in the other layer\)"):
        Stitched(convolutional, "norm", dense, "body.1", drawn(6, 10))(x)
    with pytest.raises(ValueError, match=r"\(8 in a row, and 8x8 of a grid in the other layer\)"):
        Stitched(tokens, "embed", convolutional, "norm", drawn(8, 6))(x)
    with pytest.raises(ValueError, match="the stitch takes 5 channels, and the layer in front of it gives 6"):
        Stitched(convolutional, "norm", convolutional, "norm", drawn(5, 6))(x)
    with pytest.raises(ValueError, match="the stitch gives 5 channels, and norm has 6"):
        Stitched(convolutional, "norm", convolutional, "norm", drawn(6, 5))(x)
    with pytest.raises(ValueError, match=r"relu\[2\] did not run"):
        Stitched(convolutional, "relu[2]", convolutional, "norm", None)(x)


def test_sums_over_batches_give_the_map_of_all_positions() -> None:
    front, back = Convolutional(6, stride=2), Convolutional(5, seed=1)
    sums, x = StitchingSums(front, back, {"norm": "norm"}), images(40)
    sums.add(x.split(15))
    assert front.training
    assert int(front.norm.num_batches_tracked) == 0
    a, b = (network.eval().norm(network.first(x)).detach() for network in (front, back))
    a = F.interpolate(a, (8, 8), mode="bilinear", align_corners=False)
    design, target = (side.movedim(1, -1).flatten(0, 2).double().numpy() for side in (a, b))
    design = np.column_stack([design, np.ones(len(design))])
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    found = sums.map("norm")
    np.testing.assert_allclose(np.vstack([found.weight, found.bias]), expected, rtol=1e-5, atol=1e-5)
    other = drawn(6, 5)
    residual = design @ np.vstack([other.weight, other.bias]) - target
    share = 1 - (residual**2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert sums.r2("norm", other) == pytest.approx(share, rel=1e-5)
    assert sums.r2("norm", found) == pytest.approx(float(found.r2), rel=1e-6)


def test_scores() -> None:
    front, back = Convolutional().eval(), Convolutional(seed=1).eval()
    stitched, data = Stitched(front, "norm", back, "norm", drawn(6, 6)), labelled()
    x, y = data.tensors
    scores = score_stitched(stitched, [(x[:50], y[:50]), (x[50:], y[50:])])
    logits, own = stitched(x).detach(), back(x).detach()
    accuracy, own_accuracy = ((z.argmax(1) == y).float().mean() for z in (logits, own))
    assert scores.accuracy == pytest.approx(float(accuracy))
    assert scores.back_accuracy == pytest.approx(float(own_accuracy))
    assert scores.relative == pytest.approx(float(accuracy / own_accuracy))
    assert scores.agreement == pytest.approx(float((logits.argmax(1) == own.argmax(1)).float().mean()))
    assert scores.cross_entropy == pytest.approx(float(F.cross_entropy(logits, own.softmax(1))), rel=1e-5)
    without = score_stitched(stitched, [x])
    assert np.isnan(without.accuracy)
    assert without.relative == without.agreement == scores.agreement
    itself = score_stitched(Stitched(back, "norm", back, "norm", None), [(x, y)])
    assert itself.relative == itself.agreement == 1


def test_networks_without_logits_are_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"stitching needs logits .samples, classes., and the output is torch.float32"):
        score_stitched(Stitched(network, "0", network, "0", None), [torch.zeros(5, 3)])


def test_nothing_needs_float64_of_a_device_that_has_none() -> None:
    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            made = function(*arguments, **(options or {}))
            for part in tree_leaves(made):
                assert not isinstance(part, torch.Tensor) or (part.device.type, part.dtype) != ("mps", torch.float64)
            return made

    with FakeTensorMode(), NoFloat64():
        x, y = (torch.empty(20, width, 4, 4, device="mps") for width in (3, 5))
        logits, targets = torch.empty(20, 7, device="mps"), torch.empty(20, dtype=torch.int64, device="mps")
        sums = tally(logits, logits, targets), explained(y, y, torch.empty(9, dtype=torch.float64), 0), gram_of(x, y)
        assert {(part.device.type, part.dtype) for part in sums} == {("cpu", torch.float64)}
