"""Files that are no readable checkpoint are refused in our words; nothing in them is executed."""

import os
import pickle
import random
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_sim import Reference
from lightning_sim._checkpoints import load_state_dict


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def zipped(folder):
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, folder / "whole.ckpt")
    return (folder / "whole.ckpt").read_bytes()


def legacy(folder):
    torch.save(network().state_dict(), folder / "whole.pt", _use_new_zipfile_serialization=False)
    return (folder / "whole.pt").read_bytes()


def safetensors(folder):
    save_file(network().state_dict(), folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def refusal(path):
    """What is said about a file, and not in torch's words."""
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")) as refused:
        load_state_dict(path)
    assert refused.value.__context__ is None or refused.value.__suppress_context__  # nor in the traceback
    assert "weights_only" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><head>", "is a web page"),
        (b"Entry not found", "a text file, which begins with 'Entry not found'"),
        (b"\xff" * 64, "damaged"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, suffix, content, said):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert said in refusal(path)
    if said != "damaged":  # known from the beginning of the file: before there is a network
        with pytest.raises(ValueError, match="weights"):
            Reference(path)


def test_names_that_say_another_format_are_corrected(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(safetensors(tmp_path))
    assert "let it end in .safetensors" in refusal(tmp_path / "a.ckpt")
    for make in (zipped, legacy):
        (tmp_path / "a.safetensors").write_bytes(make(tmp_path))
        assert "let it end in .ckpt or .pt" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3}, "no state dict of tensors, its keys are: epoch"),
        ({}, "its keys are: none"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"state_dict": {"a": 1}}, "no state dict of tensors"),
        ({"state_dict": 3}, "holds a int"),
        ({"a": torch.zeros(3, device="meta")}, "without values"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"a": np.zeros(3)}, "multiarray._reconstruct"),
        ({"state_dict": {}, "hyper_parameters": Path("x")}, "pathlib.PosixPath"),
    ],
)
def test_content_without_weights_is_named(tmp_path, content, said):
    path = tmp_path / "content.ckpt"
    torch.save(content, path)
    message = refusal(path)
    assert said in message
    assert "torch.save(network.state_dict()" in message or "save the network" in message


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_code_in_a_file_is_refused_without_the_advice_to_run_it(tmp_path, options):
    torch.save({"state_dict": {"a": Touch(tmp_path / "ran")}}, tmp_path / "evil.ckpt", **options)
    assert "run" in refusal(tmp_path / "evil.ckpt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    assert "run" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_archives_of_other_programs_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    assert "first versions of torch" in refusal(tmp_path / "old.pt")
    with (tmp_path / "numpy.bin").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "no file of torch.save" in refusal(tmp_path / "numpy.bin")


def test_paths_that_are_no_files_are_named(tmp_path):
    (tmp_path / "sharded.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"is a folder.*zero_to_fp32"):
        Reference(tmp_path / "sharded.ckpt")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    with pytest.raises(FileNotFoundError, match="link that leads nowhere"):
        Reference(tmp_path / "loop.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt does not exist"):
        Reference(tmp_path / "none.ckpt")


def test_a_file_that_may_not_be_opened_is_refused(tmp_path, monkeypatch):
    zipped(tmp_path)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ValueError, match=r"whole\.ckpt cannot be read: Permission denied"):
        Reference(tmp_path / "whole.ckpt")


@pytest.mark.parametrize(("make", "suffix"), [(zipped, ".ckpt"), (legacy, ".pt"), (safetensors, ".safetensors")])
def test_damage_anywhere_is_refused_in_words_or_gives_tensors(tmp_path, make, suffix):
    whole = make(tmp_path)
    draw = random.Random(0)
    path = tmp_path / f"damaged{suffix}"
    refusals = []
    for number in range(200):
        damaged = bytearray(whole)
        place = draw.randrange(len(whole))
        if number % 4 == 0:
            damaged = damaged[:place]
        elif number % 4 == 1:
            damaged[place] ^= 1 << draw.randrange(8)
        elif number % 4 == 2:
            damaged[place : place + 30] = draw.randbytes(30)
        else:
            del damaged[place : place + draw.randrange(1, 60)]
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, torch.Tensor) for value in load_state_dict(path).values())
        except ValueError as error:
            refusals.append(error)
    assert len(refusals) > 100
    for refused in refusals:
        assert refused.__context__ is None or refused.__suppress_context__
        assert str(path) in str(refused)
        assert "weights_only" not in str(refused)
