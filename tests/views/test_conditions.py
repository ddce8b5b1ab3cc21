"""Conditions over epochs: the heatmap of dashboards, and the panel of the page."""

import json
import re

import numpy as np
import pytest

from lightning_sim.callbacks.reporting import figures_of
from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.views import conditions_figure, report_page
from lightning_sim.views.conditions import conditions_heatmap

VALUES = {Key("agreement"): [0.9, 0.8], Key("agreement", condition="fog"): [0.5, 0.25], Key("jsd"): [0.1, 0.2]}


def history():
    found = SimilarityHistory({})
    for epoch in range(2):
        found.append(Measurement(epoch, 10 * epoch, {key: values[epoch] for key, values in VALUES.items()}))
    return found


def test_rows_are_conditions_and_columns_epochs():
    shown = conditions_heatmap(history())
    assert (shown.rows, shown.columns) == (["clean", "fog"], ["0", "1"])
    np.testing.assert_allclose(shown.values, [[0.9, 0.8], [0.5, 0.25]], rtol=1e-6)
    axes = conditions_figure(history()).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.80", "0.50", "0.25"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("conditions", "epochs")
    with pytest.raises(ValueError, match="'jsd' was not measured under conditions; agreement was"):
        conditions_heatmap(history(), "jsd")


def test_the_measurement_before_training_is_the_start():
    values = {Key("agreement"): 1.0, Key("agreement", condition="fog"): 1.0}
    found = SimilarityHistory({}, [Measurement(*at, values) for at in ((0, 0), (0, 9), (1, 19))])
    assert conditions_heatmap(found).columns == ["start", "0", "1"]


def test_dashboards_and_the_page_have_it():
    held = history()
    assert "similarity/matrix/agreement/conditions" in figures_of(held, "similarity", "epoch 1")
    page = report_page({"run": held})
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    (panel,) = data["runs"][0]["matrices"]
    assert panel["title"] == "agreement, conditions over epochs"
    assert panel["rows"] == ["clean", "fog"]
    assert panel["frames"] == [{"epoch": 1, "step": 10, "values": [0.9, 0.8, 0.5, 0.25]}]
