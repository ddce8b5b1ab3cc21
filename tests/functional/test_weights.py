from __future__ import annotations

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sim.functional import centered_kernel_alignment, weight_centered_kernel_alignment
from tests.functional.representations import HALF_CASES
from tests.functional.test_centered_kernel_alignment import cka_by_definition
from tests.golden import Golden, reference_rows
from tests.metrics import definitions

GOLDEN = reference_rows("wcka")


def chain(*widths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(a, b, generator=generator, dtype=torch.float64) / a**0.5
        for a, b in itertools.pairwise(widths)
    ]


def network(*widths: int, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight in chain(*widths, seed=seed):
        linear = nn.Linear(*weight.shape, dtype=torch.float64)
        linear.weight.data = weight.T
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    return weight_centered_kernel_alignment(*row.arrays(dtype), center=row.params["center"])


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(reproduce)


def test_products_run_from_the_inputs_on() -> None:
    # On both sides of the number of inputs.
    for inputs in (6, 40):
        a, b = chain(inputs, 12, 5), chain(inputs, 9, 50, 4, seed=1)
        value = weight_centered_kernel_alignment(a, b)
        assert value.shape == (2, 3)
        expected = cka_by_definition((a[0] @ a[1]).numpy(), (b[0] @ b[1] @ b[2]).numpy(), "biased")
        assert float(value[1, 2]) == pytest.approx(expected, rel=1e-10)
        assert float(value[0, 1]) == pytest.approx(
            cka_by_definition(a[0].numpy(), (b[0] @ b[1]).numpy(), "biased"), rel=1e-10
        )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_deep_chains_neither_underflow_nor_overflow(scale: float) -> None:
    a, b = chain(*[8] * 60), chain(*[8] * 60, seed=1)
    expected = weight_centered_kernel_alignment(a, b)
    scaled = weight_centered_kernel_alignment([scale * weight for weight in a], b)
    torch.testing.assert_close(scaled, expected)
    assert expected.isfinite().all()


def test_rescaled_hidden_units_of_a_relu_network() -> None:
    a, b = chain(10, 16, 16, 4), chain(10, 12, 4, seed=1)
    factors = torch.logspace(-20, 20, 16, dtype=torch.float64)
    rescaled = [a[0], a[1] * factors, a[2] / factors[:, None]]
    expected = weight_centered_kernel_alignment(a, b)
    value = weight_centered_kernel_alignment(rescaled, b)
    torch.testing.assert_close(value[[0, 2]], expected[[0, 2]])
    assert (value[1] - expected[1]).abs().max() > 1e-3  # the rescaled layer itself is another one


def test_modules_are_chains_of_their_linear_layers() -> None:
    a, b = network(10, 16, 4), network(10, 8, 8, 3, seed=1)
    expected = weight_centered_kernel_alignment(chain(10, 16, 4), chain(10, 8, 8, 3, seed=1))
    assert torch.equal(weight_centered_kernel_alignment(a, b), expected)
    assert torch.equal(weight_centered_kernel_alignment(a, chain(10, 8, 8, 3, seed=1)), expected)


def test_what_may_stand_between_the_layers() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flatten = nn.Flatten()
            self.body = nn.Sequential(a[0], nn.PReLU(), nn.Dropout(0.5), nn.Identity())
            self.activation = Square()
            self.unused = None
            self.head = nn.ModuleList([a[2]])
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(4))

    a = network(10, 16, 4)
    expected = weight_centered_kernel_alignment(a, a)
    assert torch.equal(weight_centered_kernel_alignment(Model(), Model()), expected)


