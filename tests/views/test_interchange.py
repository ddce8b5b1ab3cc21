"""Similarity against stitching, layer by layer."""

from __future__ import annotations

import pytest

from lightning_sim import SimilarityHistory
from lightning_sim.callbacks.reporting import figures_of
from lightning_sim.record import Measurement
from lightning_sim.views import interchange_figure

VALUES = {"a": (0.9, 0.2, 0.1), "b": (0.5, 0.8, 0.7)}


def history(measures=("cka", "stitching", "stitching_untrained")):
    values = {
        f"{measure}/features/{layer}": number
        for layer, numbers in VALUES.items()
        for measure, number in zip(measures, numbers, strict=False)
    }
    before = Measurement(0, 9, dict.fromkeys(values, 0.3))
    return SimilarityHistory({"run": "one"}, [before, Measurement(1, 19, values)])


def test_every_layer_is_a_point_with_its_control():
    (axes,) = interchange_figure(history()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in axes.collections]
    expected = [point for x, y, control in VALUES.values() for point in ((x, control), (x, y))]
    assert points == [pytest.approx(point) for point in expected]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_title(loc="left") == "cka and stitching, epoch 1: interchangeable?"
    assert [text.get_text() for text in axes.texts] == ["a"]  # alike, and not interchangeable
    first = interchange_figure(history(), epoch=0).axes[0]
    assert tuple(first.collections[1].get_offsets()[0]) == pytest.approx((0.3, 0.3))


def test_it_is_logged_where_both_were_measured():
    both, one = history(), history(("cka",))
    assert "similarity/scatter/cka_stitching" in figures_of(both, "similarity", "epoch 1")
    assert figures_of(one, "similarity", "epoch 1") == {}
    with pytest.raises(ValueError, match=r"no layer has both cka and stitching at this measurement; .* holds cka"):
        interchange_figure(one)


def test_names_beside_points_are_no_formulas(tmp_path):
    values = {f"{measure}/features/$\\frac{{$": number for measure, number in (("cka", 0.9), ("stitching", 0.1))}
    figure = interchange_figure(SimilarityHistory({}, [Measurement(0, 9, values)]))
    figure.savefig(tmp_path / "figure.png")
    assert [text.get_text() for text in figure.axes[0].texts] == ["$\\frac{$"]
