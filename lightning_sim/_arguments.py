"""Checks of plain arguments, numbers, names and functions, in one place so that every message has the same form."""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from numbers import Integral, Real
from operator import attrgetter
from typing import Any

__all__ = [
    "check_callable",
    "check_integer",
    "check_names",
    "check_number",
    "check_text",
    "described",
    "listed",
    "warn_renamed",
]


def check_integer(value: object, name: str, *, least: int, most: int | None = None) -> int:
    """An integer in a range as Python's own; those of NumPy count, booleans and numbers like 2.0 do not."""
    expected = f"an integer, at least {least}" + ("" if most is None else f" and at most {most}")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"`{name}` must be {expected}, got {described(value)}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"`{name}` must be {expected}, got {number}")
    return number


def check_number(value: object, name: str) -> float:
    """A finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {described(value)}")
    return float(value)


def check_text(value: object, name: str) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{name}` must be a string that is not empty, got {described(value)}")
    return value


def check_names(value: object, name: str, example: str) -> tuple[str, ...]:
    """Names without repetition; one string stands for itself alone, and a set, which has no order, is sorted."""
    if isinstance(value, str):
        value = [value]
    expected = f"`{name}` must be one name or a list of names, such as {example}"
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{expected}; got {described(value)}")
    names = list(value)
    for item in names:
        if not isinstance(item, str) or not item:
            raise ValueError(f"{expected}; got {described(item)} in it")
    if not names:
        raise ValueError(f"{expected}; got none")
    return tuple(dict.fromkeys(sorted(names) if isinstance(value, set | frozenset) else names))


def check_callable(value: object, name: str, example: str) -> Callable[..., Any]:
    """A function, also one that is named ``"package.module:function"``; `example` shows one."""
    found, problem = value, ""
    if isinstance(value, str):
        module, _, function = value.partition(":")
        try:
            found = attrgetter(function)(import_module(module))
        except Exception as error:  # importing runs any code
            problem = f" ({type(error).__name__}: {error})"
    if not callable(found):
        raise ValueError(
            f'`{name}` must be a function, such as {example}, or name one as "package.module:function"; '
            f"got {described(value)}{problem}"
        )
    return found


def listed(names: Iterable[str], most: int = 8, separator: str = ", ") -> str:
    """The first names, and how many there are besides; a message never lists hundreds."""
    found = list(names)
    return separator.join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "") or "none"


def described(value: object) -> str:
    """A value as a message shows it, with its type, which is not always seen: ``'3' (str)``."""
    return "None" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"


def warn_renamed(old: str, new: str) -> None:
    """Warn who called the function that calls this one, with an argument by its old name."""
    warnings.warn(f"`{old}` is now `{new}`; the old name will go", DeprecationWarning, stacklevel=3)
