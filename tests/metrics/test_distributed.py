"""Values over real gloo processes, with uneven and empty ranks."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from lightning_sim.functional import error_consistency, estimate, stitching_map
from tests.metrics.cases import CASES, DECISIVE, WIDTHS, WITH_ERRORS
from tests.metrics.processes import DIVISIONS, consistency_batches, division, run

Ranks = list[dict[str, Any]]

@pytest.fixture(scope="module", params=DIVISIONS, ids=lambda world_size: f"{world_size} processes")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What every process found; the processes are started once for each world size."""
    return run(request.param, tmp_path_factory.mktemp("processes"))


def only(world_size: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ranks", [world_size], indirect=True)


@functools.cache
def single_process_value(name: str) -> Any:
    return CASES[name].fed().compute()


@functools.cache
def independent_value(name: str) -> Any:
    return CASES[name].expected(CASES[name].batches)


def close(value: Any, expected: Any) -> bool:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return isinstance(value, torch.Tensor) and torch.allclose(value, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_the_processes_are_real(ranks: Ranks) -> None:
    assert [found["rank"] for found in ranks] == list(range(len(ranks)))
    assert [found["world_size"] for found in ranks] == [len(ranks)] * len(ranks)


@pytest.mark.parametrize("name", CASES)
def test_any_division_gives_the_value_of_one_process(ranks: Ranks, name: str) -> None:
    single, independent = single_process_value(name), independent_value(name)
    for found, label in itertools.product(ranks, DIVISIONS[len(ranks)]):
        value = found["values"][name, label]
        assert close(value, single), label
        assert close(value, independent), label
    # Ranks go on from their own states after values in between.
    assert all(close(found["afterwards"][name], single) for found in ranks)


@pytest.mark.parametrize("name", CASES)
def test_ranks_send_their_state_and_gather_nothing(ranks: Ranks, name: str) -> None:
    states = Counter(state.numel() for state in CASES[name].make().metric_state.values())
    for found in ranks:
        assert set(found["traffic"][name]) == {"all_reduce"}
        sent = Counter(found["traffic"][name]["all_reduce"])
        assert sent >= states
        # A metric of two representations announces one small tensor before: a number for every rank, or the number of
        # samples and the sums of their features.
        announced = list((sent - states).elements())
        assert len(announced) <= 1
        assert sum(announced) <= max(len(ranks), 1 + sum(WIDTHS))


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_errors_are_those_of_one_process(ranks: Ranks, name: str) -> None:
    expected = CASES[name].fed().estimate()
    assert 0 < float(expected.standard_error) < 1
    for found in ranks:
        torch.testing.assert_close(tuple(found["estimates"][name]), tuple(expected), rtol=0, atol=1e-9)


def test_error_consistency_is_that_of_all_samples(ranks: Ranks) -> None:
    a, b, labels = (torch.cat(side) for side in zip(*consistency_batches(), strict=True))
    for found in ranks:
        value, estimated = found["consistency"]
        torch.testing.assert_close(tuple(value), tuple(error_consistency(a, b, labels)), rtol=0, atol=1e-12)
        expected = estimate(a, b, measure="error_consistency", labels=labels)
        torch.testing.assert_close(tuple(estimated), tuple(expected), rtol=0, atol=1e-12)


def test_a_map_is_that_of_all_samples_by_one_all_reduce(ranks: Ranks) -> None:
    x, y = (torch.cat(side) for side in zip(*CASES["cca"].batches, strict=True))
    expected = stitching_map(x, y)
    for found in ranks:
        values, traffic = found["map"]
        for value, part in zip(values, expected, strict=True):
            torch.testing.assert_close(value, part, rtol=1e-9, atol=1e-9)
        assert traffic == {"all_reduce": [(1 + sum(WIDTHS)) ** 2]}


@only(2)
@pytest.mark.parametrize("name", CASES)
def test_a_users_gather_and_sync_by_hand_are_right(ranks: Ranks, name: str) -> None:
    single = single_process_value(name)
    for found in ranks:
        assert close(found["user's gather"][name], single)
        restored, value = found["sync by hand"][name]
        assert restored
        assert close(value, single)


@only(2)
@pytest.mark.parametrize("name", [name for name in CASES if name != "wcka"])
def test_without_sync_on_compute_every_rank_keeps_its_own_value(ranks: Ranks, name: str) -> None:
    case = CASES[name]
    for rank, found in enumerate(ranks):
        assert close(found["local"][name], case.expected(division(case, DIVISIONS[2]["uneven"], rank)))


@only(2)
def test_without_sync_on_compute_a_chain_ends_before_the_first_missing_layer(ranks: Ranks) -> None:
    expected = independent_value("wcka")
    first, second = (found["local"]["wcka"] for found in ranks)
    assert close(first[:3], expected[:3])
    assert bool(first[3].isnan().all())
    assert bool(second.isnan().all())


@pytest.mark.parametrize("name", [name for name in CASES if name != "wcka"])
def test_steps_are_synchronised_when_asked(ranks: Ranks, name: str) -> None:
    case = CASES[name]
    per_step = [case.batches[first : first + len(ranks)] for first in range(0, 6, len(ranks))]
    for found in ranks:
        steps, last = found["steps"][name]
        assert len(steps) == len(per_step)
        assert all(close(value, case.expected(batches)) for value, batches in zip(steps, per_step, strict=True))
        assert close(last, independent_value(name))


@only(2)
def test_steps_over_layers_give_the_chains_so_far(ranks: Ranks) -> None:
    expected = independent_value("wcka")
    for found in ranks:
        (first, second), last = found["steps"]["wcka"]
        assert close(first[:2, :2], expected[:2, :2])
        assert bool(first[2:].isnan().all())
        assert close(second, expected)
        assert close(last, expected)


@only(3)
@pytest.mark.parametrize("name", CASES)
def test_a_process_group_leaves_the_other_ranks_alone(ranks: Ranks, name: str) -> None:
    assert "group" not in ranks[1]
    assert all(close(ranks[rank]["group"][name], single_process_value(name)) for rank in (0, 2))


@only(2)
@pytest.mark.parametrize("name", CASES)
def test_a_state_that_is_not_summed_is_caught(ranks: Ranks, name: str) -> None:
    right = independent_value(name)
    for state, kind in itertools.product(DECISIVE[name], ("not reduced", "maximum")):
        assert not all(close(found["broken"][name, state, kind], right) for found in ranks), (state, kind)
