"""Reading the weights from a checkpoint file without running code from it, and saying why where that fails."""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sim._model_folder import weight_files
from lightning_sim._sharded_folder import METADATA, read_shards

__all__ = ["load_state_dict", "require_checkpoint"]

_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
_ZIP, _END_OF_ZIP, _PICKLE = b"PK\x03\x04", b"PK\x05\x06", b"\x80"


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint file, or in a folder's, by name, without executing anything from it.

    Of a file that holds more than a state dict, it is what lies under ``state_dict``, ``model_state_dict`` or
    ``model``, or else the only mapping of tensors in it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged or of another kind, holds code objects, or holds no state dict or several.
    """
    require_checkpoint(path)
    return {name: value for file in weight_files(path) for name, value in _state_in_file(file).items()}


def require_checkpoint(path: Path) -> None:
    """Refuse a path, and a file by how it begins, that cannot be a checkpoint.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is a folder without weights, cannot be opened, or is of another kind.
    """
    if path.is_dir():
        for part in weight_files(path):
            if part.name != METADATA:
                require_checkpoint(part)
        return
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f'`reference` {str(path)!r} is neither "init" nor "previous" '
            f"nor a file ending in {', '.join(_SUFFIXES)}, nor a folder. A network on a hub is downloaded by you: "
            "huggingface_hub.snapshot_download(...) gives its folder"
        )
    if not path.is_file():
        broken = " (it is a link that leads nowhere)" if path.is_symlink() else ""
        raise FileNotFoundError(f"the reference checkpoint {path} does not exist{broken}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    problem = _other_kind(head, path.suffix == ".safetensors")
    if problem is not None:
        raise ValueError(f"{path} {problem}")


def _state_in_file(path: Path) -> dict[str, Tensor]:
    try:
        content = _read(path)
    except Exception as error:  # damaged bytes lead anywhere; and torch's message advises to run the file's code
        raise ValueError(_refusal(path, error)) from None
    state = content
    while isinstance(state, Mapping) and (inner := _container(state, path)) is not None:
        state = state[inner]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict; {_SAVE}")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(state)[:10]))
        raise ValueError(f"{path} holds no state dict of tensors, its keys are: {keys or 'none'}; {_SAVE}")
    if any(value.is_meta for value in tensors.values()):
        raise ValueError(f"{path} holds tensors without values, on the device meta; save the network after loading it")
    return tensors


def _container(state: Mapping[Any, Any], path: Path) -> Any:
    """Under which key the state dict lies; None where this is it."""
    for key in ("state_dict", "model_state_dict", "model"):
        if key in state and not isinstance(state[key], Tensor):
            return key
    if any(isinstance(value, Tensor) for value in state.values()):
        return None
    inner = [
        key
        for key, part in state.items()
        if isinstance(part, Mapping) and any(isinstance(value, Tensor) for value in part.values())
    ]
    if len(inner) > 1:
        raise ValueError(f"{path} holds several state dicts, {', '.join(map(str, inner))}; save the one that is meant")
    return inner[0] if inner else None


def _read(path: Path) -> Any:
    if path.name == METADATA:
        return read_shards(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise ValueError("TorchScript")  # which torch 2.4 runs all the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is refused
        return torch.load(path, map_location="cpu", weights_only=True)


_SAVE = "save the weights alone: torch.save(network.state_dict(), 'reference.pt')"
_AGAIN = "copy, download or save it again"


def _other_kind(head: bytes, safetensors: bool) -> str | None:
    """What a file is, by how it begins, where it is no checkpoint of the kind that its name says."""
    if not head:
        return f"is empty; {_AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, which stands for the file; fetch the file itself with `git lfs pull`"
    if head.lstrip().startswith(b"<"):
        return "is a web page or XML, as a download that needs a log-in leaves it; download the file itself"
    if head[8:9] == b"{" and not safetensors:  # after the length of its header
        return "holds safetensors, but its name says otherwise; let it end in .safetensors"
    if head.startswith((_ZIP, _PICKLE)) and head[8:9] != b"{" and safetensors:
        return "holds a checkpoint of torch.save, but its name says safetensors; let it end in .ckpt or .pt"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"is a text file, which begins with {head[:40].decode()!r}; pass the file with the weights"
    return None


def _refusal(path: Path, error: Exception) -> str:
    """Why a file was not read, in words of our own: torch's advise to read it with weights_only=False."""
    text = str(error)
    if isinstance(error, MemoryError) or "not enough memory" in text or "can't allocate memory" in text:
        return f"{path} asks for more memory than there is, or is damaged"
    if path.suffix == ".safetensors":
        return f"{path} is not a readable safetensors file, its content is incomplete or damaged; {_AGAIN}"
    if "TorchScript" in text:
        return f"{path} is a TorchScript archive, which is code; {_SAVE}"
    if tarfile.is_tarfile(path):
        return f"{path} is in the tar format of the first versions of torch; load it with one of them, and {_SAVE}"
    # The object that is not on torch's list of harmless ones.
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found is not None:
        return (
            f"{path} was refused, because reading it would run code stored in it ({found[1]}). Only tensors and plain "
            f"values are read. If you trust the file, load it yourself and pass the network, or {_SAVE}"
        )
    if path.name == METADATA:
        return f"{path.parent} is a folder of shards that is damaged, or lacks some of its files; {_AGAIN}"
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
        file.seek(max(0, path.stat().st_size - 2**17))
        tail = file.read()
    if head.startswith(_PICKLE) or "Unsupported operand" in text:  # which also damage looks like
        return f"{path} is a pickle that cannot be read without running code from it, or damaged; {_SAVE}"
    problem = "its end is missing" if head == _ZIP and _END_OF_ZIP not in tail else "it is damaged"
    return f"{path} is not a readable checkpoint: {problem}, or it is no file of torch.save; {_AGAIN}"
