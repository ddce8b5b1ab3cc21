"""Names of layers and runs as text that can be shown: they come from networks and files, and may hold anything."""

from __future__ import annotations

__all__ = ["printable", "shortened"]


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
