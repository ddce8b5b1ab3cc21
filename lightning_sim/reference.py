"""What the network is compared with: its own start, an earlier epoch, a checkpoint, or another network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lightning_sim._arguments import described
from lightning_sim._checkpoints import load_state_dict, require_checkpoint
from lightning_sim.probe.samples import tensor_bytes
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch, SketchSet, load_sketches
from lightning_sim.sketch.hashing import fingerprint
from lightning_sim.sketch.state_files import is_sketch_file

__all__ = ["Reference"]

_MOVING = ("init", "previous")


class Reference:
    """The network that every measurement compares with.

    Args:
        source: one of

            - ``"init"``: the network as it is when training starts (on resume, as it was then);
            - ``"previous"``: the network at the measurement before;
            - the path of a Lightning checkpoint (``.ckpt``), or of a state dict (``.safetensors``, ``.pt``, ``.pth``,
              ``.bin``) of a network built like the monitored one;
            - the path of a file of sketches (``.safetensors``), as ``SimilarityMonitor(save_sketches=True)`` or
              :func:`lightning_sim.sketch.save_sketches` writes it: the reference's network is not needed;
            - an ``nn.Module`` or ``LightningModule``, of any architecture. It is run in evaluation mode and never
              changed.

    Loading a file never executes code from it: pickled checkpoints are read with torch's ``weights_only``, and one that
    holds code objects is refused.

    Raises:
        ValueError: for an unknown source, or a file type that is not one of these.
        FileNotFoundError: for a path that does not exist.

    Example:
        >>> from lightning_sim import Reference
        >>> Reference("init").describe()
        {'kind': 'init'}
    """

    def __init__(self, source: str | Path | nn.Module | Reference) -> None:
        self.kind: str
        self.module: nn.Module | None = None
        self.path: Path | None = None
        self.saved: SketchSet | None = None
        if isinstance(source, Reference):
            self.module, self.path, self.kind, self.saved = source.module, source.path, source.kind, source.saved
        elif isinstance(source, nn.Module):
            self.module, self.kind = source, "module"
        elif isinstance(source, str) and source in _MOVING:
            self.kind = source
        elif isinstance(source, str | Path) and str(source):
            self.path, self.kind = Path(source), "checkpoint"
            require_checkpoint(self.path)
            if self.path.suffix == ".safetensors" and is_sketch_file(self.path):
                self.kind, self.saved = "sketches", load_sketches(self.path)
        else:
            raise ValueError(
                '`reference` must be "init", "previous", the path of a checkpoint, an nn.Module or a Reference, '
                f"got {described(source)}"
            )

    def __repr__(self) -> str:
        source = type(self.module).__name__ if self.module is not None else self.path or self.kind
        return f"Reference({str(source)!r})"

    @classmethod
    def from_sketches(cls, path: str | Path) -> Reference:
        """A network of which only its saved sketches are at hand.

        Raises:
            FileNotFoundError: for a path that does not exist.
            ValueError: when the file is damaged, or no file of sketches; it names the field.
        """
        if not isinstance(path, str | Path):
            raise ValueError(f"`path` must be the path of a file of sketches, got {described(path)}")
        load_sketches(path)  # says why, where `Reference(path)` would take another file for a state dict
        return cls(path)

    def describe(self) -> dict[str, Any]:
        """Kind, and path and content hash or class, as the record states them.

        Raises:
            ValueError: for a module whose parameters have no values yet.
        """
        if self.path is not None:
            return {"kind": self.kind, "path": str(self.path), "sha256": _sha256(self.path)}
        if self.module is not None:
            _require_values(self.module)
            return {"kind": self.kind, "class": type(self.module).__name__, "sha256": _sha256_of_weights(self.module)}
        return {"kind": self.kind}

    def weights_for(self, network: nn.Module) -> dict[str, Tensor] | None:
        """The checkpoint's parameters and buffers under the network's names; None where there is no checkpoint.

        Prefixes that wrapping leaves (``_orig_mod.``, ``module.``) are ignored, and a state dict of the only part of
        the network that it fits (``net``, say) is taken for that part.

        Raises:
            ValueError: when the file cannot be read safely, or the keys or shapes do not fit, with their names.
        """
        if self.path is None or self.saved is not None:
            return None
        return _fitted(load_state_dict(self.path), network, self.path)

    def snapshot(
        self,
        probe: str,
        num_samples: int,
        empty: Sketch,
        representations: Sequence[str] = ("features",),
        gradients: str = "",
    ) -> Snapshot | None:
        """The saved sketches and outputs, if they can be compared with those made now; None where nothing is saved.

        Args:
            probe: fingerprint of the probe's content.
            num_samples: of the probe.
            empty: a sketch as it is made now.
            representations: that are needed.
            gradients: whose gradients are taken now, in words.

        Raises:
            ValueError: when they are of another probe, of gradients of another loss, or of other sizes or another seed,
                with what would work.
        """
        if self.saved is None:
            return None
        sketches = {representation: dict(self.saved.of(representation)) for representation in representations}
        settings = ("num_buckets", "num_projections", "seed", "dtype")
        for layer, sketch in (item for layers in sketches.values() for item in layers.items()):
            if any(getattr(sketch, name) != getattr(empty, name) for name in settings):
                wanted = ", ".join(f"{name}={getattr(sketch, name)}" for name in settings)
                raise ValueError(f"{self.path}: the sketch of {layer!r} was made with {wanted}; monitor with the same")
            if self.saved.probe:
                continue
            if (sketch.count, sketch.fingerprint) != (num_samples, fingerprint(torch.arange(num_samples))):
                raise ValueError(
                    f"{self.path}: the sketch of {layer!r} is of {sketch.count} samples whose ids are not those of the "
                    f"probe, 0 to {num_samples - 1}; pass the probe that it was made on"
                )
        for representation in representations:
            SketchSet({}, probe=probe, gradients=gradients).require_comparable(self.saved, representation)
        logits = self.saved.logits if self.saved.logits is not None and len(self.saved.logits) == num_samples else None
        problem = None if logits is not None else "is not in the file of sketches"
        return Snapshot(sketches, logits, output_problem=problem)


def _fitted(state: Mapping[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    current = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    names = {_plain(name): name for name in current}
    wanted = {plain: current[name] for plain, name in names.items()}
    given = {_plain(name): value for name, value in state.items()}
    candidate = next((renamed for renamed in _renamings(given, network) if renamed.keys() == wanted.keys()), given)
    missing = sorted(wanted.keys() - candidate.keys())
    unexpected = sorted(candidate.keys() - wanted.keys())
    reshaped = sorted(
        f"{name} {tuple(candidate[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted.keys() & candidate.keys()
        if candidate[name].shape != wanted[name].shape
    )
    if missing or unexpected or reshaped:
        raise ValueError(
            f"the state dict in {path} does not fit {type(network).__name__}: "
            f"missing {_some(missing)}; unexpected {_some(unexpected)}; of another shape {_some(reshaped)}. "
            "To compare with another architecture, pass the reference as an nn.Module"
        )
    return {
        names[plain]: candidate[plain].to(device=value.device, dtype=value.dtype)
        for plain, value in wanted.items()
    }


def _renamings(given: Mapping[str, Tensor], network: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The state dict as it is, then as that of a part of the network, then as that of something around it."""
    yield given
    for child, _ in network.named_children():
        yield {f"{child}.{name}": value for name, value in given.items()}
    first = next(iter(given)).partition(".")[0]
    if all(name.startswith(f"{first}.") for name in given):
        yield {name.removeprefix(f"{first}."): value for name, value in given.items()}


def _plain(name: str) -> str:
    # What torch.compile and DataParallel put in front of the names of what they wrap.
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _require_values(module: nn.Module) -> None:
    lacking = [
        name
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_meta or isinstance(value, UninitializedParameter | UninitializedBuffer)
    ]
    if lacking:
        raise ValueError(
            f"the reference {type(module).__name__} has no values for {_some(lacking)}: they are on the device meta or "
            "of a lazy module; load its weights, or run it once, before training"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(tensor_bytes(value))
    return digest.hexdigest()
