"""What a user of torchmetrics expects of every metric."""

from __future__ import annotations

import io
import itertools
import pickle
import warnings
from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_sum

from lightning_sim import metrics
from lightning_sim.metrics import (
    CanonicalCorrelation,
    CenteredKernelAlignment,
    NormalizedBuresSimilarity,
    OutputDivergence,
    PredictionAgreement,
    RankCorrelation,
)
from tests.metrics.cases import (
    CASES,
    EXACT,
    PAIR_CASES,
    SIZES,
    SKETCH,
    WIDTHS,
    Batch,
    batched,
    logits,
    representations,
)

ON_SAMPLES = [name for name in CASES if name != "wcka"]
LARGE = (0, 2, 3, 5)  # the batches with enough samples for a value of their own

every_metric = pytest.mark.parametrize("name", CASES)
every_metric_of_samples = pytest.mark.parametrize("name", ON_SAMPLES)


def assert_close(value: Any, expected: Any, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance, equal_nan=True)


def states_of(metric: Metric) -> dict[str, Tensor]:
    return {name: state.clone() for name, state in metric.metric_state.items()}


def test_every_public_metric_is_covered() -> None:
    # Those with several values have tests of their own.
    several = {"ErrorConsistency", "StitchingMap"}
    assert {type(case.make()).__name__ for case in CASES.values()} == set(metrics.__all__) - several


@every_metric
def test_all_states_are_sums(name: str) -> None:
    metric = CASES[name].make()
    assert set(metric._reductions.values()) == {dim_zero_sum}
    assert metric.full_state_update is False
    assert not any(state.any() for state in metric.metric_state.values())


@every_metric
def test_states_do_not_change_in_place_and_keep_their_shapes(name: str) -> None:
    case = CASES[name]
    metric = case.fed([])
    shapes = {state: value.shape for state, value in metric.metric_state.items()}
    for batch in case.batches:
        held = dict(metric.metric_state)
        before = states_of(metric)
        metric.update(*batch)
        assert all(torch.equal(held[state], before[state]) for state in held)
        assert {state: value.shape for state, value in metric.metric_state.items()} == shapes


@every_metric
def test_batches_in_any_order(name: str) -> None:
    case = CASES[name]
    orders = itertools.islice(itertools.permutations(case.batches), 0, None, 97)
    values = [case.fed(order).compute() for order in orders]
    assert len(values) >= 1
    for value in [*values, case.fed(case.batches[::-1]).compute()]:
        assert_close(value, case.expected(case.batches))


@pytest.mark.parametrize("name", [name for name in ON_SAMPLES if name != "cka minibatch"])
def test_batches_of_any_sizes(name: str) -> None:
    case = CASES[name]
    whole = [torch.cat(side) for side in zip(*case.batches, strict=True)]
    for sizes in ((500,), (1,) * 20 + (480,), (250, 0, 250)):
        assert_close(case.fed(batched(whole, sizes)).compute(), case.expected(case.batches))


@every_metric_of_samples
def test_forward_gives_the_value_of_the_batch_and_adds_it(name: str) -> None:
    case = CASES[name]
    metric = case.fed([])
    for index, batch in enumerate(case.batches):
        if index in LARGE:
            assert_close(metric(*batch), case.expected([batch]))
        else:
            metric.update(*batch)
    assert_close(metric.compute(), case.expected(case.batches))


@every_metric
def test_merging_in_any_grouping(name: str) -> None:
    case = CASES[name]
    first, second, third = (case.fed(part) for part in (case.batches[:1], case.batches[1:3], case.batches[3:]))
    left, right = first.clone(), third.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="layer 1 of `weight_a`.* was not given")
        left.compute()  # torchmetrics' own merge_state would go on to return this value
    left.merge_state(second)
    left.merge_state(third.metric_state)
    right.merge_state(second)
    right.merge_state(first)
    empty = case.fed([])
    empty.merge_state(right)
    right.merge_state(case.fed([]))
    for merged in (left, right, empty):
        assert_close(merged.compute(), case.expected(case.batches))


@every_metric
def test_a_merged_metric_goes_on(name: str) -> None:
    case = CASES[name]
    metric = case.fed(case.batches[1:2])
    metric.merge_state(case.fed(case.batches[:1]))
    for batch in case.batches[2:]:
        metric.update(*batch)
    assert_close(metric.compute(), case.expected(case.batches))


@every_metric
def test_merging_what_is_no_state_of_it_is_refused(name: str) -> None:
    metric = CASES[name].make()
    first, *others = metric.metric_state
    missing = {state: metric.metric_state[state] for state in others}
    for spoiled in (missing, missing | {first: torch.zeros(2, 3, 4)}, missing | {first: [1.0]}, {"a": 1}, 3):
        with pytest.raises(ValueError, match=rf"`incoming_state` must hold.*{first}"):
            metric.merge_state(spoiled)


