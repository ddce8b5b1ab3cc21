"""The description in a sketch file: what it must say, and the tensors that have to go with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_sim._version import __version__
from lightning_sim.sketch.bucket_sums import BucketSums

__all__ = [
    "FIELDS",
    "FORMAT",
    "FORMAT_VERSION",
    "BadFieldError",
    "content_of",
    "is_matrix",
    "parse_content",
    "tensor_name",
]

FORMAT = "lightning-sim sketches"
FORMAT_VERSION = "1"
FIELDS = {"network": str, "probe": str, "gradients": str, "epoch": int, "step": int}


class BadFieldError(ValueError):
    """A field of a file that is missing, or not what it has to be."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}` {problem}")


def content_of(metadata: Mapping[str, str]) -> str:
    """The JSON in a file's metadata, if the file is one of ours and of a version that can be read."""
    if metadata.get("format") != FORMAT:
        raise BadFieldError("format", f"is {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise BadFieldError(
            "format_version",
            f"is {metadata.get('format_version')!r}, and lightning-sim {__version__} reads {FORMAT_VERSION!r}; the "
            f"file was written by lightning-sim {metadata.get('package_version')!r}: install that version or a newer",
        )
    for field in ("content", "sha256"):
        if field not in metadata:
            raise BadFieldError(field, "is missing")
    return metadata["content"]


def parse_content(content: str) -> dict[str, Any]:
    """The description, in which every sketch has under "expected" what its tensors must look like."""
    try:
        found: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadFieldError("content", f"is no JSON: {error}") from error
    entries = found.get("sketches") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadFieldError("content.sketches", "is not a list of sketches")
    for name, kind in FIELDS.items():
        if type(found.get(name)) is not kind:
            raise BadFieldError(f"content.{name}", f"is {found.get(name)!r}, expected {kind.__name__}")
        if kind is int:
            _require_64_bits(found[name], f"content.{name}")
    shape = found.get("logits", "missing")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 2**31 for n in shape)
    ):
        raise BadFieldError("content.logits", f"is {shape!r}, expected a shape (samples, classes)")
    seen = set()
    for index, entry in enumerate(entries):
        where = f"content.sketches[{index}]"
        for name, kind in {"layer": str, "representation": str, "state": dict, "scales": dict}.items():
            if not isinstance(entry, dict) or type(entry.get(name)) is not kind:
                raise BadFieldError(f"{where}.{name}", f"is missing or no {kind.__name__}")
        key = (entry["representation"], entry["layer"])
        if key in seen:
            raise BadFieldError(where, f"repeats the layer {'/'.join(key)!r}")
        seen.add(key)
        entry["expected"] = _expected(index, entry["state"], entry["scales"], where)
    return found


def _expected(index: int, state: dict[str, Any], scales: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Tensors without memory, of the shapes and dtypes that the numbers in the description ask for."""
    known = BucketSums().state_dict()
    del known["sums"]
    state.setdefault("num_directions", 0)  # which earlier versions did not know
    for name in sorted(known.keys() | state.keys()):
        value = state.get(name)
        if name not in known:
            raise BadFieldError(f"{where}.state.{name}", "is unknown to this version")
        if name not in state or not _fits(value, known[name]):
            problem = f"is {value!r}, expected {type(known[name]).__name__}" if name in state else "is missing"
            raise BadFieldError(f"{where}.state.{name}", problem)
        if isinstance(value, int):
            _require_64_bits(value, f"{where}.state.{name}")
    # Of factors, every bucket holds at most one sample. Means are divided in float64, which counts up to 2^53.
    most = state["num_buckets"] if state["factors"] else 2**53
    folded = not state["gradient_width"] and state["width"] > state["num_projections"]
    ranges = {"count": (1, most), "width": (1, 2**53), "gradient_width": (0, 2**53)}
    ranges["num_directions"] = 0, state["num_projections"] // 4 if folded else 0
    for name, (lowest, highest) in ranges.items():
        if not lowest <= state[name] <= highest:
            raise BadFieldError(f"{where}.state.{name}", f"is {state[name]}, expected {lowest} to {highest}")
    try:
        sketch = BucketSums.from_state_dict({**state, "sums": {}})
        sketch.allocate(sketch.width, "meta", sketch.gradient_width)
        if not state["factors"]:
            sketch.sketch_factors()
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadFieldError(f"{where}.state", f"describes no sketch: {error}") from error
    if state["factors"] != sketch.keeps_factors:
        raise BadFieldError(f"{where}.state.factors", "is true, and sketches of these widths keep none")
    sums = sketch._sums
    for name, scale in scales.items():
        if not is_matrix(name, sums.get(name)) or not isinstance(scale, float) or not 0 < scale < math.inf:
            raise BadFieldError(f"{where}.scales.{name}", f"is {scale!r}, expected the positive scale of a matrix")
    return {tensor_name(index, name): value.half() if name in scales else value for name, value in sums.items()}


def is_matrix(name: str, value: Tensor | None) -> bool:
    """Whether this sum of a sketch is a large one, over buckets and columns."""
    return value is not None and name.startswith("bucket_") and value.ndim >= 2


def tensor_name(index: int, name: str) -> str:
    """Of a sum of the sketch that stands at `index` in the description."""
    # Layers' names stay in the description: they may hold anything.
    return f"{index}.{name}"


def _require_64_bits(value: int, field: str) -> None:
    if not -(2**63) <= value < 2**63:
        raise BadFieldError(field, "does not fit into 64 bits")


def _fits(value: object, example: object) -> bool:
    # Settings that are not in use are None in a new sketch.
    return type(value) is type(example) or (example is None and isinstance(value, str | int | float))
