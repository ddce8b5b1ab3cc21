"""What is said before a training about the epochs that are measured, and about who looks at the values."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import DigitsNet, fit

VALUE = "similarity/cka/features/net.8"


def monitored(root, every_n_epochs, others=(), *, epochs=4, network=None, measures=("cka",), **options):
    monitor = SimilarityMonitor(measures=measures, every_n_epochs=every_n_epochs, before_training=False)
    if any(isinstance(other, ModelCheckpoint) for other in others):
        options["enable_checkpointing"] = True
    fit([monitor, *others], root=root, epochs=epochs, network=network, **options)
    return [measurement.epoch for measurement in monitor.history.measurements]


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "words", "epochs"),
    [
        (5, {}, "multiples of 5, and the training ends after epoch 4: nothing will be measured", []),
        (5, {"validate": False}, "multiples of 5, and .*nothing will be measured", []),
        (5, {"limit_val_batches": 0}, "multiples of 5, and .*nothing will be measured", []),
        (1, {"check_val_every_n_epoch": 5}, "multiples of 5, since .* every 5th epoch only, and .*nothing", []),
        (3, {"check_val_every_n_epoch": 2}, "every_n_epochs=3 .*multiples of 6, since .*2nd .*nothing", []),
        (3, {"check_val_every_n_epoch": 2, "epochs": 7}, "multiples of 6, since .* in every 2nd epoch only$", [5]),
        (2, {"check_val_every_n_epoch": 3, "epochs": 6}, "multiples of 6, since .* in every 3rd epoch only$", [5]),
        (2, {"check_val_every_n_epoch": 4, "epochs": 8}, "multiples of 4, since .* in every 4th epoch only$", [3, 7]),
        (
            2,
            {"check_val_every_n_epoch": 4, "val_check_interval": 0.5},
            "multiples of 4, since .* in every 4th epoch only$",
            [3, 3],
        ),
        (2, {"max_steps": 3}, r"no epoch that is a multiple of 2 came to a validation \(every_n_epochs=2\)$", []),
        (2, {"max_steps": 3, "validate": False}, "no epoch that is a multiple of 2 came to its end", []),
        # Validations after 13 and 26 batches, in the third and the fifth epoch of 6 batches.
        (
            2,
            {"check_val_every_n_epoch": None, "val_check_interval": 13, "epochs": 5},
            "no epoch that is a multiple of 2 came to a validation",
            [],
        ),
    ],
)
def test_epochs_that_will_not_be_measured_are_announced(tmp_path, every_n_epochs, options, words, epochs):
    with pytest.warns(UserWarning, match=words) as caught:
        assert monitored(tmp_path, every_n_epochs, **options) == epochs
    assert len([w for w in caught if "every_n_epochs" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "epochs"),
    [
        (4, {}, [3]),
        (1, {"check_val_every_n_epoch": 3, "epochs": 6}, [2, 5]),
        (2, {"check_val_every_n_epoch": 2}, [1, 3]),
        (4, {"check_val_every_n_epoch": 2}, [3]),
        (6, {"check_val_every_n_epoch": 3, "epochs": 6}, [5]),
        (3, {"check_val_every_n_epoch": 2, "validate": False}, [2]),
        (3, {"check_val_every_n_epoch": 2, "limit_val_batches": 0}, [2]),
        (2, {"check_val_every_n_epoch": None, "val_check_interval": 3}, [1, 1, 3, 3]),
        (2, {"val_check_interval": 0.5}, [1, 1, 3, 3]),
        (7, {"fast_dev_run": True}, []),
    ],
)
def test_what_was_asked_for_is_not_commented_on(tmp_path, every_n_epochs, options, epochs):
    assert monitored(tmp_path, every_n_epochs, **options) == epochs


def test_a_resumed_training_measures_in_the_epochs_that_are_left(tmp_path):
    settings = {"measures": "cka", "every_n_epochs": 2}
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    with pytest.warns(UserWarning, match="multiples of 6.*the training ends after epoch 5: nothing will be measured"):
        fit(
            [SimilarityMonitor(**settings, before_training=False), checkpoint],
            root=tmp_path,
            epochs=5,
            check_val_every_n_epoch=3,
            enable_checkpointing=True,
        )
    monitor = SimilarityMonitor(**settings, before_training=False)
    with pytest.warns(UserWarning, match="multiples of 6, since .* in every 3rd epoch only$"):
        fit([monitor], root=tmp_path, epochs=7, check_val_every_n_epoch=3, ckpt_path=tmp_path / "last.ckpt")
    assert monitor.history.epochs == [5]


class Plateau(DigitsNet):
    def __init__(self, **config):
        super().__init__()
        self.config = config

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": VALUE} | self.config
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "make", "words"),
    [
        (2, {}, lambda root: EarlyStopping(VALUE), "EarlyStopping .*every epoch.*every 2nd .*every_n_epochs=1"),
        (3, {}, lambda root: ModelCheckpoint(root, monitor=VALUE), r"ModelCheckpoint .*\(every_n_epochs=1\)$"),
        (
            4,
            {"check_val_every_n_epoch": 2},
            lambda root: EarlyStopping(VALUE),
            r"every 2nd epoch.*every 4th epoch only; use SimilarityMonitor\(every_n_epochs=1\)$",
        ),
        (
            1,
            {"check_val_every_n_epoch": 2},
            lambda root: EarlyStopping(VALUE, check_on_train_epoch_end=True),
            r"every 2nd epoch only; use .*Trainer\(check_val_every_n_epoch=1\)",
        ),
        (
            3,
            {},
            lambda root: ModelCheckpoint(root, monitor=VALUE, every_n_epochs=2),
            "every 2nd epoch.*every 3rd epoch only",
        ),
        (2, {"network": Plateau()}, None, "ReduceLROnPlateau .*every_n_epochs=1"),
        (
            1,
            {},
            lambda root: EarlyStopping("similarity/cka/features/net.88"),
            "'similarity/cka/features/net.88'.* does not log; it logs similarity/cka/features/net.0, ",
        ),
        (
            1,
            {"measures": ("cka", "jsd")},
            lambda root: EarlyStopping("similarity/cka_jsd_pearson/features/net.8"),
            "from measurement 4 on only",
        ),
    ],
)
def test_looking_where_nothing_is_logged_is_refused_before_the_first_step(
    tmp_path, every_n_epochs, options, make, words
):
    others = [] if make is None else [make(tmp_path)]
    with pytest.raises(ValueError, match=words):
        monitored(tmp_path, every_n_epochs, others, **options)
    assert not list(tmp_path.rglob("record.jsonl"))


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "make"),
    [
        (2, {}, lambda root: ModelCheckpoint(root, monitor=VALUE, every_n_epochs=2)),
        (2, {"check_val_every_n_epoch": 2}, lambda root: ModelCheckpoint(root, monitor=VALUE)),
        (2, {"check_val_every_n_epoch": 2}, lambda root: EarlyStopping(VALUE)),
        (2, {"network": Plateau(frequency=2)}, None),
        (2, {}, lambda root: EarlyStopping("accuracy")),
        (2, {}, lambda root: ModelCheckpoint(root, monitor=VALUE, save_top_k=0)),
        (
            1,
            {"measures": ("cka", "jsd"), "epochs": 4},
            lambda root: ModelCheckpoint(root, monitor="similarity/cka_jsd_pearson/features/net.8", every_n_epochs=4),
        ),
    ],
)
def test_looking_where_something_is_logged_is_let_be(tmp_path, every_n_epochs, options, make):
    monitored(tmp_path, every_n_epochs, [] if make is None else [make(tmp_path)], **options)


def test_who_may_find_nothing_is_warned_and_trains_on(tmp_path):
    stopping = EarlyStopping(VALUE, strict=False, patience=9)
    with pytest.warns(UserWarning, match="EarlyStopping looks at .*every_n_epochs=1"):
        assert monitored(tmp_path, 2, [stopping]) == [1, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, that the key is missing
        checkpoint = ModelCheckpoint(tmp_path, monitor=VALUE)
        with pytest.warns(UserWarning, match="ModelCheckpoint looks at .*every_n_epochs=1"):
            monitored(tmp_path, 2, [checkpoint], validate=False)
