"""Arguments that became keyword-only, and can be given by position for a while longer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["formerly_positional"]

Function = TypeVar("Function", bound=Callable[..., Any])


def formerly_positional(last: str) -> Callable[[Function], Function]:
    """Take keyword-only arguments up to `last` by position as well, with a DeprecationWarning that names them."""

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
        names = [parameter.name for parameter in parameters][positional:]
        movable = names[: names.index(last) + 1]

        @wraps(function)
        def called(*given: Any, **keywords: Any) -> Any:
            moved = dict(zip(movable, given[positional:], strict=False))
            if moved:
                owner = function.__qualname__.removesuffix(".__init__")
                written = ", ".join(f"{name}=..." for name in moved)
                warnings.warn(f"{owner} takes by keyword: {written}", DeprecationWarning, stacklevel=2)
            # What is left is too much, and refused as always.
            return function(*given[:positional], *given[positional + len(moved) :], **moved, **keywords)

        return called  # type: ignore[return-value]  # to type checkers they are keyword-only

    return decorate
