"""The weights of a file in the places of a network: which it has, which it lacks, and what then cannot be compared."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_sim._adapters import absent_adapters
from lightning_sim._arguments import listed
from lightning_sim._weight_names import match_names, unwrapped

__all__ = ["FittedWeights", "fit_weights"]


class FittedWeights(dict[str, Tensor]):
    """Parameters and buffers of a network from a file, under the network's names.

    Those that the file lacks are NaN: whatever depends on them is NaN, and cannot be taken for the file's. Adapters
    that it lacks are not here, and not to be run. Buffers of integers that it lacks follow from the architecture.

    Attributes:
        missing: names that the file lacks or has in another shape, in words.
        foreign: the file's names that have no place in the network -> the innermost module around that place.
        without_adapters: whether the network has adapters that the file lacks.
    """

    def __init__(self, path: Path, network: nn.Module, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path, self._network, self._given = path, type(network).__name__, list(given)
        self.missing: dict[str, None] = {}
        self._reshaped: dict[str, None] = {}
        self.foreign: dict[str, str] = {}
        self.without_adapters = False

    @property
    def is_whole(self) -> bool:
        """Whether the file is of a network with just these parameters."""
        return not (self.missing or self.foreign or self.without_adapters)

    def __str__(self) -> str:
        return str(self._path)

    def refusal(self) -> str:
        """Why the file does not fit, and the ways out."""
        absent = [name for name in self.missing if name not in self._reshaped]
        nearest = difflib.get_close_matches(absent[0], self._given, n=3, cutoff=0.5) if absent else []
        return (
            f"the state dict in {self} does not fit {self._network}: missing {listed(absent, 4)}; "
            f"unexpected {listed(self.foreign, 4)}; of another shape {listed(self._reshaped, 4)}"
            + (f"; nearest to {absent[0]} in the file: {listed(nearest)}" if nearest else "")
            + ". Pass the reference as an nn.Module, which may be of any architecture; or save the state dict of a "
            "network like this one, torch.save(network.state_dict(), 'reference.pt'); or choose layers that the file "
            "has all weights for, layers=[...]"
        )

    def lack(self, name: str, value: Tensor, held: Tensor | None) -> None:
        """Note that the file has no value for a floating-point parameter or buffer."""
        plain = unwrapped(name)
        if held is not None:
            plain += f" {tuple(held.shape)} for {tuple(value.shape)}"
            self._reshaped[plain] = None
        self.missing[plain] = None
        device = "cpu" if hasattr(value, "device_mesh") else value.device  # whole ones for shards wait there
        self[name] = torch.full(value.shape, torch.nan, dtype=value.dtype, device=device)


def fit_weights(given: Mapping[str, Tensor], network: nn.Module, path: Path) -> FittedWeights:
    """The weights of a file, in the network's precision and on its device.

    Names are matched behind the prefixes that fit most of them, whatever wraps the one or the other.

    Raises:
        ValueError: when fewer than half of them fit, or parts of the file fit alike.
    """
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    fitted = FittedWeights(path, network, given)
    try:
        matched, foreign = match_names({n: v.shape for n, v in given.items()}, {n: v.shape for n, v in wanted.items()})
    except ValueError as error:
        raise ValueError(f"the state dict in {path} does not fit {type(network).__name__}: {error}") from None
    held = {name: given[other] for name, other in _with_twins(matched, network).items()}
    fits = {name for name, value in held.items() if value.shape == wanted[name].shape}
    buffers = dict(network.named_buffers())
    quantized = False  # their weights have no place for others
    adapters = set().union(*absent_adapters(network, held).values())
    for name, value in wanted.items():
        if name in fits and (value.is_floating_point() or not held[name].is_floating_point()):
            device = "cpu" if hasattr(value, "device_mesh") else value.device  # whole ones for shards wait there
            fitted[name] = held[name].to(device=device, dtype=value.dtype)
        elif name in adapters:
            fitted.without_adapters = True
        elif value.is_floating_point():
            fitted.lack(name, value, held.get(name))
        elif name not in buffers or name in held:
            quantized = True
            fitted.missing[f"{name} of {value.dtype}"] = None
    modules = {unwrapped(name): name for name, _ in reversed(list(network.named_modules()))}
    own = {unwrapped(name) for name in buffers}  # also those that state dicts leave out
    ignored = [  # what older files of Hugging Face's architectures hold in vain, as these say
        pattern
        for module in network.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    for name in foreign:
        if name in own or any(re.search(pattern, name) for pattern in ignored):
            continue
        around = name
        while around not in modules:
            around = around.rpartition(".")[0]
        fitted.foreign[name] = modules[around]
    if quantized or 2 * len(fits) < min(len(given), len(wanted)):
        fitted.foreign = fitted.foreign or dict.fromkeys(given, "")
        raise ValueError(fitted.refusal())
    return fitted


def _with_twins(matched: Mapping[str, str], network: nn.Module) -> dict[str, str]:
    """The matches, also for the second name of a tied parameter, which files may leave out."""
    twins = defaultdict(list)
    for name, value in network.named_parameters(remove_duplicate=False):
        twins[id(value)].append(name)
    found = {name: matched[twin] for names in twins.values() for twin in names if twin in matched for name in names}
    return found | dict(matched)
