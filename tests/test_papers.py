"""The papers run again on data that ship with scikit-learn: what holds there of the claims."""

import itertools
import math
import sys

import numpy as np
import scipy.stats
import torch

from tests.test_examples import EXAMPLES, run


def tables(name, directory, path="papers/{}.py"):
    """Every table that a script prints, its rows as lists of cells, without the header."""
    output = run(path.format(name), directory, "--quick")
    assert output.splitlines()[-1].startswith("time: ")
    assert (directory / "figures" / f"{name}.png").stat().st_size > 5000
    found, before = [], ""
    for line in output.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("| ").split(" | ")])
        before = line
    return [table[2:] for table in found]


def number(cell):
    return float(cell.split()[0])


def test_every_script_is_run_here():
    scripts = {path.stem for path in (EXAMPLES / "papers").glob("*.py")} - {"material"}
    assert scripts < {name.removeprefix("test_") for name in globals() if name.startswith("test_")}


def test_intervals_see_that_pairs_share_networks(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "papers")
    correlated = __import__("material").correlated
    monkeypatch.delitem(sys.modules, "material")
    pairs = list(itertools.combinations(range(12), 2))
    ends, covered = np.array(pairs), np.zeros(2)
    for seed in range(100):
        draw = np.random.default_rng(seed)
        networks, own = draw.standard_normal((2, 12)), draw.standard_normal((2, 66))
        a, b = networks[:, ends[:, 0]] + networks[:, ends[:, 1]] + own / 2  # unrelated
        value, low, high = correlated(torch.tensor(a), torch.tensor(b), pairs)
        covered += low < 0 < high, abs(math.atanh(value)) < 1.96 / math.sqrt(63)
    assert covered[0] >= 90
    assert covered[1] < 75  # as if pairs were independent
    kept = [(ends != network).all(1) for network in range(12)]
    without = [np.arctanh(scipy.stats.spearmanr(a[rows], b[rows])[0]) for rows in kept]
    error = math.sqrt(11 / 12 * np.square(np.array(without) - np.mean(without)).sum())
    half = math.atanh(high) - math.atanh(value)
    assert math.isclose(half, scipy.stats.t.ppf(0.975, 11) * error, rel_tol=1e-4)


def test_layer_identification(tmp_path):
    similar, linear, others = tables("layer_identification", tmp_path)
    assert [row[0] for row in similar] == ["relu1", "relu2", "relu3", "relu4", "pool"]
    assert all(0.3 < number(row[1]) < 1 and number(row[2]) < 0.1 for row in similar)
    found = {row[0]: number(row[2]) for row in linear + others}
    assert len(found) == 13
    assert found["CKA linear, unbiased"] > 20 >= found["CCA, mean"]  # which is chance
    assert {row[4] for row in others if row[0].startswith("SVCCA")} == {"96"}  # more than components


def test_wcka_calibration(tmp_path):
    calibration, sizes = tables("wcka_calibration", tmp_path)
    untrained, adjacent = ({row[0]: number(row[column]) for row in calibration} for column in (2, 4))
    assert untrained["wCKA"] < 0.1 < untrained["CKA"]
    assert min(adjacent.values()) > 0.98
    unbiased, biased = ([float(cell) for cell in row[1:]] for row in sizes)
    assert all(low < high for low, high in zip(unbiased, biased, strict=True))


def test_same_features_opposite_outputs(tmp_path):
    (rows,) = tables("same_features_opposite_outputs", tmp_path)
    divergences = [number(row[2]) for row in rows]
    assert 0.5 < divergences[0] < math.log(2)
    assert divergences == sorted(divergences, reverse=True)
    assert number(rows[0][5]) < -0.9


def test_which_network_which_data(tmp_path):
    (together, alone), similar = tables("which_network_which_data", tmp_path)
    assert number(together[1]) > 0.5 > 0.25 > number(alone[1])  # by chance 0.11
    assert all(0.3 < number(row[1]) < 0.95 for row in similar)


def test_converging_on_the_final_network(tmp_path):
    (rows,) = tables("converging_on_the_final_network", tmp_path)
    assert len(rows) == 6
    assert all(number(row[1]) < number(row[2]) for row in rows)
    assert all(number(cell) < -0.5 for row in rows for cell in row[3:])


def test_features_and_gradients(tmp_path):
    (rows,) = tables("features_and_gradients", tmp_path)
    within, between = rows[::2], rows[1::2]
    assert [row[0] for row in within] == ["features", "gradients", "features*gradients"]
    gaps = [
        [number(a) - number(b) for a, b in zip(*pair, strict=True)]
        for pair in zip((row[3:] for row in within), (row[3:] for row in between), strict=True)
    ]
    assert all(gap > 0.05 for kind in gaps for gap in kind[1:])


def test_agreement_under_corruption(tmp_path):
    *conditions, correlations, leads = tables("agreement_under_corruption", tmp_path)
    for rows in conditions:
        assert [row[0] for row in rows[:1] + rows[-1:]] == ["clean", "pgd"]
        accuracy, agreement = ({row[0]: number(row[column]) for row in rows} for column in (1, 2))
        assert accuracy["pgd"] < accuracy["noise"]
        assert agreement["clean"] == max(agreement.values())
        assert all(agreement[row[0]] > number(row[3]) for row in rows)  # chance
    assert [row[:2] for row in correlations] == [
        [pool, measure] for pool in ("seeds", "budgets") for measure in ("CKA", "dCKA", "NBS, Procrustes", "wCKA")
    ]
    for row in [row[1:] for row in correlations] + leads:
        for cell in row[2:]:
            value, low, high = (float(part.strip("[],")) for part in cell.split())
            assert low < value < high
    clean = {tuple(row[:2]): number(row[3]) for row in correlations}
    for pool, measure, lead, *_ in leads:
        assert abs(number(lead) - clean[pool, measure] + clean[pool, "wCKA"]) < 0.02


def test_stitching(tmp_path):
    layers, fits, ranks, sparse, unlike = tables("stitching", tmp_path, "{}.py")
    assert len(layers) == 4
    none, untrained, squares, rotation, task = zip(*([float(cell) for cell in row[1:]] for row in layers), strict=True)
    assert min(*squares, *rotation, *task) > 0.5
    assert sum(squares) > sum(untrained) + 0.5 > sum(none)
    assert all(float(row[3]) > float(row[4]) for row in fits)  # R2 falls
    assert [row[0] for row in ranks] == ["least squares", "task loss"]
    assert [float(row[2]) for row in sparse[:4]] == sorted(float(row[2]) for row in sparse[:4])
    assert float(unlike[0][1]) > float(unlike[-1][1])
    for figure in (4, 7, 8):
        assert (tmp_path / "figures" / f"stitching_{figure}.png").stat().st_size > 5000


def test_policies(tmp_path):
    (rows,) = tables("policies", tmp_path)
    assert [tuple(row[:2]) for row in rows] == [(a, b) for a in ("open", "wall") for b in ("open", "wall")]
    for row in rows:
        value, low, high = (float(part.strip("[],")) for part in row[3].split())
        assert -1 <= low < value < high <= 1
        independent = [math.tanh(math.atanh(value) + sign * 1.96 / math.sqrt(15 - 3)) for sign in (-1, 1)]
        assert max(abs(low - independent[0]), abs(high - independent[1])) > 0.03  # pairs share agents
