"""Which layers of a network are measured: by name, glob, or automatically."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import nn
from torchmetrics import Metric

from lightning_sim._arguments import listed

__all__ = ["glob_pattern", "named_layers", "nearest_names", "plain_name", "select_layers", "unknown_layer"]

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
        whole = glob_pattern(pattern)
        matched = [pattern] if pattern in available else [name for name in available if whole.fullmatch(name)]
        if not matched:
            raise ValueError(unknown_layer(pattern, available))
        chosen.update(matched)
    return [name for name in available if name in chosen]


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
    # What lies inside an attention module is not called by itself, its output projection least of all; and a layer with
    # an adapter around it stands for both.
    closed = [name for name in available if isinstance(modules[name], nn.MultiheadAttention) or _adapted(modules[name])]
    weighted = [
        name
        for name in available
        if (isinstance(modules[name], _WEIGHTED) or _adapted(modules[name]))
        and not any(name.startswith(f"{outer}.") for outer in closed)
    ]
    if not weighted:
        raise ValueError(
            f'`layers="auto"` found no convolution, linear, embedding, recurrent or attention layer in '
            f"{type(network).__name__}; name the layers to measure. Available: {listed(available)}"
        )
    if len(weighted) <= MAXIMUM_AUTOMATIC_LAYERS:
        return weighted
    blocks = _blocks(weighted, modules)
    chosen = [name for name in available if name in set(blocks)]
    if len(chosen) <= MAXIMUM_AUTOMATIC_LAYERS:
        return chosen
    last = len(chosen) - 1
    return [chosen[round(i * last / (MAXIMUM_AUTOMATIC_LAYERS - 1))] for i in range(MAXIMUM_AUTOMATIC_LAYERS)]


def _adapted(module: nn.Module) -> bool:
    """Whether PEFT has wrapped a weighted layer in this module."""
    return any(isinstance(module._modules.get(name), _WEIGHTED) for name in ("base_layer", "original_module"))


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


def glob_pattern(glob: str, question: str = ".") -> re.Pattern[str]:
    """What a glob matches, with a group for each of its wildcards; `question` is what ``?`` stands for."""
    wild = {"*": ".*", "?": question}
    pieces = re.split(r"(\*|\?|\[[^\]]+\])", glob)  # every second one is a wildcard
    return re.compile(
        "".join(
            f"({wild.get(piece, piece.replace('[!', '[^'))})" if place % 2 else re.escape(piece)
            for place, piece in enumerate(pieces)
        )
    )


def unknown_layer(name: str, available: Sequence[str], where: str = "the network") -> str:
    """That there is no such layer, and the nearest ones that there are."""
    nearest = nearest_names(name, available)
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    what = "no layer matches the glob" if any(c in name for c in "*?[") else "there is no layer"
    return f"{what} {name!r} in {where}.{hint} Available: {listed(available)}"


def nearest_names(name: str, available: Sequence[str]) -> list[str]:
    """Up to three names like this one; those that end in it or in which it ends come first."""
    ending = [other for other in available if other.endswith(f".{name}") or name.endswith(f".{other}")]
    close = difflib.get_close_matches(name, available, n=3, cutoff=0.5)
    return list(dict.fromkeys((*sorted(ending, key=len), *close)))[:3]
