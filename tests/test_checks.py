"""What is no matrix of numbers is refused with words by every public function."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sim import functional
from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_choice

SPOILS: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "nothing": lambda x: None,
    "integers": lambda x: x.long(),
    "booleans": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "8 bits": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.as_nested_tensor([x, x], layout=torch.jagged),
}
NETWORKS = ("fisher_rao_distance", "fisher_rao_norm", "task2vec")
VECTORS = ("pearson_correlation", "spearman_correlation", "task2vec_similarity")


def network() -> nn.Module:
    return nn.Linear(4, 3).eval()


def arguments(name: str) -> tuple[Any, ...]:
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(0))
    if name in NETWORKS:
        return (*[network() for _ in range(1 + (name == "fisher_rao_distance"))], draw(8, 4))
    if name in VECTORS:
        return draw(8), draw(8)
    if name == "weight_centered_kernel_alignment":
        return [draw(8, 4)], [draw(8, 4)]
    count = {"product_kernel_similarity": 4, "deconfounded_centered_kernel_alignment": 3}.get(name, 2)
    return tuple(draw(20, 4) for _ in range(count))


def call(name: str, given: tuple[Any, ...]) -> Any:
    options: dict[str, Any] = {"batch_size": 5} if name.startswith("minibatch") else {}
    if name == "error_consistency":
        options = {"labels": torch.arange(20) % 4}
    return getattr(functional, name)(*given, **options)


# Of networks, and of kernels that no user makes.
OTHERS = ("open_gate_kernels", "open_gate_alignment")
FUNCTIONS = [
    name for name in functional.__all__ if inspect.isfunction(getattr(functional, name)) and name not in OTHERS
]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_dense_tensor_of_floats_is_refused(name: str, spoil: str) -> None:
    call(name, arguments(name))
    for place, value in enumerate(arguments(name)):
        if isinstance(value, nn.Module):
            continue
        if name == "kernel_mean_embedding_norm" and place == 1 and spoil == "nothing":
            continue  # no gradients
        if name in NETWORKS and spoil in ("integers", "booleans", "complex", "8 bits"):
            continue  # the network decides what it takes
        given = list(arguments(name))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nested tensors.*prototype")
            given[place] = [SPOILS[spoil](value[0])] if isinstance(value, list) else SPOILS[spoil](value)
        with pytest.raises(ValueError, match=r"^`"):
            call(name, tuple(given))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_no_network_or_holds_no_sample_is_refused(name: str) -> None:
    *networks, inputs = arguments(name)
    for given in (3, None, network):
        with pytest.raises(ValueError, match=r"`(network|other)` must be a torch.nn.Module"):
            call(name, (*networks[:-1], given, inputs))
    with pytest.raises(ValueError, match=r"`inputs` must hold at least 1 sample.*\(0, 4\)"):
        call(name, (*networks, inputs[:0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_finite_logits_is_nan_with_a_warning(name: str) -> None:
    *networks, inputs = arguments(name)
    networks[0].weight.data[0] = torch.nan
    with pytest.warns(UserWarning, match="logits on `inputs`.*are not finite.*NaN"):
        assert call(name, (*networks, inputs)).isnan().any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("centered_kernel_alignment", {"bandwidth": "1"}),
        ("centered_kernel_alignment", {"bandwidth": True}),
        ("centered_kernel_alignment", {"center": "yes"}),
        ("centered_kernel_alignment", {"kernel": torch.ones(2)}),
        ("minibatch_centered_kernel_alignment", {"batch_size": 5.0}),
        ("minibatch_centered_kernel_alignment", {"batch_size": "5"}),
        ("minibatch_centered_kernel_alignment", {"batch_size": None}),
        ("deconfounded_centered_kernel_alignment", {"project_psd": 1}),
        ("product_kernel_similarity", {"center_factors": None}),
        ("svcca", {"variance": "0.9"}),
        ("svcca", {"variance": None}),
        ("procrustes_distance", {"normalize": "no"}),
        ("angular_procrustes_distance", {"center": 0}),
        ("mutual_knn", {"k": 2.5}),
        ("mutual_knn", {"k": "2"}),
        ("mutual_knn", {"k": True}),
        ("pearson_correlation", {"confidence": "0.95"}),
        ("weight_centered_kernel_alignment", {"center": "yes"}),
        ("jensen_shannon_divergence", {"base": ["e"]}),
        ("task2vec", {"average_filters": "no"}),
        ("task2vec_similarity", {"joint_normalization": 1}),
    ],
)
def test_options_of_another_kind_are_refused(name: str, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(ValueError, match=rf"^`{option}` must be .*got "):
        getattr(functional, name)(*arguments(name), **options)


def test_a_mean_embedding_needs_a_sample() -> None:
    with pytest.raises(ValueError, match=r"`features` need at least 1 row.*\(0, 3\)"):
        functional.kernel_mean_embedding_norm(torch.zeros(0, 3))


def test_weights_that_are_no_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`weights_b` must be a sequence of weights or a torch\.nn\.Module, got int"):
        functional.weight_centered_kernel_alignment([torch.ones(3, 3)], 3)  # type: ignore[arg-type]


def test_integers_of_other_libraries_are_integers() -> None:
    numpy = pytest.importorskip("numpy")
    assert check_integer(numpy.int64(7), "k", least=1) == 7
    check_choice(numpy.str_("a"), "choice", ("a", "b"))