@every_metric
def test_reset_forgets_everything(name: str) -> None:
    case = CASES[name]
    metric = case.fed(case.batches[:2])
    metric.reset()
    fresh = case.fed([])
    assert all(torch.equal(value, fresh.metric_state[state]) for state, value in metric.metric_state.items())
    for batch in case.batches:
        metric.update(*batch)
    assert_close(metric.compute(), case.expected(case.batches))


def saved_and_loaded(metric: Metric, fresh: Metric) -> Metric:
    metric.persistent(True)
    fresh.persistent(True)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    return fresh


@every_metric
def test_a_copy_goes_on_where_the_metric_was(name: str) -> None:
    case = CASES[name]
    metric = case.fed(case.batches[:2])
    before = states_of(metric)
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), saved_and_loaded(metric, case.fed([]))):
        for batch in case.batches[2:]:
            copy.update(*batch)
        assert_close(copy.compute(), case.expected(case.batches))
    assert all(torch.equal(value, before[state]) for state, value in metric.metric_state.items())


@every_metric
def test_computing_before_anything_was_given_warns_and_is_nan(name: str) -> None:
    metric = CASES[name].make()
    with (
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
        pytest.warns(UserWarning, match="returning NaN"),
    ):
        value = metric.compute()
    assert bool(value.isnan().all())


@every_metric_of_samples
def test_batches_without_samples_change_nothing(name: str) -> None:
    case = CASES[name]
    if len(case.batches[0]) == 3:  # with ids
        empty: Batch = tuple(side[:0] for side in case.batches[0])
    else:
        empty = tuple(side[:0] for side in case.batches[0][:2])
    metric = case.fed([empty, *case.batches[:3], empty, *case.batches[3:], empty])
    assert_close(metric.compute(), case.expected(case.batches))


@every_metric
def test_inference_mode_and_training_can_alternate(name: str) -> None:
    case = CASES[name]
    metric = case.fed([])
    for index, batch in enumerate(case.batches):
        with torch.inference_mode(mode=index % 2 == 0):
            metric.update(*batch)
    metric.reset()
    for batch in case.batches:
        metric.update(*batch)
    assert_close(metric.compute(), case.expected(case.batches))


@every_metric
def test_no_graph_is_kept(name: str) -> None:
    case = CASES[name]
    metric = case.fed([])
    batches = [
        [part.clone().requires_grad_() if isinstance(part, Tensor) and part.is_floating_point() else part for part in b]
        for b in case.batches
    ]
    assert not metric(*batches[0]).requires_grad
    for batch in batches[1:]:
        metric.update(*batch)
    assert not any(state.requires_grad for state in metric.metric_state.values())
    assert metric.is_differentiable is False


@every_metric
def test_casting_the_module_that_holds_it_leaves_the_states(name: str) -> None:
    module = nn.Module()
    module.metric = CASES[name].make()
    dtypes = {state: value.dtype for state, value in module.metric.metric_state.items()}
    module.to(torch.bfloat16).half().to("cpu")
    assert {state: value.dtype for state, value in module.metric.metric_state.items()} == dtypes
    module.metric.reset()
    assert {state: value.dtype for state, value in module.metric.metric_state.items()} == dtypes
    for narrow in (torch.float16, torch.bfloat16, torch.int64, "torch.float16"):
        with pytest.raises(ValueError, match=r"`dst_type` must be torch.float32 or torch.float64, got"):
            module.metric.set_dtype(narrow)
    module.metric.set_dtype(torch.float32)  # enough for what is kept in it, and no less than the others need
    assert {state: value.dtype for state, value in module.metric.metric_state.items()} == dtypes
    module.metric.set_dtype(torch.float64)
    wide = {state: torch.float64 if dtype.is_floating_point else dtype for state, dtype in dtypes.items()}
    assert {state: value.dtype for state, value in module.metric.metric_state.items()} == wide


@every_metric
def test_states_move_with_the_metric(name: str) -> None:
    metric = CASES[name].make()
    metric.to("meta")
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}
    metric.reset()
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_metric
def test_cuda(name: str) -> None:
    case = CASES[name]
    on_device = [[part.cuda() if isinstance(part, Tensor) else part for part in batch] for batch in case.batches]
    metric = case.fed([]).to("cuda")
    for batch in on_device[:2]:
        metric.update(*batch)
    metric.to("cpu").to("cuda")
    for batch in on_device[2:]:
        metric.update(*batch)
    value = metric.compute()
    assert value.device.type == "cuda"
    assert_close(value.cpu(), case.expected(case.batches))
    assert_close(metric.to("cpu").compute(), case.expected(case.batches))


