"""Which name in a file stands for which of a network, whatever wrappers have put in front of, or between, its parts."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping

__all__ = ["common_prefixes", "match_names", "unwrapped"]

# What torch.compile, FSDP, activation checkpointing and adapters (PEFT) put between the names of what they wrap.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module")
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of the first BERT files


def unwrapped(name: str) -> str:
    """The name without what wrappers have put between its parts."""
    for old, new in _LEGACY.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    parts = name.split(".")
    skipped = set()
    for place, pair in enumerate(itertools.pairwise(parts)):
        if pair == ("base_model", "model") or pair[0] == "modules_to_save":  # with the adapter's name behind it
            skipped |= {place, place + 1}
    return ".".join(p for place, p in enumerate(parts) if p not in _WRAPPERS and place not in skipped)


def common_prefixes(given: Mapping[str, Hashable], wanted: Mapping[str, Hashable]) -> tuple[str, list[str]]:
    """What stands before the given names, and before the wanted ones, where most of them agree.

    Args:
        given: name -> what must be equal, such as a shape.
        wanted: the same.

    Returns:
        The prefix of the given names, and all those that have as many wanted names behind them, as two encoders that
        one file serves. The prefixes end in a dot or are empty.

    Raises:
        ValueError: when two parts of what is given fit alike.
    """
    endings = defaultdict(list)
    for name in given:
        for ending in _endings(name):
            endings[ending].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, like in wanted.items():
        longest = next((ending for ending in _endings(name) if ending in endings), "")
        for other in endings.get(longest, ())[:64]:
            if given[other] == like:
                votes[other.removesuffix(longest), name.removesuffix(longest)] += 1
    fitting = {
        (theirs, mine): sum(
            given.get(theirs + name.removeprefix(mine), _NOTHING) == like
            for name, like in wanted.items()
            if name.startswith(mine)
        )
        for (theirs, mine), _ in votes.most_common(16)
    }
    best = [pair for pair, fits in fitting.items() if fits == max(fitting.values())]
    if not best:
        return "", []
    depth = min(theirs.count(".") for theirs, _ in best)
    starts = sorted({theirs for theirs, _ in best if theirs.count(".") == depth})
    if len(starts) > 1:
        raise ValueError(
            f"its parts {', '.join(start.removesuffix('.') for start in starts)} fit alike; save one of them"
        )
    return starts[0], [mine for theirs, mine in best if theirs == starts[0]]


_NOTHING = object()


def match_names(given: Mapping[str, Hashable], wanted: Mapping[str, Hashable]) -> tuple[dict[str, str], list[str]]:
    """Wanted name -> given name; and the given names that lie in the same part without being wanted, as wanted ones.

    Args:
        given: name -> shape, as in a file.
        wanted: name -> shape, as in a network.

    Raises:
        ValueError: as `common_prefixes`.
    """
    held = defaultdict(list)
    for name in sorted(given, key=lambda name: "original_module" in name):  # what an adapter trains comes first
        held[unwrapped(name)].append(name)
    theirs, mine = common_prefixes(
        {plain: given[names[0]] for plain, names in held.items()},
        {unwrapped(name): shape for name, shape in wanted.items()},
    )
    matched = {}
    for name in wanted:
        plain = unwrapped(name)
        alike = [held[theirs + plain.removeprefix(start)] for start in mine if plain.startswith(start)]
        names = next(filter(None, [*alike, held[plain]]), None)  # of which a part alone is wrapped
        if names:
            matched[name] = max(names, key=lambda other: _common_parts(name, other))
    known = {unwrapped(name) for name in wanted}
    used = {unwrapped(name) for name in matched.values()}
    inside = [plain.removeprefix(theirs) for plain in held.keys() - used if held[plain] and plain.startswith(theirs)]
    return matched, [prefix + rest for prefix in mine for rest in sorted(inside) if prefix + rest not in known]


def _endings(name: str) -> Iterator[str]:
    """The name, and it without its first part, its first two, and so on."""
    while name:
        yield name
        name = name.partition(".")[2]


def _common_parts(a: str, b: str) -> int:
    """How many of their last parts are the same."""
    parts: Iterable[tuple[str, str]] = zip(reversed(a.split(".")), reversed(b.split(".")), strict=False)
    return next((count for count, (x, y) in enumerate(parts) if x != y), min(a.count("."), b.count(".")) + 1)
