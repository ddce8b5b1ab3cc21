from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_sim.loggers import finish_loggers, log_figures, log_margins, setup_loggers
from lightning_sim.measures import MEASURES
from lightning_sim.record import Key, Measurement, SimilarityHistory, read_history
from lightning_sim.record.correlations import CORRELATION
from lightning_sim.record.means import mean_keys

from .runs import HOSTILE, example_history, files_below, log_scalars


def events_of(logger: TensorBoardLogger) -> EventAccumulator:
    logger.finalize("success")
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def charts_of(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout_of(events).category
    }


def layout_of(events: EventAccumulator) -> layout_pb2.Layout:
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    return layout


@pytest.mark.parametrize("prefix", ["", "a+b"])
def test_the_layout_puts_all_layers_of_a_measure_in_one_chart(tmp_path: Path, prefix: str) -> None:
    history = example_history(layers=("cka/features/conv", *HOSTILE))
    history.append(Measurement(3, 39, {"agreement": 0.5, "seconds": 1.0}))
    history.metadata["scales"]["agreement"] = MEASURES["agreement"].scale.to_state()
    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    setup_loggers([logger], history.keys, history)
    log_scalars(logger, history)
    events = events_of(logger)
    tags = events.Tags()["scalars"]
    name = f"{prefix}-similarity" if prefix else "similarity"
    start = f"{name}/"
    # TensorBoard draws the tags that `re.match` one of a chart's patterns.
    drawn = {
        title: [tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)]
        for title, patterns in charts_of(events)[name].items()
    }
    layers = history.layers
    assert {title: set(found) for title, found in drawn.items()} == {
        "cka, features": {f"{start}cka/features/{layer}" for layer in layers},
        "nbs, features": {f"{start}nbs/features/{layer}" for layer in layers},
        "wcka, weights": {f"{start}wcka/weights/{layer}" for layer in layers},
        "outputs": {f"{start}jsd", f"{start}agreement"},
    }


def keys_of(names: list[str]) -> list[Key]:
    return list(Measurement(0, 0, dict.fromkeys(names, 0.0)).by_key)


def test_lengths_of_any_size_have_charts_of_their_own(tmp_path: Path) -> None:
    layered = ["mean_embedding/features/a", "mean_embedding_diagonal/features/a"]
    names = [*layered, "agreement", "fisher_rao_norm", "task2vec"]
    scales = {name: scale.to_state() for m in MEASURES.values() for name, scale in m.scales().items()}
    logger = TensorBoardLogger(tmp_path)
    setup_loggers([logger], keys_of(names), SimilarityHistory({"scales": scales}))
    assert charts_of(events_of(logger))["similarity"] == {
        "mean_embedding, features": ["^similarity/mean_embedding/features/.+"],
        "mean_embedding_diagonal, features": ["^similarity/mean_embedding_diagonal/features/.+"],
        "fisher_rao_norm": ["^similarity/(fisher_rao_norm)$"],
        "parameters": ["^similarity/(task2vec)$"],
        "outputs": ["^similarity/(agreement)$"],
    }


def test_charts_that_are_read_first_come_first(tmp_path: Path) -> None:
    keys = [Key("cka", "features", "a"), Key("stitching_cross_entropy", "features", "a"), Key("jsd")]
    keys += [*mean_keys(keys), Key("cka_jsd_pearson", "features", "a")]
    scales = {"cka": MEASURES["cka"].scale.to_state(), "jsd": MEASURES["jsd"].scale.to_state()}
    scales["stitching_cross_entropy"] = {"low": 0, "unit": "nats"}
    logger = TensorBoardLogger(tmp_path)
    setup_loggers([logger], keys, SimilarityHistory({"scales": scales}))
    assert list(charts_of(events_of(logger))["similarity"]) == [
        "means over layers",
        "outputs",
        "stitching_cross_entropy",  # in nats, beside which a share would be a flat line
        "cka, features",
        "stitching_cross_entropy, features",
        "cka_jsd_pearson, features",
    ]


def test_representations_and_conditions_in_charts_are_taken_literally(tmp_path: Path) -> None:
    kinds = ("features", "gradients", "features*gradients", "features+gradients", "features@fog")
    names = [f"{measure}/{kind}/conv" for kind in kinds for measure in ("cka", CORRELATION)]
    logger = TensorBoardLogger(tmp_path)
    setup_loggers([logger], keys_of(names), SimilarityHistory({}))
    charts = charts_of(events_of(logger))["similarity"]
    assert len(charts) == len(names)
    for kind in kinds:
        for measure in ("cka", CORRELATION):
            (pattern,) = charts[f"{measure}, {kind.replace('@', ', ')}"]
            matching = [name for name in names if re.match(pattern, f"similarity/{name}")]
            assert matching == [f"{measure}/{kind}/conv"]


