"""Sketches as files: safetensors with a checked description, written in one piece and read without running code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_sim._owned_files import replace_file
from lightning_sim._version import __version__
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
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.sketch_set import SketchSet

__all__ = ["is_sketch_file", "load_sketch", "load_sketches", "save_sketch", "save_sketches"]

SUFFIX = ".safetensors"
_LARGEST_HALF = 2.0**15  # a power of two below the largest float16, 65504
_DTYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def save_sketch(
    sketch: Sketch,
    path: Path | str,
    *,
    layer: str = "",
    representation: str = "features",
    network: str = "",
    probe: str = "",
    dtype: Literal["float16"] | None = None,
) -> None:
    """Write one sketch to a file, as a set of one layer; see `save_sketches`.

    Example:
        >>> import tempfile, torch
        >>> from lightning_sim.sketch import Sketch, load_sketch, save_sketch
        >>> sketch = Sketch(num_buckets=64, num_projections=32)
        >>> sketch.update(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_sketch(sketch, f"{folder}/layer3.safetensors", layer="layer3", network="teacher")
        ...     again = load_sketch(f"{folder}/layer3.safetensors")
        >>> round(float(again.cka(sketch)), 4)
        1.0
    """
    save_sketches(SketchSet({representation: {layer: sketch}}, network, probe), path, dtype=dtype)


def load_sketch(path: Path | str) -> Sketch:
    """The only sketch in a file, on the CPU; see `load_sketches`.

    Raises:
        ValueError: as `load_sketches`, and when the file holds several sketches.
    """
    held = load_sketches(path)
    found = [(name, layer) for name, layers in held.sketches.items() for layer in layers]
    if len(found) != 1:
        names = ", ".join(f"{name}/{layer}" for name, layer in found[:8])
        raise ValueError(f"{path} holds {len(found)} sketches ({names}), expected one; read it with load_sketches")
    return held.sketches[found[0][0]][found[0][1]]


def save_sketches(held: SketchSet, path: Path | str, *, dtype: Literal["float16"] | None = None) -> None:
    """Write the sketches of a network to one file, atomically: an interrupted save leaves an older file as it was.

    The file is in safetensors; the JSON in its metadata names package and format version, network, probe, layer,
    representation, sizes, seed, sample count, fingerprint of the sample ids and dtype of every sketch, and a SHA-256 of
    everything. 4.2 MB a layer at the defaults of `Sketch`.

    Args:
        held: the sketches.
        path: ends in ``.safetensors``; its directory is made when needed.
        dtype: ``"float16"`` stores the sums in half precision, centred and scaled: half the size, at an error of CKA
            and NBS below 1e-3. They are read back as float32 or float64, as they were.

    Raises:
        ValueError: for another suffix or `dtype`, a set without sketches, or a sketch without samples.
        OSError: when the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"`path` must end in {SUFFIX}, got {str(path)!r}")
    if dtype not in (None, "float16"):
        raise ValueError(f'`dtype` must be None (as the sketch is) or "float16", got {dtype!r}')
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for representation, layers in held.sketches.items():
        for layer, sketch in layers.items():
            if not sketch.count:
                raise ValueError(f"the sketch of {representation}/{layer} holds no samples, there is nothing to save")
            state = sketch.state_dict()
            sums = state.pop("sums")
            scales = _halve(sums, sketch.count) if dtype == "float16" else {}
            tensors |= {tensor_name(len(entries), name): value.contiguous() for name, value in sums.items()}
            entries.append({"layer": layer, "representation": representation, "state": state, "scales": scales})
    if not entries:
        raise ValueError("there are no sketches to save")
    description: dict[str, Any] = {name: getattr(held, name) for name in FIELDS}
    description["logits"] = None
    if held.logits is not None:
        tensors["logits"] = held.logits.detach().float().cpu().contiguous()
        description["logits"] = list(held.logits.shape)
    content = json.dumps({**description, "sketches": entries}, allow_nan=False)
    parse_content(content)  # what could not be read back is not written
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "content": content,
        "sha256": _digest(__version__ + content, tensors),
    }
    replace_file(path, save(tensors, metadata)).release()


def load_sketches(path: Path | str) -> SketchSet:
    """Read a file of sketches, on the CPU, after checking all of it; nothing in it is executed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is truncated, changed, of another program or of a newer version; it names the file and
            the field.
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
    sketches: dict[str, dict[str, Sketch]] = {}
    for entry in description["sketches"]:
        sums = {name.partition(".")[2]: tensors[name] for name in entry["expected"]}
        sketch = _restored(entry["state"], sums, entry["scales"])
        sketches.setdefault(entry["representation"], {})[entry["layer"]] = sketch
    return SketchSet(sketches, **{name: description[name] for name in FIELDS}, logits=tensors.get("logits"))


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


def _restored(state: Mapping[str, Any], sums: dict[str, Tensor], scales: Mapping[str, float]) -> Sketch:
    for name, scale in scales.items():
        value = sums[name].double() * scale + _mean_part(name, sums, state["count"])
        sums[name] = value.to(sums["bucket_ones"].dtype)
    return Sketch.from_state_dict({**state, "sums": sums})


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
