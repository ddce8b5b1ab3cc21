"""The papers run again on data that ship with scikit-learn: what holds there of the claims."""

import math

from tests.test_examples import EXAMPLES, run


def tables(name, directory):
    """Every table that a script prints, its rows as lists of cells, without the header."""
    output = run(f"papers/{name}.py", directory, "--quick")
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
    assert scripts == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_script_is_run_here"
    }


def test_layer_identification(tmp_path):
    similar, linear, others = tables("layer_identification", tmp_path)
    assert [row[0] for row in similar] == ["relu1", "relu2", "relu3", "relu4", "pool"]
    assert all(0.3 < number(row[1]) < 1 and number(row[2]) < 0.1 for row in similar)
    found = {row[0]: number(row[2]) for row in linear + others}
    assert len(found) == 13
    assert found["CKA linear, unbiased"] > 20 >= found["CCA, mean"]  # which is chance


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


def test_policies(tmp_path):
    (rows,) = tables("policies", tmp_path)
    assert [tuple(row[:2]) for row in rows] == [(a, b) for a in ("open", "wall") for b in ("open", "wall")]
    assert all(-1 <= number(row[3]) <= 1 for row in rows)
