"""Which layers of a network are measured: by name, glob, automatically, or paired with another network's."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn
from torchmetrics import Metric

__all__ = ["named_layers", "pair_layers", "plain_name", "select_layers"]

MAXIMUM_AUTOMATIC_LAYERS = 16

_WEIGHTED = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.modules.conv._ConvNd,
)


def select_layers(network: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Names of the submodules that `layers` chooses, in the order of the network's definition.

    Args:
        network: the network.
        layers: names and globs (``"layer*.conv?"``; ``*`` also matches dots), or ``"auto"``: every convolution, linear,
            embedding, recurrent and attention layer; in networks with more than 16 of them the repeated blocks
            (children of ``nn.Sequential`` and ``nn.ModuleList``) stand for what they contain, and if those are still
            more than 16, 16 of them evenly spaced, the first and the last included.

    Raises:
        ValueError: for a name or glob that matches nothing, with the nearest and all available names.
    """
    if isinstance(layers, str) and layers == "auto":
        return _automatic_layers(network)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise ValueError('`layers` is empty; pass names, globs or "auto"')
    available = list(named_layers(network))
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [pattern] if pattern in available else fnmatch.filter(available, pattern)
        if not matched:
            raise ValueError(_unknown_layer(pattern, available))
        chosen.update(matched)
    return [name for name in available if name in chosen]


def pair_layers(
    network: nn.Module, reference: nn.Module | Sequence[str], layers: str | Sequence[str] | Mapping[str, str]
) -> dict[str, str]:
    """Which layer of the reference every chosen layer of the network is compared with.

    A mapping says it. Otherwise layers are paired by name; where one network is wrapped (``net.conv1`` here, ``conv1``
    there) by the only layer of the reference whose name ends alike. Of a reference of which only the names of its
    layers are known, ``"auto"`` takes those that the network has as well.

    Raises:
        ValueError: for a layer that does not exist, or has no counterpart in the reference.
    """
    theirs = list(named_layers(reference)) if isinstance(reference, nn.Module) else list(reference)
    if layers == "auto" and not isinstance(reference, nn.Module):
        layers = [name for name in named_layers(network) if name in theirs] or "auto"
    if isinstance(layers, Mapping):
        if not layers:
            raise ValueError("`layers` is an empty mapping; pass {layer of the network: layer of the reference}")
        mine = list(named_layers(network))
        for name, other in layers.items():
            if name not in mine:
                raise ValueError(_unknown_layer(name, mine))
            if other not in theirs:
                raise ValueError(_unknown_layer(other, theirs, where="the reference"))
        return {name: layers[name] for name in mine if name in layers}
    return {name: _counterpart(name, theirs) for name in select_layers(network, layers)}


def named_layers(network: nn.Module) -> dict[str, nn.Module]:
    """All submodules but the network itself and metrics, under the names that they have without torch.compile."""
    found: dict[str, nn.Module] = {}
    metrics: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, Metric):
            metrics.append(name)
        elif name and not any(name.startswith(f"{metric}.") for metric in metrics):
            plain = plain_name(name)
            if plain:
                found[plain] = module
    return found


def plain_name(name: str) -> str:
    """The name that a submodule has without torch.compile."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _automatic_layers(network: nn.Module) -> list[str]:
    modules = named_layers(network)
    available = list(modules)
    # What lies inside an attention module is not called by itself, its output projection least of all.
    closed = [name for name in available if isinstance(modules[name], nn.MultiheadAttention)]
    weighted = [
        name
        for name in available
        if isinstance(modules[name], _WEIGHTED) and not any(name.startswith(f"{outer}.") for outer in closed)
    ]
    if not weighted:
        raise ValueError(
            f'`layers="auto"` found no convolution, linear, embedding, recurrent or attention layer in '
            f"{type(network).__name__}; name the layers to measure. Available: {_listing(available)}"
        )
    if len(weighted) <= MAXIMUM_AUTOMATIC_LAYERS:
        return weighted
    blocks = _blocks(weighted, modules)
    chosen = [name for name in available if name in set(blocks)]
    if len(chosen) <= MAXIMUM_AUTOMATIC_LAYERS:
        return chosen
    last = len(chosen) - 1
    return [chosen[round(i * last / (MAXIMUM_AUTOMATIC_LAYERS - 1))] for i in range(MAXIMUM_AUTOMATIC_LAYERS)]


def _blocks(weighted: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """For every weighted layer the innermost repeated block around it that holds more than one, or itself."""
    blocks = []
    for name in weighted:
        parts = name.split(".")
        around = [".".join(parts[:stop]) for stop in range(len(parts) - 1, 0, -1)]
        blocks.append(
            next(
                (
                    outer
                    for outer in around
                    if isinstance(modules.get(outer.rpartition(".")[0]), nn.Sequential | nn.ModuleList)
                    and "." in outer
                    and not isinstance(modules[outer], nn.Sequential | nn.ModuleList)
                ),
                name,
            )
        )
    return list(dict.fromkeys(blocks))


def _counterpart(name: str, theirs: Sequence[str]) -> str:
    if name in theirs:
        return name
    alike = [other for other in theirs if name.endswith(f".{other}")] or [
        other for other in theirs if other.endswith(f".{name}")
    ]
    # "net.block.conv" ends like "block.conv" and like "conv": the longest says most.
    longest = [other for other in alike if len(other) == max(map(len, alike))]
    if len(longest) == 1:
        return longest[0]
    raise ValueError(
        f"{_unknown_layer(name, theirs, where='the reference')}. Pair layers that are named differently with "
        "layers={'name in the network': 'name in the reference'}"
    )


def _unknown_layer(name: str, available: Sequence[str], where: str = "the network") -> str:
    nearest = difflib.get_close_matches(name, available, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    what = "no layer matches the glob" if any(c in name for c in "*?[") else "there is no layer"
    return f"{what} {name!r} in {where}.{hint} Available: {_listing(available)}"


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
