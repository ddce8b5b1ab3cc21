"""Names of layers and runs as text that can be shown: they come from networks and files, and may hold anything."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["printable", "shortened", "without_prefix"]


def printable(name: str) -> str:
    r"""One line without control characters, which would move a terminal's cursor or break a table.

    Example:
        >>> printable("a\nb\x1b[2J") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J"
        True
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def shortened(name: str, most: int) -> str:
    """At most `most` characters of `printable` text, cut in the middle.

    Example:
        >>> shortened("backbone.layer4.downsample", 11)
        'backb…ample'
    """
    text = printable(name)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def without_prefix(names: Sequence[str], separator: str = ".") -> list[str]:
    """Names without the parts that all of them begin with, but for one that stands before a number.

    Example:
        >>> without_prefix(["model.encoder.layer.0.output", "model.encoder.layer.1.output"])
        ['layer.0.output', 'layer.1.output']
    """
    parts = [name.split(separator) for name in names]
    count = next((index for index, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), 0)
    while count and any(part[count].isdecimal() for part in parts):
        count -= 1
    return [separator.join(part[count:]) for part in parts]
