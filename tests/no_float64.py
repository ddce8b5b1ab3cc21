"""A device without float64, as Apple's MPS is: tensors that say they are on it, with their values on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps:0")


class Elsewhere(torch.Tensor):
    """A tensor on that device; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        if held.dtype == torch.float64:
            raise TypeError("the device does not support float64")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=held.device,
            requires_grad=held.requires_grad,
        )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # that of torch itself would ask for the backend
        return DEVICE

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """To the CPU, where torch itself would find it to be, or to another dtype."""
        if isinstance(args[0], torch.Tensor):
            args = args[0].device, args[0].dtype
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return self.held.detach().to(dtype or self.dtype)
        return self if dtype in (None, self.dtype) else super().to(dtype)

    def cpu(self) -> torch.Tensor:
        """Likewise."""
        return self.to("cpu")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes tensors on that device where they are asked for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = {isinstance(value, Elsewhere) for value in given if value.ndim}
    if len(there) > 1 and "copy" not in str(function):
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, but found mps:0 and cpu")
    wanted = kwargs.get("device")
    elsewhere = any(isinstance(value, Elsewhere) for value in given)
    if wanted is not None:
        elsewhere = torch.device(wanted).type == "mps"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if "copy_" in str(function) and "_to_copy" not in str(function):
        elsewhere = isinstance(args[0], Elsewhere)
    args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    found = function(*args, **kwargs)
    if function._schema.is_mutable and elsewhere:  # in place: what was given
        return next(leaf for leaf in leaves if isinstance(leaf, Elsewhere))
    if not elsewhere or function.__name__.startswith("_local_scalar"):
        return found
    return tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf, found)
