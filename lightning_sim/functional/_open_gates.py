"""Running a network with every gate open, which leaves what it makes of its inputs linear up to a constant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["OpenGates", "open_attention"]

_MASKED = -9e3  # scores that masks leave; networks write -inf, the least number of the dtype, -1e9 or -1e4

_GATES = (
    "celu|clamp|clamp_min|elu|gelu|hardshrink|hardsigmoid|hardswish|hardtanh|leaky_relu|log_sigmoid|logsigmoid|mish|"
    "prelu|relu|relu6|rrelu|selu|sigmoid|silu|softplus|softshrink|softsign|tanh|tanhshrink|threshold|"
    "alpha_dropout|dropout|dropout1d|dropout2d|dropout3d|feature_alpha_dropout"
)


class OpenGates(TorchFunctionMode):
    """While active, torch's functions of the rows are what is left of them when their gates are open.

    Activations and dropout pass everything, softmax is uniform over what is not masked, max pooling is mean pooling,
    batch normalisation scales by what it has recorded, other normalisation takes the mean off but does not divide, and
    layers add no bias. Modules call these functions, so that it does not matter how a network is written. What is not
    listed is as it was, linear or not.

    Args:
        rows: how many rows run at once; what is computed of the parameters alone is left as it is.
        embedded: gives the rows for the weight of the first embedding; None for networks that do not begin with one.
    """

    def __init__(self, rows: int, embedded: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.rows, self.embedded = rows, embedded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in the place of every function of torch; the mode is off inside."""
        name = getattr(func, "__name__", "").rstrip("_")  # of functions in place as well
        opened = _OPENED.get(name)
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        first = args[0] if args else kwargs.get("query")
        of_rows = isinstance(first, Tensor) and first.numel() % self.rows == 0
        if self.embedded is not None and name == "embedding" and of_rows:
            embedded, self.embedded = self.embedded, None
            return embedded(kwargs["weight"] if "weight" in kwargs else args[1])
        if opened is None or not of_rows:
            return func(*args, **kwargs)
        return opened(func, *args, **kwargs)


@contextmanager
def open_attention() -> Iterator[None]:
    """Attention modules go through torch's functions inside, not through one kernel for all of them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _gate(func: Any, x: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
    # What is changed in place afterwards must not change what came in.
    return x if inplace or func.__name__.endswith("_") else x.clone()


def _layer(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    return func(x, weight, None, *args, **kwargs)


def _softmax(func: Any, scores: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(_masks(scores), *args, **kwargs)


def _masks(scores: Tensor | None) -> Tensor | None:
    """Zero where scores are not masked; also of masks that are added to scores."""
    if scores is None or not scores.is_floating_point():
        return scores
    return torch.zeros_like(scores).masked_fill_(scores <= _MASKED, torch.finfo(scores.dtype).min)


def _attention(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    return func(torch.zeros_like(query), torch.zeros_like(key), value, _masks(attn_mask), 0.0, *args, **kwargs)


def _multi_head_attention(func: Any, *args: Any, **kwargs: Any) -> Any:
    # Without query and key, every score is zero or masked.
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    if given.get("use_separate_proj_weight"):
        given |= {name: torch.zeros_like(given[name]) for name in ("q_proj_weight", "k_proj_weight")}
    else:
        given["in_proj_weight"] = given["in_proj_weight"].clone()
        given["in_proj_weight"][: -given["embed_dim_to_check"]] = 0
    given |= {"in_proj_bias": None, "out_proj_bias": None, "training": False}
    given |= {"attn_mask": _masks(given.get("attn_mask")), "key_padding_mask": _masks(given.get("key_padding_mask"))}
    return func(**given)


def _batch_norm(func: Any, *args: Any, **kwargs: Any) -> Any:
    if func is not F.batch_norm:
        return func(*args, **kwargs)
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    if given["running_var"] is None:
        raise ValueError("normalises by the statistics of its batch: it has recorded none, track_running_stats=True")
    variance = given["running_var"].to(given["input"].dtype)  # which a network of half precision keeps in that
    given |= {"running_mean": torch.zeros_like(variance), "running_var": variance, "bias": None, "training": False}
    return func(**given)


def _instance_norm(
    func: Any,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats or running_var is None:
        return _group_norm(func, x, x.shape[1], weight)
    return cast(Tensor, _batch_norm(F.batch_norm, x, running_mean, running_var, weight, None, False, momentum, eps))


def _group_norm(
    func: Any, x: Tensor, num_groups: int, weight: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    grouped = x.reshape(len(x), num_groups, -1)
    centered = (grouped - grouped.mean(2, keepdim=True)).view_as(x)
    return centered if weight is None else centered * weight.view(-1, *[1] * (x.ndim - 2))


def _layer_norm(func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    dimensions = list(range(-len(shape), 0))
    return _rms_norm(func, x - x.mean(dimensions, keepdim=True), shape, weight)


def _rms_norm(func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    return x.clone() if weight is None else x * weight


def _max_pool(
    func: Any,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise ValueError("has no mean pooling in its place, since it is dilated or gives indices")
    mean = getattr(F, func.__name__.replace("max", "avg"))
    return mean(x, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad=False)


def _adaptive_max_pool(func: Any, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    if return_indices:
        raise ValueError("has no mean pooling in its place, since it gives indices")
    return getattr(F, func.__name__.replace("max", "avg"))(x, output_size)


_OPENED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_GATES.split("|"), _gate),
    "linear": _layer,
    **{f"conv{kind}{n}d": _layer for kind in ("", "_transpose") for n in (1, 2, 3)},
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive_max_pool for n in (1, 2, 3)},
    "softmax": _softmax,
    "log_softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
