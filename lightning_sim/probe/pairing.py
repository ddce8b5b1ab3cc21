"""Which layer of the reference every chosen layer of the network is compared with, and what has no counterpart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from lightning_sim._weight_names import common_prefixes
from lightning_sim.probe.layers import glob_pattern, named_layers, nearest_names, select_layers, unknown_layer

__all__ = ["Pairing", "pair_layers"]

_SAY = "Pair layers that are named differently with layers={'name in the network': 'name in the reference'}"

_WILDCARD = re.compile(r"\*|\?|\[[^\]]+\]")


@dataclass(frozen=True)
class Pairing:
    """Pairs of layers.

    Attributes:
        layers: layer of the network -> layer of the reference, in the order of the network's definition.
        how: ``"name"``, ``"mapping"``, or ``"depth"`` where two architectures have no names in common.
        named: those of the layers that were asked for by name, and not by a glob or ``"auto"``.
        left_out: layer -> why it has no counterpart.
        overlooked: glob -> layers that it may have been meant to match as well.
    """

    layers: dict[str, str]
    how: str = "name"
    named: frozenset[str] = frozenset()
    left_out: dict[str, str] = field(default_factory=dict)
    overlooked: dict[str, list[str]] = field(default_factory=dict)


def pair_layers(
    network: nn.Module, reference: nn.Module | Sequence[str], layers: str | Sequence[str] | Mapping[str, str]
) -> Pairing:
    """Pair layers by a mapping of names or globs, by name, or by relative depth.

    Two layers have the same name also where what wraps the networks differs (``net.conv1`` here, ``conv1`` there). With
    ``"auto"``, where fewer than half of the layers have such a counterpart, the networks' automatic layers are paired
    by relative depth. Of a reference of which only the names of its layers are known, ``"auto"`` takes those that the
    network has as well.

    Raises:
        ValueError: for a layer asked for by name that does not exist, or has no counterpart in the reference; where
            none has one.
    """
    mine = list(named_layers(network))
    theirs = list(named_layers(reference)) if isinstance(reference, nn.Module) else list(reference)
    if isinstance(layers, Mapping):
        return _mapped(layers, mine, theirs)
    automatic = layers == "auto"
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if automatic and not isinstance(reference, nn.Module):
        layers = [name for name in mine if name in theirs] or "auto"
    chosen = select_layers(network, layers)
    counterparts = _counterparts(chosen, mine, theirs)
    found = {name: other for name, other in counterparts.items() if other is not None}
    if automatic and theirs and 2 * len(found) < len(chosen):
        others = select_layers(reference, "auto") if isinstance(reference, nn.Module) else theirs
        return Pairing(_by_depth(chosen, others), how="depth")
    lost = [name for name in chosen if name not in found]
    if lost and (not found or not set(patterns).isdisjoint(lost)):
        first = next((name for name in lost if name in patterns), lost[0])
        raise ValueError(f"{unknown_layer(first, theirs, 'the reference')}. {_SAY}")
    return Pairing(
        found,
        named=frozenset(() if automatic else set(patterns).intersection(found)),
        left_out={name: _no_counterpart(name, theirs) for name in lost},
        overlooked={} if automatic else _overlooked(patterns, mine, chosen),
    )


def _mapped(layers: Mapping[str, str], mine: Sequence[str], theirs: Sequence[str]) -> Pairing:
    """Pairs of a mapping; what stands for a wildcard in a name of the network does so in that of the reference."""
    if not layers:
        raise ValueError("`layers` is an empty mapping; pass {layer of the network: layer of the reference}")
    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    named = frozenset(name for name in layers if name in mine)
    for key, other in sorted(layers.items(), key=lambda item: item[0] not in named):  # names win over globs
        if key in named:
            if other not in theirs:
                raise ValueError(unknown_layer(other, theirs, "the reference"))
            found[key] = other
            continue
        if len(_WILDCARD.findall(other)) not in (0, len(_WILDCARD.findall(key))):
            raise ValueError(f"`layers` maps {key!r} to {other!r}, which must have as many wildcards, or none")
        pattern = glob_pattern(key)
        matches = {name: match for name in mine if (match := pattern.fullmatch(name))}
        if not matches:
            raise ValueError(unknown_layer(key, mine))
        counterparts = {name: _filled(other, match) for name, match in matches.items()}
        if not set(counterparts.values()).intersection(theirs):
            raise ValueError(
                f"{unknown_layer(next(iter(counterparts.values())), theirs, 'the reference')} (by {key!r})"
            )
        for name, counterpart in counterparts.items():
            if counterpart in theirs:
                found.setdefault(name, counterpart)
            else:
                left_out[name] = _no_counterpart(counterpart, theirs)
    left_out = {name: reason for name, reason in left_out.items() if name not in found}
    return Pairing({name: found[name] for name in mine if name in found}, "mapping", named, left_out)


def _filled(glob: str, match: re.Match[str]) -> str:
    """A glob with what another one's wildcards matched in the place of its own."""
    values = iter(match.groups())
    return _WILDCARD.sub(lambda _: next(values), glob)


def _counterparts(names: Sequence[str], mine: Sequence[str], theirs: Sequence[str]) -> dict[str, str | None]:
    """The layer of the same name, else the longest of like ending, else what lies behind the networks' prefixes."""
    found: dict[str, str | None] = {}
    prefixes: tuple[str, list[str]] | None = None
    for name in names:
        alike = [other for other in theirs if name.endswith(f".{other}")] or [
            other for other in theirs if other.endswith(f".{name}")
        ]
        # "net.block.conv" ends like "block.conv" and like "conv": the longest says most.
        longest = [other for other in alike if len(other) == max(map(len, alike))]
        if name in theirs:
            longest = [name]
        elif not longest:
            prefixes = prefixes or _prefixes(mine, theirs)
            longest = [prefixes[0] + name.removeprefix(start) for start in prefixes[1] if name.startswith(start)]
        found[name] = longest[0] if len(longest) == 1 and longest[0] in theirs else None
    return found


def _prefixes(mine: Sequence[str], theirs: Sequence[str]) -> tuple[str, list[str]]:
    try:
        start, starts = common_prefixes(dict.fromkeys(theirs), dict.fromkeys(mine))
    except ValueError:  # several parts of the reference are alike
        return "", []
    behind = {start + name.removeprefix(s) for s in starts for name in mine if name.startswith(s)}
    # "0" is the ending of many a name.
    return (start, starts) if 2 * len(behind.intersection(theirs)) >= min(len(mine), len(theirs)) else ("", [])


def _by_depth(mine: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Each layer with the one as deep, from the first to the last."""
    last, deepest = len(mine) - 1, len(theirs) - 1
    return {name: theirs[round(place * deepest / last) if last else deepest] for place, name in enumerate(mine)}


def _no_counterpart(name: str, theirs: Sequence[str]) -> str:
    nearest = nearest_names(name, theirs)
    return "has no counterpart in the reference" + (f", the nearest is {nearest[0]}" if nearest else "")


def _overlooked(globs: Sequence[str], mine: Sequence[str], chosen: Sequence[str]) -> dict[str, list[str]]:
    """``blocks.10`` of ``blocks.?``: numbers of several digits where a glob has room for one."""
    found = {}
    for glob in globs:
        longer = glob_pattern(glob, question=r"\d+")
        missed = [name for name in mine if longer.fullmatch(name) and name not in chosen]
        if "?" in glob and missed:
            found[glob] = missed
    return found
