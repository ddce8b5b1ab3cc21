"""Sketches as files, one or all of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning_sim.sketch.description import FIELDS
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.sketch_set import SketchSet
from lightning_sim.sketch.state_files import read_states, write_states

__all__ = ["load_sketch", "load_sketches", "save_sketch", "save_sketches"]


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
    sketch.save(path, layer=layer, representation=representation, network=network, probe=probe, dtype=dtype)


def load_sketch(path: Path | str) -> Sketch:
    """The only sketch in a file, on the CPU; see `load_sketches`.

    Raises:
        ValueError: as `load_sketches`, and when the file holds several sketches.
    """
    return Sketch.load(path)


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
    sketches = [(name, layer, sketch) for name, layers in held.sketches.items() for layer, sketch in layers.items()]
    write_states(path, {name: getattr(held, name) for name in FIELDS}, sketches, held.logits, dtype)


def load_sketches(path: Path | str) -> SketchSet:
    """Read a file of sketches, on the CPU, after checking all of it; nothing in it is executed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is truncated, changed, of another program or of a newer version; it names the file and
            the field.
    """
    fields, states = read_states(path)
    sketches: dict[str, dict[str, Sketch]] = {}
    for representation, layer, state in states:
        sketches.setdefault(representation, {})[layer] = Sketch.from_state_dict(state)
    return SketchSet(sketches, **fields)