def test_a_layer_used_twice_counts_twice() -> None:
    (weight,) = chain(6, 6)
    linear = network(6, 6)[0]
    tied = nn.Sequential(linear, nn.ReLU(), linear)
    torch.testing.assert_close(
        weight_centered_kernel_alignment(tied, [weight]),
        weight_centered_kernel_alignment([weight, weight], [weight]),
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(1, 1, 3),
        nn.BatchNorm1d(4, affine=False),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.MaxPool1d(2),
        nn.MultiheadAttention(4, 1),
        nn.TransformerEncoderLayer(4, 1),
        nn.LSTM(4, 4),
        nn.Bilinear(4, 4, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_are_not_a_chain_are_refused(layer: nn.Module) -> None:
    mixed = nn.Sequential(nn.Linear(10, 4), layer)
    with pytest.raises(ValueError, match=r"`weights_b\.1[.\w]*` must be made of.*got a \w+; give"):
        weight_centered_kernel_alignment(network(10, 4), mixed)


def test_weights_that_do_not_chain_are_refused() -> None:
    a = chain(10, 16, 4)
    with pytest.raises(ValueError, match=r"same width.*\(10, 16\) and \(9, 16\)"):
        weight_centered_kernel_alignment(a, chain(9, 16))
    with pytest.raises(ValueError, match=r"`weights_b\[1\]` must take the 16.*\(10, 16\) and \(4, 16\)"):
        weight_centered_kernel_alignment(a, [a[0], a[1].T])
    with pytest.raises(ValueError, match=r"`weights_a` must hold at least one linear layer"):
        weight_centered_kernel_alignment([], a)
    with pytest.raises(ValueError, match=r"`weights_a` must hold at least one linear layer"):
        weight_centered_kernel_alignment(nn.ReLU(), a)
    with pytest.raises(ValueError, match=r"`weights_a\[0\]` must have shape \(d_in, d_out\), got \(16,\)"):
        weight_centered_kernel_alignment(a[0], a)
    with pytest.raises(ValueError, match=r"`weights_b\[1\]` of shape \(16, 4\) holds NaN"):
        weight_centered_kernel_alignment(a, [a[0], a[1] * torch.nan])
    with pytest.raises(ValueError, match=r"`weights_b\[0\]` must be floating-point"):
        weight_centered_kernel_alignment(a, [a[0].long()])


def test_a_prefix_without_variance_is_named() -> None:
    a = chain(10, 16, 4)
    constant = torch.full((10, 16), 0.7, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"`weights_b` up to \[0\] has no variance") as caught:
        assert weight_centered_kernel_alignment(a, [constant, a[1]]).isnan().all()
    assert [warning.filename for warning in caught] == [__file__]
    assert weight_centered_kernel_alignment(a, [constant, a[1]], center=False).isfinite().all()


def test_a_layer_that_lets_nothing_through_is_named() -> None:
    # The second layer of a takes only what the first never puts out; the product is rounding.
    a, b = chain(10, 3, seed=1), chain(10, 16, 4)
    mixing = torch.linalg.qr(*chain(6, 6)).Q
    blocked = [a[0] @ mixing[:3], mixing[3:].T @ chain(3, 5)[0], chain(5, 4)[0]]
    with pytest.warns(UserWarning, match=r"`weights_a` up to \[1\] has no variance"):
        value = weight_centered_kernel_alignment(blocked, b)
    assert value[0].isfinite().all()
    assert value[1:].isnan().all()


def test_half_precision() -> None:
    for dtype, mean, scale in HALF_CASES:
        if mean / scale > 1e3:  # the rounded weights are constant
            continue
        a, b = (
            [(mean + scale * w / w.std()).to(dtype) for w in chain(20, 8, 6, seed=seed)] for seed in (0, 1)
        )
        value = weight_centered_kernel_alignment(a, b)
        assert value.dtype == torch.float32
        (a1, a2), (b1, b2) = ([w.double().numpy() for w in weights] for weights in (a, b))
        expected = cka_by_definition((a1 - a1.mean(0)) @ a2, (b1 - b1.mean(0)) @ b2, "biased")
        assert float(value[1, 1]) == pytest.approx(expected, rel=5e-3), (dtype, mean, scale)


def test_calibration_on_random_networks() -> None:
    # 64 inputs and 4 hidden layers of 32: the mean over pairs of whole chains of 30 random networks.
    networks = [chain(64, 32, 32, 32, 32, 3, seed=seed) for seed in range(30)]
    values = torch.stack(
        [
            weight_centered_kernel_alignment(networks[i], networks[j])[-1, -1]
            for i in range(30)
            for j in range(i)
        ]
    )
    assert float(values.mean()) == pytest.approx(0.036, abs=0.01)


def test_gradients() -> None:
    a, b = chain(6, 4, 3), chain(6, 5, seed=1)
    parameters = [w.requires_grad_() for w in (*a, *b)]
    for center in (True, False):

        def measure(w1: Tensor, w2: Tensor, v: Tensor, center: bool = center) -> Tensor:
            return weight_centered_kernel_alignment([w1, w2], [v], center=center)

        assert torch.autograd.gradcheck(measure, parameters)


def test_one_layer_is_linear_cka() -> None:
    (a,), (b,) = chain(20, 5), chain(20, 30, seed=1)
    assert float(weight_centered_kernel_alignment([a], [b])) == pytest.approx(
        float(centered_kernel_alignment(a, b, estimator="biased")), rel=1e-12
    )


def test_adjacent_late_epochs_of_a_training_are_alike() -> None:
    # The calibration of wCKA's paper: digits 0, 1 and 2, four hidden layers of 32; scikit-learn's digits here.
    images, labels = load_digits(n_class=3, return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        hidden = [part for width in (64, 32, 32, 32) for part in (nn.Linear(width, 32), nn.ReLU())]
        network = nn.Sequential(*hidden, nn.Linear(32, 3))
        optimizer, former = torch.optim.Adam(network.parameters(), lr=1e-3), None
        for epoch in range(15):
            for part in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
                optimizer.step()
            if former is not None and epoch > 10:
                values.append(weight_centered_kernel_alignment(network, former)[-1, -1].item())
            former = copy.deepcopy(network)
    assert sum(values) / len(values) > 0.98


@pytest.mark.parametrize("inputs", [300, 40, 10])
def test_all_pairs_cost_little_more_than_the_layers(inputs: int) -> None:
    def flops(depth: int) -> int:
        a, b = chain(inputs, *[40] * depth), chain(inputs, *[40] * depth, seed=1)
        with FlopCounterMode(display=False) as counter:
            weight_centered_kernel_alignment(a, b)
        return counter.get_total_flops()

    assert flops(24) < 2.5 * flops(12)


@pytest.mark.parametrize("widths", [((90, *[20] * 30), (90, *[24] * 30)), ((12, *[20] * 30), (12, 9, *[24] * 29))])
def test_float32_of_deep_chains(widths: tuple[tuple[int, ...], ...]) -> None:
    a, b = (chain(*of_one, seed=seed) for seed, of_one in enumerate(widths))
    a, b = ([weight.float() for weight in weights] for weights in (a, b))
    expected = definitions.wcka(*([weight.double().numpy() for weight in weights] for weights in (a, b)))
    value = weight_centered_kernel_alignment(a, b)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weight_centered_kernel_alignment(a, b), value)


def test_gradients_behind_many_inputs() -> None:
    parameters = [w.requires_grad_() for w in (*chain(12, 3, 2), *chain(12, 4, seed=1))]
    assert torch.autograd.gradcheck(lambda *w: weight_centered_kernel_alignment(w[:2], w[2:]), parameters)


def test_chains_of_two_precisions():
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = [draw(8, 6), draw(6, 4)], [draw(8, 5), draw(5, 3)]
    expected = weight_centered_kernel_alignment(a, b)
    found = weight_centered_kernel_alignment(a, [weight.float() for weight in b])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("scales", [(1e-24, 1e20, 1e-30), (1e18, 1e18, 1e18)])
def test_scales_whose_products_leave_float32(scales: tuple[float, ...]) -> None:
    weights = [weight.float() for weight in chain(60, 20, 30, 10)]
    scaled = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
    others = [weight.float() for weight in chain(60, 20, 30, 10, seed=1)]
    expected = weight_centered_kernel_alignment(weights, others)
    torch.testing.assert_close(weight_centered_kernel_alignment(scaled, others), expected, rtol=0, atol=1e-5)
