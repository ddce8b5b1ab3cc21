from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_sim.functional import weight_centered_kernel_alignment
from lightning_sim.metrics import WeightCenteredKernelAlignment
from tests.golden import Golden, reference_rows
from tests.metrics import definitions
from tests.metrics.cases import CASES, layers

WIDTHS = (20, 6, 5, 4)


def fed(weights_a: list[torch.Tensor], weights_b: list[torch.Tensor], **settings: Any) -> torch.Tensor:
    widths = [[len(weights[0]), *(weight.shape[1] for weight in weights)] for weights in (weights_a, weights_b)]
    metric = WeightCenteredKernelAlignment(*widths, **settings)
    for layer in range(max(len(weights_a), len(weights_b))):
        metric.update(*(weights[layer] if layer < len(weights) else None for weights in (weights_a, weights_b)))
    return metric.compute()


@pytest.mark.parametrize("row", reference_rows("wcka"), ids=str)
def test_golden(row: Golden) -> None:
    row.assert_reproduced_by(fed(*row.arrays(), center=row.params["center"]))


def test_layers_without_a_number_follow_on_each_other() -> None:
    a, b = layers(WIDTHS, 0), layers(WIDTHS, 1)
    np.testing.assert_allclose(fed(a, b), definitions.wcka([w.numpy() for w in a], [w.numpy() for w in b]), atol=1e-12)


def test_forward_gives_the_layers_so_far() -> None:
    a, b = layers(WIDTHS, 0), layers(WIDTHS, 1)
    expected = definitions.wcka([w.numpy() for w in a], [w.numpy() for w in b])
    metric = WeightCenteredKernelAlignment(WIDTHS)
    for layer in range(3):
        value = metric(a[layer], b[layer])
        known = slice(0, layer + 1)
        np.testing.assert_allclose(value[known, known], expected[known, known], atol=1e-12)
        assert int(value.isnan().sum()) == 9 - (layer + 1) ** 2
    np.testing.assert_allclose(metric.compute(), expected, atol=1e-12)


def test_layers_given_several_times_do_not_change_the_value() -> None:
    case = CASES["wcka"]
    metric = case.fed([*case.batches, *case.batches[:2], case.batches[0]])
    np.testing.assert_allclose(metric.compute(), case.expected(case.batches), atol=1e-12)


def test_a_gap_ends_the_chain() -> None:
    a, b = layers(WIDTHS, 0), layers(WIDTHS, 1)
    metric = WeightCenteredKernelAlignment(WIDTHS)
    metric.update(a[0], b[0])
    metric.update(a[2], b[2], layer=2)
    with pytest.warns(UserWarning, match="layer 1 of `weight_a` and layer 1 of `weight_b` was not given.*NaN"):
        value = metric.compute()
    assert not bool(value[0, 0].isnan())
    assert int(value.isnan().sum()) == 8
    metric.update(a[1], b[1], layer=1)
    expected = definitions.wcka([w.numpy() for w in a], [w.numpy() for w in b])
    np.testing.assert_allclose(metric.compute(), expected, atol=1e-12)


def test_a_missing_first_layer_is_named() -> None:
    metric = WeightCenteredKernelAlignment(WIDTHS)
    metric.update(layers(WIDTHS, 0)[0], None)
    with pytest.warns(UserWarning, match="first layer of `weight_b` was not given.*NaN"):
        assert bool(metric.compute().isnan().all())


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (((8,), None), r"`widths_a` must hold.*\(8,\)"),
        (((8, 4), (8, 0)), r"`widths_b\[1\]` must be an integer, at least 1, got 0"),
        (((8, 4.0), None), r"`widths_a\[1\]` must be an integer, at least 1, got 4.0"),
        ((8, None), "`widths_a` must hold.*got 8"),
        (("84", None), "`widths_a` must hold.*got '84'"),
        (((8, 4), (9, 4)), r"same width of the inputs.*\(8, 4\) and \(9, 4\)"),
    ],
)
def test_widths_that_describe_no_pair_of_networks_are_refused(widths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightCenteredKernelAlignment(*widths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(6, 20), torch.ones(20, 6)), r"`weight_a` must have shape \(20, 6\) for layer 0.*\(6, 20\)"),
        ((torch.ones(20, 6), torch.ones(20, 6), 3), "`weight_a` must be one of layers 0 to 2, got layer 3"),
        ((torch.ones(20, 6), torch.ones(20, 6), "0"), "`layer` must be an integer, at least 0, got '0'"),
        ((torch.ones(20, 6), torch.ones(20, 6), True), "`layer` must be an integer, at least 0, got True"),
        ((None, None), "None for both"),
        ((torch.ones(20, 6), torch.full((20, 6), torch.nan)), "`weight_b`.*NaN"),
    ],
)
def test_bad_layers_are_refused_and_leave_the_state(arguments: Any, message: str) -> None:
    metric = WeightCenteredKernelAlignment(WIDTHS)
    with pytest.raises(ValueError, match=message):
        metric.update(*arguments)
    assert not any(state.any() for state in metric.metric_state.values())


def test_more_layers_than_there_are_is_refused() -> None:
    case = CASES["wcka"]
    metric = case.fed()
    with pytest.raises(ValueError, match=r"layers 0 to 3, got layer 4.*reset\(\)"):
        metric.update(*case.batches[-1][:2])


def test_networks_of_any_layers():
    def network(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))

    a, b, c = map(network, range(3))
    metric = WeightCenteredKernelAlignment(input_shape=(3, 8, 8), layers_a=["2", "0"], layers_b=["0"])
    expected = [weight_centered_kernel_alignment(a, other, input_shape=(3, 8, 8))[[1, 0], :1] for other in (b, c)]
    torch.testing.assert_close(metric(a, b).float(), expected[0])
    metric.update(a, c)
    torch.testing.assert_close(metric.compute().float(), sum(expected) / 2)
    other = metric.clone()
    other.reset()
    other.update(a, b)
    other.merge_state(metric)
    torch.testing.assert_close(other.compute().float(), (2 * expected[0] + expected[1]) / 3)
    with pytest.raises(ValueError, match=r"`weight_b` must be a torch.nn.Module with `input_shape`, got"):
        metric.update(a, a[0].weight)
    with pytest.raises(ValueError, match="`layers_a` must be one name or a list of names"):
        WeightCenteredKernelAlignment(input_shape=(3, 8, 8))