def test_two_monitors_share_the_page_and_are_read_apart(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    for number, name in enumerate(("teacher", "other-teacher")):
        history = SimilarityHistory({"run": f"against {name}"})
        setup_loggers([logger], [Key("cka", "features", "conv")], history, name)
        logger.log_metrics({f"{name}/cka/features/conv": number / 4, "epoch": 1}, step=9)
    events = events_of(logger)
    assert charts_of(events) == {
        name: {"cka, features": [f"^{re.escape(name)}/cka/features/.+"]} for name in ("teacher", "other-teacher")
    }
    for number, name in enumerate(("teacher", "other-teacher")):
        history = read_history(logger.log_dir, name=name)
        assert history.run == f"against {name}"
        assert history.trajectory("cka", layer="conv").values.tolist() == [number / 4]


def test_figures_and_scalars_have_the_same_step_and_figures_are_what_was_drawn(tmp_path: Path) -> None:
    history = example_history(epochs=6)
    logger = TensorBoardLogger(tmp_path)
    log_scalars(logger, history)
    for measurement in history.measurements:
        matrix = measurement.matrices[0]
        log_figures([logger], {"similarity/matrix/cka": lambda m=matrix: m.plot()}, measurement.step)
    events = events_of(logger)
    images = events.Images("similarity/matrix/cka")
    assert [image.step for image in images] == [event.step for event in events.Scalars("similarity/jsd")]
    width, height = history.matrix("cka").plot().canvas.get_width_height()
    assert {(image.width, image.height) for image in images} == {(width, height)}
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert len({image.encoded_image_string for image in images}) == 6


def test_hyperparameters_are_untouched(tmp_path: Path) -> None:
    def everything(directory: Path, monitored: bool) -> tuple[list[str], bytes]:
        logger = TensorBoardLogger(directory)
        if monitored:
            history = example_history()
            setup_loggers([logger], history.keys, history)
            finish_loggers([logger], history)
        logger.log_hyperparams({"rate": 0.1}, {"val_loss": 1.0})
        logger.save()
        tags = events_of(logger).Tags()
        plugins = [tag for tag in tags["tensors"] if tag.startswith("_hparams_")]
        return tags["scalars"] + plugins, (Path(logger.log_dir) / "hparams.yaml").read_bytes()

    assert everything(tmp_path / "with", True) == everything(tmp_path / "without", False)


def test_more_than_ten_thousand_values_are_read_in_full(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for step in range(10_500):
            writer.add_scalar("similarity/jsd", step / 16384, step)
    assert len(read_history(tmp_path).trajectory("jsd")) == 10_500


def test_a_resumed_run_counts_the_later_value_of_a_repeated_step(tmp_path: Path) -> None:
    for value in (0.25, 0.5):
        logger = TensorBoardLogger(tmp_path, version=0)
        logger.log_metrics({"similarity/jsd": value, "epoch": 3}, step=40)
        logger.finalize("success")
    directory = tmp_path / "lightning_logs" / "version_0"
    first, second = sorted(directory.glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    first.rename(directory / "events.out.tfevents.2.first")  # read last
    second.rename(directory / "events.out.tfevents.1.second")
    trajectory = read_history(tmp_path / "lightning_logs" / "version_0").trajectory("jsd")
    assert (trajectory.epochs.tolist(), trajectory.steps.tolist(), trajectory.values.tolist()) == (
        [3],
        [40],
        [0.5],
    )


def test_without_metadata_the_run_is_named_after_its_directory(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"similarity/cka/features/layer.10": 1.0, "similarity/cka/features/layer.2": np.nan}, step=1)
    logger.log_metrics({"val-similarity": 1.0, "dissimilarity/x": 2.0}, step=2)
    logger.finalize("success")
    history = read_history(logger.log_dir, source="tensorboard")
    assert history.run == "lightning_logs/version_0"
    assert history.layers == ["layer.2", "layer.10"]
    assert len(history) == 1
    assert history.epochs == [-1]


def test_event_files_without_similarities_are_refused(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"val_loss": 1.0}, step=1)
    logger.finalize("success")
    with pytest.raises(ValueError, match="version_0 holds no scalars under similarity/"):
        read_history(logger.log_dir)


def test_hostile_names_stay_in_the_directory(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "c"
    history = example_history(layers=HOSTILE)
    logger = TensorBoardLogger(inner)
    setup_loggers([logger], history.keys, history)
    log_scalars(logger, history)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = {f"similarity/{name}": lambda: history.matrix().plot() for name in HOSTILE[:2]}
        log_figures([logger], figures, 9)
    logger.finalize("success")
    assert all(path.is_relative_to(inner) for path in files_below(tmp_path))
    assert isinstance(read_history(logger.log_dir), SimilarityHistory)


def test_bands_of_outputs_are_margin_charts_and_no_values(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="mine")
    statistics = {"standard_error": {Key("jsd"): 0.05, Key("cka", "features", "a"): 0.1}}
    values = {Key("cka", "features", "a"): 0.5, Key("jsd"): 0.25, Key("agreement"): 0.5}
    history = SimilarityHistory({}, [Measurement(1, 9, values, statistics=statistics)])
    setup_loggers([logger], history.keys, history)
    log_scalars(logger, history)
    log_margins([logger], history.measurements[-1])
    events = events_of(logger)
    ends = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"] if "margins" in tag}
    lower, upper = "mine-similarity_margins/jsd/lower", "mine-similarity_margins/jsd/upper"
    assert {tag: event.value for tag, event in ends.items()} == pytest.approx({lower: 0.152, upper: 0.348})
    assert {event.step for event in ends.values()} == {9}
    (chart,) = [chart for chart in layout_of(events).category[0].chart if chart.HasField("margin")]
    (series,) = chart.margin.series
    assert (series.value, series.lower, series.upper) == ("mine-similarity/jsd", lower, upper)
    assert series.value in events.Tags()["scalars"]
    assert read_history(logger.log_dir, name="mine-similarity").names == ["agreement", "cka/features/a", "jsd"]