@every_metric_of_samples
def test_narrow_inputs_are_summed_in_float32_or_wider(name: str) -> None:
    case = CASES[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        batches = [(*(side.to(dtype) for side in batch[:2]), *batch[2:]) for batch in case.batches]
        metric = case.make()
        for batch in batches:
            metric.update(*batch)
        value = metric.compute()
        assert value.dtype in (torch.float32, torch.float64)
        assert_close(value, case.expected([tuple(side.double() for side in batch[:2]) for batch in batches]), 1e-4)


@every_metric_of_samples
def test_autocast_changes_nothing(name: str) -> None:
    case = CASES[name]
    metric, automatic = case.make(), case.make()
    for batch in case.batches:
        metric.update(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in case.batches:
            automatic.update(*batch)
        assert torch.equal(automatic.compute(), metric.compute())


@pytest.mark.parametrize("name", PAIR_CASES)
def test_half_precision_with_a_large_mean(name: str) -> None:
    case = CASES[name]
    # The largest float16 is 65504.
    for dtype, largest in ((torch.float16, 1e3), (torch.bfloat16, 1e4)):
        for scale in (1e-4, 1.0, largest):
            # Half precision has 8 or 11 bits: the mean can be some hundred times the deviation, not more.
            pair = [(scale * (10 + z / z.std())).to(dtype) for z in representations(500, seed=5)]
            metric = case.make()
            for batch in batched(pair, SIZES):
                metric.update(*batch)
            assert_close(metric.compute(), case.expected(batched([side.double() for side in pair], SIZES)), 5e-3)


@every_metric_of_samples
def test_bad_input_is_refused_and_leaves_the_state(name: str) -> None:
    case = CASES[name]
    metric = case.fed(case.batches[:1])
    before = states_of(metric)
    x, y, *rest = case.batches[0]
    for spoiled, message in (
        ((x[:-1], y), r"shapes? .*\(199, .*\(200, "),
        ((x.index_fill(0, torch.tensor([3]), torch.nan), y), "NaN"),
        ((x, y.long()), "floating-point.*int64"),
        ((x[:, None], y), r"shape \(samples, (width|classes)\).*\(200, 1, "),
        ((x.tolist(), y), "torch.Tensor.*list"),
        ((x, y.numpy()), "torch.Tensor.*ndarray"),
        ((x.to_sparse(), y), "dense"),
        ((x, y.to("meta")), "meta"),
        ((x > 0, y), "floating-point.*bool"),
        ((x, y.to(torch.float8_e4m3fn)), "floating-point.*float8"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(*spoiled, *rest)
        assert all(torch.equal(value, before[state]) for state, value in metric.metric_state.items()), message


@pytest.mark.parametrize("name", PAIR_CASES)
def test_a_side_without_variance_is_named(name: str) -> None:
    case = CASES[name]
    x, _ = representations(500)
    for dtype in (torch.float64, torch.float32):
        metric = case.make()
        for batch in batched([x.to(dtype), torch.full((500, WIDTHS[1]), 0.7, dtype=dtype)], SIZES):
            metric.update(*batch)
        with pytest.warns(UserWarning, match="y.*(no variance|constant).*returning NaN"):
            assert metric.compute().isnan()


@pytest.mark.parametrize("name", PAIR_CASES)
def test_too_few_samples_are_nan_with_a_warning(name: str) -> None:
    x, y = representations(1)
    metric = CASES[name].fed([(x, y)])
    with pytest.warns(UserWarning, match=r"samples.*returning NaN"):
        assert metric.compute().isnan()


def test_collections_share_the_states_that_coincide() -> None:
    collection = MetricCollection(
        {
            "cka": CenteredKernelAlignment(**SKETCH),
            "cka biased": CenteredKernelAlignment(estimator="biased", **SKETCH),
            "nbs": NormalizedBuresSimilarity(**SKETCH),
            "cka of another seed": CenteredKernelAlignment(seed=1, **SKETCH),
            "cka exact": CenteredKernelAlignment(**EXACT),
            "nbs exact": NormalizedBuresSimilarity(**EXACT),
            "cca": CanonicalCorrelation(*WIDTHS),
            "cca squared": CanonicalCorrelation(*WIDTHS, summary="mean_squared"),
        }
    )
    batches = batched(representations(sum(SIZES)))
    for batch in batches[:3]:
        collection.update(*batch)
    groups = {frozenset(group) for group in collection.compute_groups.values()}
    assert groups == {
        frozenset({"cka", "cka biased", "nbs"}),
        frozenset({"cka of another seed"}),
        frozenset({"cka exact", "nbs exact", "cca", "cca squared"}),
    }
    collection(*batches[3])
    for batch in batches[4:]:
        collection.update(*batch)
    values = collection.compute()
    for key, name in {
        "cka": "cka sketch",
        "cka biased": "cka sketch biased",
        "nbs": "nbs sketch",
        "cka of another seed": "cka sketch",
        "cka exact": "cka exact",
        "nbs exact": "nbs exact",
        "cca": "cca",
    }.items():
        assert_close(values[key], CASES[name].expected(batches))
    collection.reset()
    for batch in batches:
        collection.update(*batch)
    assert_close(collection.compute()["nbs"], CASES["nbs sketch"].expected(batches))


def test_collections_keep_apart_what_only_looks_alike() -> None:
    collection = MetricCollection(
        [PredictionAgreement(), RankCorrelation(), OutputDivergence()], compute_groups=True
    )
    # Equal outputs: every sum over samples is the number of samples, or zero.
    same = logits(20)[0]
    collection.update(same, same)
    other = logits(20, seed=1)
    collection.update(*other)
    assert sorted(map(len, collection.compute_groups.values())) == [1, 1, 1]
    both = [(same, same), tuple(other)]
    for key, name in {
        "PredictionAgreement": "agreement",
        "RankCorrelation": "rank correlation",
        "OutputDivergence": "divergence",
    }.items():
        assert_close(collection.compute()[key], CASES[name].expected(both))


def test_collections_pass_ids_to_the_metrics_that_take_them() -> None:
    collection = MetricCollection([CenteredKernelAlignment(**SKETCH), CanonicalCorrelation(*WIDTHS)])
    for x, y, ids in CASES["cka sketch with ids"].batches:
        collection.update(x, y, sample_ids=ids)
    values = collection.compute()
    assert_close(values["CenteredKernelAlignment"], CASES["cka sketch"].expected(CASES["cka sketch"].batches), 1e-5)
    assert_close(values["CanonicalCorrelation"], CASES["cca"].expected(CASES["cca"].batches))


@every_metric
def test_plot(name: str) -> None:
    mpl.use("Agg")
    case = CASES[name]
    metric = case.fed()
    value = metric.compute()
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        figure, axes = metric.plot()
        _, same_axes = metric.plot([value, value], ax=figure.add_subplot())
    drawn = axes.images[0].get_array() if name == "wcka" else axes.lines[0].get_ydata()
    assert_close(torch.as_tensor(drawn).squeeze().reshape(value.shape), value)
    assert len(same_axes.lines[0].get_ydata()) == 2
    lower, upper = metric.plot_lower_bound, metric.plot_upper_bound
    assert lower is None or bool((value.nan_to_num(lower) >= lower).all())
    assert upper is None or bool((value.nan_to_num(upper) <= upper + 1e-9).all())
    mpl.pyplot.close("all")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CenteredKernelAlignment(num_buckets="1024"), "`num_buckets` must be an integer.*'1024'"),
        (lambda: CenteredKernelAlignment(num_projections=8.0), "`num_projections` must be an integer.*8.0"),
        (lambda: CenteredKernelAlignment(seed=None), "`seed` must be an integer.*None"),
        (lambda: CenteredKernelAlignment(["exact"]), "`accumulate` must be one of"),
        (lambda: CenteredKernelAlignment(estimator=["exact"]), "`estimator` must be one of 'unbiased', 'biased'"),
        (lambda: NormalizedBuresSimilarity(num_buckets=True), "`num_buckets` must be an integer.*True"),
        (
            lambda: NormalizedBuresSimilarity("exact", num_features_x=3, num_features_y="3"),
            "`num_features_y` must be an integer.*'3'",
        ),
        (lambda: NormalizedBuresSimilarity("exact", num_features_x=3), "`num_features_y` must be an integer.*None"),
        (lambda: CanonicalCorrelation(3.0, 3), "`num_features_x` must be an integer.*3.0"),
        (lambda: OutputDivergence(base=torch.ones(2)), "`base` must be one of"),
        (lambda: metrics.WeightCenteredKernelAlignment((3, 3), center=1), "`center` must be True or False, got 1"),
    ],
)
def test_settings_of_another_kind_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("spoil", [lambda ids: ids.tolist(), lambda ids: ids.numpy(), lambda ids: ids.to("meta")])
def test_ids_that_are_no_tensor_of_values_are_refused(spoil: Any) -> None:
    x, y, ids = CASES["cka sketch with ids"].batches[0]
    with pytest.raises(ValueError, match="`sample_ids`"):
        CenteredKernelAlignment(**SKETCH).update(x, y, spoil(ids))
