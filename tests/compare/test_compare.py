import csv

import numpy as np
import pytest
import torch

from lightning_sim import cli
from lightning_sim.compare import epoch_matrix, find_run, layer_matrix, run_rows, tidy
from lightning_sim.sketch import SketchSet, centered_kernel_alignment_matrix, save_sketches

from ..sketch.data import sketched

LAYERS = ["conv1", "conv2", "fc/out"]


def network(seed, *, drift=0.0, samples=60, layers=LAYERS, probe="abc", epoch=-1, **sizes):
    """Layers that share most of their signal, and drift away from it."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(samples, 10, generator=torch.Generator().manual_seed(7))
    sketches = {
        layer: sketched(
            common + (0.3 * depth + drift) * torch.randn(samples, 10, generator=generator),
            **{"num_buckets": 64, "num_projections": 16} | sizes,
        )
        for depth, layer in enumerate(layers, start=1)
    }
    return SketchSet({"features": sketches}, "net", probe, epoch=epoch, step=epoch * 10)


def write_run(folder, seed, epochs=(0, 9, 10), place="similarity/sketches"):
    for epoch in epochs:
        held = network(seed, drift=2 / (epoch + 1), epoch=epoch)
        save_sketches(held, folder / place / f"epoch={epoch}-step={10 * epoch}.safetensors")
    return folder


def compare(*arguments):
    return cli.main(["compare", *map(str, arguments)])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("measure", ["cka", "nbs"])
def test_layers_with_layers_are_the_sketches_own_similarities(measure):
    a, b = network(1), network(2, layers=["x", "y"])
    matrix = layer_matrix(a, b, measure)
    assert (matrix.rows, matrix.columns) == (tuple(LAYERS), ("x", "y"))
    for i, mine in enumerate(a.of().values()):
        for j, theirs in enumerate(b.of().values()):
            expected = mine.cka(theirs) if measure == "cka" else mine.nbs(theirs)
            assert matrix.values[i, j] == pytest.approx(float(expected), abs=1e-6)


def test_a_network_with_itself():
    held = network(1)
    for measure in ("cka", "nbs"):
        matrix = layer_matrix(held, held, measure)
        assert np.allclose(np.diag(matrix.values), 1, atol=1e-6)
        assert np.allclose(matrix.values, matrix.values.T, atol=1e-6)


def test_comparing_files_gives_the_same_bits_as_comparing_in_memory(tmp_path):
    a, b = network(1), network(2)
    for held, name in ((a, "a"), (b, "b")):
        save_sketches(held, tmp_path / f"{name}.safetensors")
    by_file = layer_matrix(find_run(tmp_path / "a.safetensors").at(), find_run(tmp_path / "b.safetensors").at())
    in_memory = centered_kernel_alignment_matrix(list(a.of().values()), list(b.of().values()))
    assert np.array_equal(by_file.values, in_memory.numpy())


def test_the_biased_estimator_reaches_the_sketches():
    a, b = network(1), network(2)
    values = layer_matrix(a, b, estimator="biased").values
    expected = a.of()["conv1"].cka(b.of()["conv1"], estimator="biased")
    assert values[0, 0] == pytest.approx(float(expected), abs=1e-6)
    assert values[0, 0] != pytest.approx(float(layer_matrix(a, b).values[0, 0]), abs=1e-3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(2, probe="other"), "different probes.*abc and other"),
        (network(2, num_buckets=128), "num_buckets"),
        (network(2, samples=50), "different samples"),
    ],
)
def test_what_cannot_be_paired_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        layer_matrix(network(1), other)
    with pytest.raises(ValueError, match=message):
        run_rows({"a": network(1), "b": other})


def test_unknown_measures_and_representations_are_refused():
    with pytest.raises(ValueError, match=r"`measure`.*'cca'"):
        layer_matrix(network(1), network(2), "cca")
    with pytest.raises(ValueError, match="no sketches of 'gradients'"):
        layer_matrix(network(1), network(2), representation="gradients")


def test_epochs_with_epochs_in_the_order_of_training(tmp_path):
    run = find_run(write_run(tmp_path, seed=1))
    matrix = epoch_matrix(run, run, "conv2")
    assert matrix.rows == ("epoch 0", "epoch 9", "epoch 10")
    first, last = network(1, drift=2.0).of()["conv2"], network(1, drift=2 / 11).of()["conv2"]
    assert matrix.values[0, 2] == pytest.approx(float(first.cka(last)), abs=1e-6)
    other = find_run(write_run(tmp_path / "other", seed=2, epochs=(3,)))
    assert epoch_matrix(run, other, "conv2").values.shape == (3, 1)
    with pytest.raises(ValueError, match=r"no layer 'conv9' in .*it has conv1, conv2, fc/out"):
        epoch_matrix(run, run, "conv9")


def test_epochs_of_different_probes_are_refused(tmp_path):
    for epoch, probe in ((0, "abc"), (1, "def")):
        save_sketches(network(1, epoch=epoch, probe=probe), tmp_path / f"epoch={epoch}.safetensors")
    run = find_run(tmp_path)
    with pytest.raises(ValueError, match="different probes"):
        epoch_matrix(run, run, "conv1")


def test_runs_with_runs():
    runs = {"a": network(1), "b": network(2), "c": network(3, layers=["conv2", "new"])}
    rows = run_rows(runs)
    found = {(row["a"], row["b"], row["layer"]): row["value"] for row in rows}
    assert ("a", "c", "conv2") in found
    assert ("a", "c", "conv1") not in found
    expected = runs["a"].of()["conv1"].cka(runs["b"].of()["conv1"])
    assert found["a", "b", "conv1"] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match=r"no layer 'conv1' in c"):
        run_rows(runs, layer="conv1")
    with pytest.raises(ValueError, match="no layer of the same name"):
        run_rows({"a": network(1), "b": network(1, layers=["z"])})


def test_an_epoch_by_number(tmp_path):
    run = find_run(write_run(tmp_path, seed=1))
    assert run.at(9).epoch == 9
    assert run.at().epoch == 10
    with pytest.raises(ValueError, match="no sketches of epoch 4; it has 0, 9, 10"):
        run.at(4)


@pytest.mark.parametrize("place", ["similarity/sketches", "drift/sketches", "sketches", "."])
def test_runs_are_found(tmp_path, place):
    write_run(tmp_path, seed=1, place=place)
    assert len(find_run(tmp_path).files) == 3


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_run(tmp_path / "nowhere")
    write_run(tmp_path / "version_3", seed=1)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileNotFoundError, match=r"save_sketches=True.*Runs below: .*version_3"):
        find_run(tmp_path)
    write_run(tmp_path / "version_3", seed=1, place="drift/sketches")
    with pytest.raises(ValueError, match=r"several monitors.*drift.*similarity"):
        find_run(tmp_path / "version_3")


def test_command_layers(tmp_path, capsys):
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2)
    png, table = tmp_path / "out" / "m.png", tmp_path / "out" / "m.csv"
    assert compare(a, b, "--measure", "nbs", "--out", png, "--out", table) == 0
    rows = read(table)
    assert list(rows[0]) == ["a", "b", "measure", "representation", "value"]
    assert len(rows) == 9
    expected = layer_matrix(find_run(a).at(), find_run(b).at(), "nbs")
    assert [float(row["value"]) for row in rows] == [row["value"] for row in tidy(expected)]
    assert png.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{expected.values[0, 1]:.4f}" in printed
    assert "fc/out" in printed


def test_command_epochs(tmp_path):
    run = write_run(tmp_path / "a", seed=1)
    assert compare(run, "--layer", "conv1", "--out", tmp_path / "m.csv") == 0
    rows = read(tmp_path / "m.csv")
    assert [(row["a"], row["b"]) for row in rows][:2] == [("epoch 0", "epoch 0"), ("epoch 0", "epoch 9")]


def test_command_runs(tmp_path, capsys):
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    assert compare(*runs, "--epoch", 9, "--out", tmp_path / "m.csv", "--out", tmp_path / "m.svg") == 0
    rows = read(tmp_path / "m.csv")
    assert len(rows) == 3 * 3 * len(LAYERS)
    mean = np.mean([float(row["value"]) for row in rows if (row["a"], row["b"]) == ("a", "b")])
    assert f"{mean:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no file or folder nowhere"),
        (["{run}", "--layer", "conv9"], "no layer 'conv9'"),
        (["{run}", "--epoch", "77"], "no sketches of epoch 77"),
        (["{run}", "--epoch", "9", "--layer", "conv1"], "leave --epoch out"),
        (["{run}", "--representation", "gradients"], "no sketches of 'gradients'"),
    ],
)
def test_command_says_what_is_wrong_and_fails(tmp_path, capsys, arguments, message):
    write_run(tmp_path, seed=1)
    assert compare(*(argument.format(run=tmp_path) for argument in arguments)) == 1
    assert message in capsys.readouterr().err


def with_odd_layers(seed):
    """Beside two that can be compared, one of other samples, a constant one, and one in which one sample differs."""
    held = network(seed, layers=["conv1", "conv2"])
    one = torch.zeros(60, 10)
    one[5] = 1.0
    odd = {"short": network(seed, samples=30).of()["conv1"], "dead": torch.ones(60, 10), "one": one}
    sizes = {"num_buckets": 64, "num_projections": 16}
    held.sketches["features"].update({
        name: sketched(layer, **sizes) if isinstance(layer, torch.Tensor) else layer for name, layer in odd.items()
    })
    return held


def test_layers_that_cannot_be_compared_leave_the_others(tmp_path, capsys):
    for seed in (1, 2, 3):
        save_sketches(with_odd_layers(seed), tmp_path / f"{seed}.safetensors")
    expected = layer_matrix(network(1, layers=["conv1", "conv2"]), network(2, layers=["conv1", "conv2"])).values
    with pytest.warns(UserWarning, match="its similarity is NaN") as caught:
        values = layer_matrix(with_odd_layers(1), with_odd_layers(2)).values
    assert np.array_equal(values[:2, :2], expected)
    assert np.isnan(values).tolist() == [
        [False, False, True, True, True],
        [False, False, True, True, True],
        [True, True, False, True, True],
        *[[True] * 5] * 2,
    ]
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(set(said))
    for reason in (
        "dead is constant over the samples; its similarity is NaN",
        "one tells no samples from others",
        "short is of other samples than its counterpart (30 and 60 of them)",
    ):
        assert sum(message.startswith(reason) for message in said) == 1

    assert compare(tmp_path / "1.safetensors", tmp_path / "2.safetensors") == 0
    printed = capsys.readouterr()
    assert f"{expected[0, 1]:.4f}" in printed.out
    for name in ("dead is constant", "one tells no samples", "short is of other samples"):
        assert f"lightning-sim: {name}" in printed.err


def test_runs_are_compared_by_the_layers_that_have_values(tmp_path, capsys):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2, 3)]
    for seed, path in enumerate(paths):
        save_sketches(with_odd_layers(seed), path)
    target = tmp_path / "runs.csv"
    assert compare(*paths, "--out", target) == 0
    rows = [row for row in read(target) if (row["a"], row["b"]) == ("1.safetensors", "2.safetensors")]
    values = {row["layer"]: float(row["value"]) for row in rows}
    assert {layer for layer, value in values.items() if np.isnan(value)} == {"dead", "one"}
    printed = capsys.readouterr()
    assert f"{np.nanmean(list(values.values())):.4f}" in printed.out
    assert "dead of 1.safetensors is constant over the samples" in printed.err


def test_command_refuses_other_outputs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare(tmp_path, "--out", "x.docx")
    assert ".csv, .png" in capsys.readouterr().err


@pytest.mark.parametrize("measure", ["nbs", "procrustes_distance", "mutual_knn"])
def test_the_command_line_takes_every_measure_of_layers(tmp_path, capsys, measure):
    save_sketches(network(1), tmp_path / "a.safetensors")
    assert compare(tmp_path / "a.safetensors", "--measure", measure, "--out", tmp_path / "a.csv") == 0
    assert compare(tmp_path / "a.safetensors", "--measure", "wcka") == 1
    assert "`--measure` must be one of 'cka', 'nbs'" in capsys.readouterr().err


def test_names_from_files_do_not_move_the_cursor(tmp_path, capsys):
    save_sketches(network(1, layers=["\x1b[2J evil", ""]), tmp_path / "x.safetensors")
    assert compare(tmp_path / "x.safetensors", "--out", tmp_path / "x.png") == 0
    assert "\x1b" not in capsys.readouterr().out


def with_outputs(folder, seed, epochs=(0, 9), classes=5, probe="abc"):
    generator = torch.Generator().manual_seed(seed)
    saved = []
    for epoch in epochs:
        held = network(seed, epoch=epoch, probe=probe)
        held.logits = torch.randn(60, classes, generator=generator)
        save_sketches(held, folder / f"epoch={epoch}-step={10 * epoch}.safetensors")
        saved.append(held.logits.double().numpy())
    return saved


def agreement(a, b):
    return (a.argmax(1) == b.argmax(1)).mean()


def divergence(a, b):
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (a, b))
    middle = (p + q) / 2
    return ((p * np.log(p / middle)).sum(1) + (q * np.log(q / middle)).sum(1)).mean() / 2


@pytest.mark.parametrize(("measure", "definition"), [("agreement", agreement), ("jsd", divergence)])
def test_command_outputs(tmp_path, capsys, measure, definition):
    saved = {name: with_outputs(tmp_path / name, seed) for seed, name in enumerate("abc")}
    for paths, rows, columns in (
        ("a", saved["a"], saved["a"]),
        ("ab", saved["a"], saved["b"]),
        ("abc", *[[outputs[-1] for outputs in saved.values()]] * 2),
    ):
        target = tmp_path / f"{paths}.csv"
        assert compare(*(tmp_path / name for name in paths), "--measure", measure, "--out", target) == 0
        expected = [definition(x, y) for x in rows for y in columns]
        assert [float(row["value"]) for row in read(target)] == pytest.approx(expected, abs=1e-6)
    assert f"{measure} of outputs" in capsys.readouterr().out


def test_outputs_that_cannot_be_compared_are_refused(tmp_path, capsys):
    with_outputs(tmp_path / "a", 1)
    with_outputs(tmp_path / "classes", 2, classes=4)
    with_outputs(tmp_path / "probe", 3, probe="other")
    write_run(tmp_path / "none", 4)
    for name, options, message in (
        ("classes", (), "outputs of different shapes, (60, 5) and (60, 4), of epoch 0 and epoch 0"),
        ("probe", (), "different probes"),
        ("none", (), "no outputs were saved with the sketches of epoch 0"),
        ("a", ("--layer", "conv1"), "--layer has no meaning"),
    ):
        assert compare(tmp_path / "a", tmp_path / name, "--measure", "jsd", *options) == 1
        assert message in capsys.readouterr().err
