import contextlib
import hashlib
import json
import math
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load, save, save_file

from lightning_sim.sketch import Sketch, mean_embedding_norm
from lightning_sim.sketch.sketch_set import SketchSet
from lightning_sim.sketch.state_files import is_sketch_file
from lightning_sim.sketch.storage import load_sketch, load_sketches, save_sketch, save_sketches
from tests.processes import Process

from .data import related, sketched

HOSTILE = ["../../etc/passwd", "/absolute", "", "a/b", "net.0", "..\\x", "\u2028 \0 ⚡", "con"]


def small(seed=0, samples=40, **settings):
    x, _ = related(samples, 12, rank=3, correlation=0.5, seed=seed)
    return sketched(x, **{"num_buckets": 64, "num_projections": 8} | settings)


def small_file(folder, **options):
    path = folder / "sketch.safetensors"
    save_sketch(small(), path, layer="conv", network="net", probe="abc", **options)
    return path


def rewritten(path, change, *, rehash=True):
    """The file with another description or other tensors, with a digest that fits if so asked."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    described, tensors = json.loads(metadata["content"]), load(content)
    change(metadata, described, tensors)
    if "content" in metadata:
        metadata["content"] = json.dumps(described)
    if rehash:
        digest = hashlib.sha256((metadata["package_version"] + metadata.get("content", "")).encode())
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
        metadata["sha256"] = digest.hexdigest()
    path.write_bytes(save(tensors, metadata))


@pytest.mark.parametrize("width", [30, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_comparing_what_was_saved_gives_the_same_bits(tmp_path, width, dtype):
    x, y = related(300, width, rank=10, correlation=0.7, seed=0, dtype=dtype)
    a, b = (sketched(z, num_buckets=128, num_projections=256, seed=3, dtype=dtype) for z in (x, y))
    for sketch, name in ((a, "a"), (b, "b")):
        save_sketch(sketch, tmp_path / f"{name}.safetensors")
    again_a, again_b = (load_sketch(tmp_path / f"{name}.safetensors") for name in "ab")
    for estimator in ("unbiased", "biased"):
        assert torch.equal(again_a.cka(again_b, estimator=estimator), a.cka(b, estimator=estimator))
    assert torch.equal(again_a.nbs(b), a.nbs(b))


def test_what_was_loaded_goes_on_growing(tmp_path):
    x, y = related(100, 20, rank=5, correlation=0.7, seed=0)
    save_sketch(sketched(x[:60]), tmp_path / "x.safetensors")
    sketch = load_sketch(tmp_path / "x.safetensors")
    sketch.update(x[60:80], torch.arange(60, 80))
    sketch.merge(sketched(x[80:], ids=torch.arange(80, 100)))
    assert float(sketch.cka(sketched(y))) == pytest.approx(float(sketched(x).cka(sketched(y))), abs=1e-6)


# As outer products, as tensor sketches, as factors, and as factors that were given up.
@pytest.mark.parametrize(("samples", "width"), [(300, 8), (300, 200), (200, 60), (300, 60)])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_sketches_of_features_and_gradients(tmp_path, samples, width, dtype):
    x, y = related(samples, width, rank=10, correlation=0.7, seed=0)
    a, b = Sketch(256, 128), Sketch(256, 128)
    a.update(x + 10, torch.arange(samples), gradients=y)
    b.update(y, torch.arange(samples), gradients=x + y)
    assert a.keeps_factors == ((samples, width) == (200, 60))
    save_sketch(a, tmp_path / "a.safetensors", representation="features*gradients", dtype=dtype)
    again = load_sketch(tmp_path / "a.safetensors")
    assert again.gradient_width == width
    assert again.keeps_factors == a.keeps_factors
    assert float(again.cka(b)) == pytest.approx(float(a.cka(b)), abs=0 if dtype is None else 1e-3)


@pytest.mark.parametrize(("dtype", "most"), [(None, 4.5e6), ("float16", 2.25e6)])
@pytest.mark.parametrize("width", [1024, 25_088])
def test_size_of_a_layer_at_defaults(tmp_path, dtype, most, width):
    save_sketch(sketched(torch.ones(200, width)), tmp_path / "x.safetensors", dtype=dtype)
    assert (tmp_path / "x.safetensors").stat().st_size <= most


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("width", [64, 2000])
def test_half_precision_storage_changes_little(tmp_path, scale, offset, width):
    x, y = related(600, width, rank=20, correlation=0.6, seed=0, dtype=torch.float64)
    x[:, ::2] *= 1e-3  # columns of very different scale
    a = sketched((x + offset) * scale, num_buckets=256, num_projections=512, dtype=torch.float64)
    b = sketched(y, num_buckets=256, num_projections=512, dtype=torch.float64)
    for sketch, name in ((a, "a"), (b, "b")):
        save_sketch(sketch, tmp_path / f"{name}.safetensors", dtype="float16")
    again_a, again_b = (load_sketch(tmp_path / f"{name}.safetensors") for name in "ab")
    assert again_a.dtype == torch.float64
    assert float(again_a.cka(again_b)) == pytest.approx(float(a.cka(b)), abs=1e-4)
    assert float(again_a.nbs(again_b)) == pytest.approx(float(a.nbs(b)), abs=1e-4)


def test_half_precision_storage_of_constant_and_broken_features(tmp_path):
    for features, problem in ((torch.full((50, 8), 0.7), "constant"), (torch.full((50, 8), torch.nan), "NaN")):
        save_sketch(sketched(features), tmp_path / "x.safetensors", dtype="float16")
        assert problem in load_sketch(tmp_path / "x.safetensors").problem()


def test_a_set_comes_back_as_it_was(tmp_path):
    layers = {name: small(seed=index) for index, name in enumerate(HOSTILE)}
    held = SketchSet({"features": layers, "gradients": {"a/b": small(seed=99)}}, "net", "abc", "of a loss", 3, 70)
    held.logits = torch.randn(40, 10)
    path = tmp_path / "set.safetensors"
    save_sketches(held, path)
    again = load_sketches(path)
    assert (again.network, again.probe, again.gradients) == ("net", "abc", "of a loss")
    assert (again.epoch, again.step) == (3, 70)
    assert torch.equal(again.logits, held.logits)
    assert [list(again.of(name)) for name in ("features", "gradients")] == [HOSTILE, ["a/b"]]
    for representation in again.sketches:
        for layer, sketch in again.of(representation).items():
            state, before = sketch.state_dict(), held.of(representation)[layer].state_dict()
            sums, sums_before = state.pop("sums"), before.pop("sums")
            assert state == before
            assert all(torch.equal(sums[name], sums_before[name]) for name in sums_before)
    assert [file.name for file in tmp_path.iterdir()] == ["set.safetensors"]  # no name became a path


def test_the_description_can_be_read_by_other_programs(tmp_path):
    content = small_file(tmp_path, dtype="float16").read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    described = json.loads(metadata["content"])
    entry = described["sketches"][0]
    assert metadata["format_version"] == "1"
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["package_version"])
    assert (described["network"], described["probe"]) == ("net", "abc")
    assert (entry["layer"], entry["representation"]) == ("conv", "features")
    expected = {"num_buckets": 64, "num_projections": 8, "seed": 0, "count": 40, "width": 12, "dtype": "float32"}
    assert entry["state"].items() >= expected.items()
    assert isinstance(entry["state"]["fingerprint"], int)


def test_every_truncation_is_refused(tmp_path):
    path = small_file(tmp_path)
    content = path.read_bytes()
    for size in [*range(0, 12), *range(12, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"sketch\.safetensors"):
            load_sketches(path)


def test_every_changed_byte_is_refused(tmp_path):
    path = small_file(tmp_path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, header, 3), *range(header, len(content), 97)]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(ValueError, match=r"sketch\.safetensors"):
            load_sketches(path)


def state_of(described):
    return described["sketches"][0]["state"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m, d, t: m.update(format_version="2", package_version="9.1.0"), r"format_version.*'2'.*'9\.1\.0'"),
        (lambda m, d, t: m.update(format="pt"), "`format` is 'pt'"),
        (lambda m, d, t: m.pop("content"), "`content` is missing"),
        (lambda m, d, t: d.update(sketches=[]), r"content\.sketches"),
        (lambda m, d, t: d.update(network=7), r"content\.network"),
        (lambda m, d, t: d.update(epoch=True), r"content\.epoch"),
        (lambda m, d, t: d.update(logits=[40, 10]), "`logits` is described, but not in the file"),
        (lambda m, d, t: d.update(logits=[40, -1]), r"content\.logits"),
        (lambda m, d, t: d.pop("logits"), r"content\.logits"),
        (lambda m, d, t: d.update(logits="many"), r"content\.logits"),
        (lambda m, d, t: d["sketches"].append(d["sketches"][0]), r"sketches\[1\].*repeats"),
        (lambda m, d, t: d["sketches"].append(5), r"sketches\[1\]\.layer"),
        (lambda m, d, t: d["sketches"][0].pop("layer"), r"sketches\[0\]\.layer"),
        (lambda m, d, t: d["sketches"][0].update(layer=3), r"sketches\[0\]\.layer"),
        (lambda m, d, t: state_of(d).pop("seed"), r"state\.seed.*missing"),
        (lambda m, d, t: state_of(d).update(seed="0"), r"state\.seed.*'0', expected int"),
        (lambda m, d, t: state_of(d).update(seed=2**70), r"state\.seed.*64 bits"),
        (lambda m, d, t: state_of(d).update(count=0), r"state\.count"),
        (lambda m, d, t: state_of(d).update(count=True), r"state\.count"),
        (lambda m, d, t: state_of(d).update(count=2**62), r"state\.count.*1 to 9007199254740992"),
        (lambda m, d, t: state_of(d).update(width=2**62), r"state\.width"),
        (lambda m, d, t: state_of(d).update(gradient_width=2**62), r"state\.gradient_width"),
        (lambda m, d, t: d.update(epoch=10**30), r"content\.epoch"),
        (lambda m, d, t: d.update(step=-(2**64)), r"content\.step"),
        (lambda m, d, t: state_of(d).update(width=-3), r"state\.width"),
        (lambda m, d, t: state_of(d).update(dtype="float128"), r"sketches\[0\]\.state"),
        (lambda m, d, t: state_of(d).update(num_buckets=1000), "power of two"),
        (lambda m, d, t: state_of(d).update(num_buckets=128), r"0\.bucket_\w+.*128"),
        (lambda m, d, t: state_of(d).update(num_buckets=2**40), r"0\.bucket_\w+"),
        (lambda m, d, t: state_of(d).update(num_buckets=2**62, num_projections=2**40, width=2**50), "state"),
        (lambda m, d, t: state_of(d).update(width=3), r"0\.bucket_sums"),
        (lambda m, d, t: state_of(d).update(dtype="float64"), r"0\.bucket_\w+.*float32.*float64"),
        (lambda m, d, t: state_of(d).update(invented=1), r"state\.invented"),
        (lambda m, d, t: d["sketches"][0]["scales"].update(bucket_sums=1.0), r"0\.bucket_sums.*float16"),
        (lambda m, d, t: d["sketches"][0]["scales"].update(bucket_sums=float("nan")), r"scales\.bucket_sums"),
        (lambda m, d, t: d["sketches"][0]["scales"].update(bucket_ones=1.0), r"scales\.bucket_ones"),
        (lambda m, d, t: t.update(extra=torch.zeros(3)), "`extra` is not described"),
        (lambda m, d, t: t.pop("0.feature_sums"), r"0\.feature_sums.*not in the file"),
        (lambda m, d, t: t.update({"0.feature_sums": torch.zeros(2, 4, dtype=torch.int64)}), r"0\.feature_sums"),
    ],
)
def test_forged_descriptions_are_refused_by_field(tmp_path, change, field):
    path = small_file(tmp_path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=rf"sketch\.safetensors.*{field}"):
        load_sketches(path)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("field", ["count", "seed", "fingerprint", "width", "gradient_width", "num_projections"])
def test_absurd_numbers_are_refused_or_do_no_harm(tmp_path, field, dtype, gradients):
    sketch, path = Sketch(64, 32), tmp_path / "sketch.safetensors"
    x = torch.randn(40, 12)
    sketch.update(x, torch.arange(40), gradients=x[:, :8] if gradients else None)
    save_sketch(sketch, path, dtype=dtype)
    content = path.read_bytes()
    for number in (5, 2**31, 2**32, 2**53, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 10**30):
        path.write_bytes(content)
        rewritten(path, lambda m, d, t, number=number: state_of(d).update({field: number}))
        again = None
        with contextlib.suppress(ValueError):
            again = load_sketch(path)
        if again is not None:
            for measure in (lambda a: a.cka(a), lambda a: a.nbs(a), mean_embedding_norm):
                assert math.isnan(value := float(measure(again))) or value >= 0
            again.save(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100_000, '{"sketches": 1}', "9" * 5000])
def test_descriptions_that_are_none_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    metadata = {"format": "lightning-sim sketches", "format_version": "1", "content": content, "sha256": ""}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors.*`content"):
        load_sketches(path)


def test_changed_content_is_noticed_without_the_digest(tmp_path):
    path = small_file(tmp_path)
    rewritten(path, lambda m, d, t: t["0.bucket_sums"].add_(1e-3), rehash=False)
    with pytest.raises(ValueError, match="sha256"):
        load_sketches(path)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code from the file was run",))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_are_not_unpickled(tmp_path, protocol):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(_Bomb(), protocol))
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load_sketches(path)
    assert not is_sketch_file(path)


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors.*`format`"):
        load_sketches(tmp_path / "weights.safetensors")
    assert not is_sketch_file(tmp_path / "weights.safetensors")
    assert is_sketch_file(small_file(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_sketches(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch, step, error):
    path = small_file(tmp_path)
    before = path.read_bytes()

    def interrupted(*arguments):
        raise error

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(type(error)):
        save_sketch(small(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def stopped_while_saving(pipe, path):
    def stop(descriptor):
        pipe.send("saving")
        pipe.recv()

    os.fsync = stop
    save_sketch(small(), path)


def test_what_a_killed_save_left_is_removed_by_the_next_one_and_that_of_a_living_one_is_not(tmp_path):
    killed, living = (Process(stopped_while_saving, tmp_path / f"{name}.safetensors") for name in ("killed", "living"))
    assert killed.hear() == living.hear() == "saving"
    left = set(tmp_path.iterdir())
    assert len(left) == 2
    killed.kill()
    assert set(tmp_path.iterdir()) == left
    path = small_file(tmp_path)
    (kept,) = left & set(tmp_path.iterdir())
    assert set(tmp_path.iterdir()) == {kept, path}
    living.pipe.send("go on")
    living.finish()
    assert set(tmp_path.iterdir()) == {tmp_path / "living.safetensors", path}
    assert load_sketch(tmp_path / "living.safetensors").count == 40


@pytest.mark.parametrize(
    ("save_it", "message"),
    [
        (lambda path: save_sketch(Sketch(), path), "holds no samples"),
        (lambda path: save_sketches(SketchSet({}), path), "no sketches"),
        (lambda path: save_sketch(small(), path.with_suffix(".pt")), r"\.safetensors.*\.pt"),
        (lambda path: save_sketch(small(), path, dtype="int8"), "`dtype`.*'int8'"),
        (lambda path: save_sketches(SketchSet({"features": {"a": small()}}, logits=torch.ones(3)), path), "logits"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(tmp_path, save_it, message):
    with pytest.raises(ValueError, match=message):
        save_it(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_of_several_layers_is_not_one_sketch(tmp_path):
    save_sketches(SketchSet({"features": {"a": small(), "b": small()}}), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"2 sketches.*features/a, features/b"):
        load_sketch(tmp_path / "x.safetensors")


def test_different_probes_are_not_paired():
    a, b, unknown = (SketchSet({"features": {"a": small()}}, probe=probe) for probe in ("abc", "def", ""))
    with pytest.raises(ValueError, match=r"different probes.*abc and def"):
        a.require_comparable(b)
    a.require_comparable(unknown)
    a.gradients, unknown.gradients = "beta = 0.5", "beta = 1"
    a.require_comparable(unknown)
    with pytest.raises(ValueError, match=r"different losses: beta = 0\.5; beta = 1"):
        a.require_comparable(unknown, "gradients")
    with pytest.raises(ValueError, match=r"'gradients'.*holds features"):
        a.of("gradients")
