"""Third-party values with their inputs, read from the files in this folder (its README describes them)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent

# The README of the golden values: these do not survive a cast to float32 unless rank tolerances follow the
# dtype.
ILL_CONDITIONED = frozenset({"offset", "scale_columns", "low_rank"})


@dataclass(frozen=True)
class Golden:
    """One value to reproduce."""

    case: str
    measure: str
    params: dict[str, Any]
    value: Any
    inputs: dict[str, Any]
    rtol: float
    atol: float

    @property
    def well_conditioned(self) -> bool:
        """Whether 1e-4 relative may be expected of float32."""
        return self.case not in ILL_CONDITIONED

    def arrays(self, dtype: torch.dtype = torch.float64) -> list[Any]:
        """The inputs in the order of the JSON (X, Y; Fx, Gx, Fy, Gy; lists of weights for wCKA)."""
        file = self.inputs["file"]
        return [
            [_array(file, k).to(dtype) for k in key] if isinstance(key, list) else _array(file, key).to(dtype)
            for name, key in self.inputs.items()
            if name != "file"
        ]

    def assert_reproduced_by(self, got: Any, *, rtol: float | None = None, atol: float | None = None) -> None:
        """Fail unless |got - value| <= atol + rtol |value|, by default at the row's own tolerance."""
        np.testing.assert_allclose(
            torch.as_tensor(got).detach().double().numpy(),
            np.asarray(self.value, dtype=np.float64),
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            err_msg=str(self),
        )

    def assert_reproduced_in_both_dtypes(
        self, reproduce: Callable[[Golden, torch.dtype], Tensor], *, rtol: float = 1e-4, atol: float = 0.0
    ) -> None:
        """Fail unless `reproduce`, of this and a dtype, gives the value in it: float32 within `rtol` and `atol`."""
        for dtype, tolerance in ((torch.float64, {}), (torch.float32, {"rtol": rtol, "atol": atol})):
            value = reproduce(self, dtype)
            assert value.dtype == dtype
            self.assert_reproduced_by(value, **tolerance)

    def __str__(self) -> str:
        return "-".join([self.case, *(f"{name}={value}" for name, value in self.params.items())])


def reference_rows(measure: str, **params: Any) -> list[Golden]:
    """All reference values of `measure` whose params contain `params`; use `ids=str` when parametrising."""
    rows = [
        Golden(row["case"], row["measure"], row["params"], row["value"], row["inputs"], **row["tolerance"])
        for row in _rows()
        if row["status"] == "reference"
        and row["measure"] == measure
        and all(row["params"].get(name) == value for name, value in params.items())
    ]
    if not rows:
        raise LookupError(f"no reference value for {measure!r} with {params}")
    return rows


@functools.cache
def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((_FOLDER / "golden.json").read_text())
    return rows


@functools.cache
def _file(name: str) -> dict[str, np.ndarray]:
    with np.load(_FOLDER / name) as arrays:
        return dict(arrays)


def _array(file: str, key: str) -> Tensor:
    return torch.from_numpy(_file(file)[key].copy())
