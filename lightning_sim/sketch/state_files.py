"""States of sketches as files: safetensors with a checked description, read without running code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_sim._owned_files import replace_file
from lightning_sim._version import __version__
from lightning_sim.sketch.bucket_sums import BucketSums
from lightning_sim.sketch.description import (
    FIELDS,
    FORMAT,
    FORMAT_VERSION,
    BadFieldError,
    content_of,
    is_matrix,
    parse_content,
    tensor_name,
)

__all__ = ["SUFFIX", "is_sketch_file", "read_one_state", "read_states", "write_states"]

SUFFIX = ".safetensors"
_LARGEST_HALF = 2.0**15  # a power of two below the largest float16, 65504
_DTYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def write_states(
    path: Path | str,
    fields: Mapping[str, Any],
    held: Sequence[tuple[str, str, BucketSums]],
    logits: Tensor | None = None,
    dtype: str | None = None,
) -> None:
    """Write sums, each with its representation and layer, to one file; see `save_sketches`, which says the rest.

    `fields` are those of a `SketchSet`; what is left out is empty, or -1 for numbers.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"`path` must end in {SUFFIX}, got {str(path)!r}")
    if dtype not in (None, "float16"):
        raise ValueError(f'`dtype` must be None (as the sketch is) or "float16", got {dtype!r}')
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for representation, layer, sketch in held:
        if not sketch.count:
            raise ValueError(f"the sketch of {representation}/{layer} holds no samples, there is nothing to save")
        state = sketch.state_dict()
        sums = state.pop("sums")
        scales = _halve(sums, sketch.count) if dtype == "float16" else {}
        tensors |= {tensor_name(len(entries), name): value.contiguous() for name, value in sums.items()}
        entries.append({"layer": layer, "representation": representation, "state": state, "scales": scales})
    if not entries:
        raise ValueError("there are no sketches to save")
    description = {name: fields.get(name, "" if kind is str else -1) for name, kind in FIELDS.items()}
    if logits is not None:
        tensors["logits"] = logits.detach().float().cpu().contiguous()
    shape = None if logits is None else list(logits.shape)
    content = json.dumps({**description, "logits": shape, "sketches": entries}, allow_nan=False)
    parse_content(content)  # what could not be read back is not written
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "content": content,
        "sha256": _digest(__version__ + content, tensors),
    }
    replace_file(path, save(tensors, metadata)).release()


def read_states(path: Path | str) -> tuple[dict[str, Any], list[tuple[str, str, dict[str, Any]]]]:
    """The fields of a `SketchSet`, and representation, layer and state of every sketch in a file, on the CPU.

    Nothing in the file is executed, and all of it is checked first; `load_sketches` says what it raises.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no sketch file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            content = content_of(file.metadata() or {})
            description = parse_content(content)
            expected = {name: like for entry in description["sketches"] for name, like in entry["expected"].items()}
            if description["logits"] is not None:
                expected["logits"] = torch.empty(description["logits"], device="meta")
            _check_tensors(file, expected)
            tensors = {name: file.get_tensor(name).clone() for name in expected}
            metadata = file.metadata()
            if _digest(str(metadata.get("package_version")) + content, tensors) != metadata["sha256"]:
                raise BadFieldError("sha256", "does not fit the content: the file was changed or damaged")
    except BadFieldError as error:
        raise ValueError(f"{path} is not a usable sketch file: {error}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    states = []
    for entry in description["sketches"]:
        sums = {name.partition(".")[2]: tensors[name] for name in entry["expected"]}
        states.append((entry["representation"], entry["layer"], _restored(entry["state"], sums, entry["scales"])))
    return {**{name: description[name] for name in FIELDS}, "logits": tensors.get("logits")}, states


def read_one_state(path: Path | str) -> dict[str, Any]:
    """The state dictionary of the only sketch in a file; `load_sketch` says what it raises."""
    states = read_states(path)[1]
    if len(states) != 1:
        names = ", ".join(f"{name}/{layer}" for name, layer, _ in states[:8])
        raise ValueError(f"{path} holds {len(states)} sketches ({names}), expected one; read it with load_sketches")
    return states[0][2]


def is_sketch_file(path: Path) -> bool:
    """Whether a file calls itself one of ours, readable or not."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (SafetensorError, OSError):
        return False


def _check_tensors(file: Any, expected: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and dtypes in the file's header, before any of its content is read."""
    held = set(file.keys())
    for name in sorted(expected.keys() | held):
        if name not in held or name not in expected:
            raise BadFieldError(name, "is not described" if name in held else "is described, but not in the file")
        found = (_DTYPES.get(file.get_slice(name).get_dtype()), tuple(file.get_slice(name).get_shape()))
        wanted = (expected[name].dtype, tuple(expected[name].shape))
        if found != wanted:
            raise BadFieldError(name, f"has dtype and shape {found}, and the description asks for {wanted}")


def _halve(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Replace the sums over buckets by scaled float16, in place; tensor -> what to multiply it with."""
    scales = {}
    for name, value in sums.items():
        if is_matrix(name, value):
            # Centred: next to a mean much larger than the spread, rounding would take the spread away.
            centered = value.double() - _mean_part(name, sums, count)
            largest = float(centered.abs().nan_to_num(0, 0).max())
            # Divided by a power of two without rounding; float16 keeps its precision over nine decimal orders below.
            scales[name] = 2.0 ** math.ceil(math.log2(max(largest, 1e-300) / _LARGEST_HALF))
            sums[name] = (centered / scales[name]).half()
    return scales


def _restored(state: Mapping[str, Any], sums: dict[str, Tensor], scales: Mapping[str, float]) -> dict[str, Any]:
    """The state dictionary of a sketch from a description and the sums in the file, brought to their scale."""
    for name, scale in scales.items():
        value = sums[name].double() * scale + _mean_part(name, sums, state["count"])
        sums[name] = value.to(sums["bucket_ones"].dtype)
    return {**state, "sums": sums}


def _mean_part(name: str, sums: Mapping[str, Tensor], count: int) -> Tensor:
    """(S1) mu', what centring takes from the sums over buckets (folds, M, c)."""
    if name != "bucket_sums":
        return torch.zeros((), dtype=torch.float64, device="cpu")
    return sums["bucket_ones"].double()[:, None] * (sums["feature_sums"] / count)[:, None, :]


def _digest(description: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
