"""Tables of misuses, and what is said to each: never nothing, and never a raw error of Python's."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_sim.functional
from lightning_sim import Reference, SimilarityHistory, SimilarityMonitor, Sketch, cli
from lightning_sim.record import Measurement, SimilarityMatrix
from lightning_sim.record.file import RecordWriter
from lightning_sim.sketch import SketchSet, save_sketches


class Network(LightningModule):
    def __init__(self, width=4, name="body"):
        super().__init__()
        self.add_module(name, nn.Linear(3, width))
        self.head = nn.Linear(width, 2)
        self.spare = nn.Linear(2, 2)  # never called

    def forward(self, x):
        return self.head(next(self.children())(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Silent(Network):
    """A network that returns nothing that could be compared."""

    def forward(self, x):
        super().forward(x)
        return "done"

    def training_step(self, batch, batch_idx):
        return Network.forward(self, batch[0]).sum()


class Headless(Network):
    forward = LightningModule.forward


class Exploding(Network):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=math.inf)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3), 0)] * 2)


class Loaders(LightningDataModule):
    pass


def data(samples=8, width=3):
    x = torch.randn(samples, width, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.arange(samples) % 2)


def fit(network=Network, samples=8, epochs=1, **settings):
    """Two steps an epoch with a monitor."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[SimilarityMonitor(**settings)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network(), DataLoader(data(samples), batch_size=4))


def saved(content, path):
    torch.save(content, path)
    return path


def written(content, path):
    path.write_bytes(content)
    return path


def loaded(path):
    return Reference(path).weights_for(Network())


def broken():
    return {name: value * math.nan for name, value in Network().state_dict().items()}


def history():
    matrix = SimilarityMatrix("cka", "features", ("a", "b"), ("a", "b"), np.eye(2))
    values = {"cka/features/a": 0.5, "cka/features/b": 0.25, "nbs/features/a": 0.5, "jsd": 0.1}
    return SimilarityHistory({"run": "one"}, [Measurement(0, 9, values, [matrix]), Measurement(1, 19, values)])


def record(folder, name="run"):
    writer = RecordWriter(folder / name / "similarity", {"run": name})
    for measurement in history().measurements:
        writer.append(measurement)
    return folder / name


def sketch(samples=16, width=3, **sizes):
    made = Sketch(**({"num_buckets": 16, "num_projections": 8} | sizes))
    made.update(torch.randn(samples, width, generator=torch.Generator().manual_seed(0)), torch.arange(samples))
    return made


def sketch_file(folder, name="a.safetensors", **options):
    save_sketches(SketchSet({"features": {"a": sketch()}}, **options), folder / name)
    return folder / name


X, Y = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1))

NAMES = "must be one name or a list of names, such as"
INTEGER = "must be an integer, at least"
PROBE = "must be a DataLoader, a Dataset, a list of samples, or None"
PLAIN = 'must be a plain name, such as "teacher"'
SAVING = "must be True, False or every how many measurements"
SEED = "must be an integer, at least 0 and at most 4294967295"
REFERENCE = 'must be "init", "previous", the path of a checkpoint, an nn.Module or a Reference'

# Argument of SimilarityMonitor, what is said, and what is given, which is in the message as well.
ARGUMENTS = [
    ("layers", NAMES, ["3", "None", "True", "[0]", "['body', None]", "[]", "''", "b'body'"]),
    ("layers", "network.named_modules() gives the names", ["nn.Linear(2, 2)", "[nn.Linear(2, 2)]"]),
    ("layers", "must map names to names", ["{'body': 0}", "{'body': ['body', 'head']}", "{0: 'body'}"]),
    ("layers", "an empty mapping", ["{}"]),
    ("measures", "must be of cka, nbs, wcka", ["None", "3", "['cka', 3]", "{'cka': True}", "[None]"]),
    ("measures", "must be of cka, nbs, wcka", ["'cka,nbs'", "['cka', 'ckka']", "'CKA'"]),
    ("measures", "needs a name without / and @", ["[lambda x, y: 0]"]),
    ("representations", NAMES, ["None", "[]", "['features', 1]", "{'features': 1}"]),
    ("representations", "must be of 'features' (what the layer gives)", ["'gradient'", "['features', 'x']"]),
    ("num_samples", INTEGER + " 4", ["'100'", "100.0", "None", "True", "3", "-1", "math.nan", "torch.tensor(9)"]),
    ("num_buckets", INTEGER, ["1000.5", "'1024'", "0", "None", "[1024]"]),
    ("num_buckets", "must be a power of two", ["1000"]),
    ("num_projections", INTEGER, ["1024.0", "-2", "None", "'x'"]),
    ("num_projections", "must be an even number", ["7"]),
    ("every_n_epochs", INTEGER + " 1", ["'2'", "1.5", "0", "-1", "True"]),
    ("every_n_train_steps", INTEGER + " 1", ["'2'", "1.5", "0", "-1", "True"]),
    ("before_training", "True or False", ["None", "1", "'yes'"]),
    ("probe_choice", "must be one of 'spaced', 'first', 'random'", ["None", "'last'", "0"]),
    ("cache_probe", "True or False", ["None", "1", "'yes'"]),
    ("estimator", "must be one of 'unbiased', 'biased'", ["'debiased'", "None", "['biased']"]),
    ("forward", "must be a function, such as forward=lambda network, batch:", ["3", "None", "'forward'"]),
    ("beta", "must be a finite number", ["'x'", "None", "math.nan", "math.inf", "True"]),
    ("beta", "must not be negative, nor 1", ["-0.5", "1"]),
    ("loss", "must be a function, such as loss=lambda output, batch:", ["3", "'cross_entropy'"]),
    ("sketch", "must be one of 'default', 'tang2020'", ["'tang'", "None", "Sketch()"]),
    ("pool", "must be one of 'flatten', 'mean', 'first', 'last', 'tokens'", ["'max'", "None"]),
    ("name", "must be a string that is not empty", ["3", "None", "''"]),
    ("name", PLAIN, ["' '", "'.'", "'..'", "'a/b'", "'/tmp'", "'a\\\\b'", "'a\\nb'"]),
    ("save_sketches", SAVING, ["'yes'", "-1", "1.5", "None"]),
    ("log_sketches", "must be True or False", ["'yes'", "1", "None"]),
    ("seed", SEED, ["'a'", "None", "-1", "2**64", "0.5"]),
    ("on_error", "must be one of 'warn', 'raise'", ["'ignore'", "None"]),
    ("probe", PROBE, ["3", "'validation'", "b'x'", "iter(data())", "{'x': 3}", "Network()", "Loaders()"]),
    ("reference", REFERENCE, ["3", "None", "[nn.Linear(2, 2)]", "nn.Linear", "{'weight': 3}", "''", "True"]),
    ("reference", 'neither "init" nor "previous" nor a file ending in', ["'Init'", "'weights.h5'"]),
]

# What is done, and fragments of the ValueError.
CALLS = [
    ("SimilarityMonitor(measures=[])", "`measures` is empty", "or functions of two matrices"),
    ("fit(measures='mean_embedding', sketch='tang2020')", "mean_embedding (it needs a sum of samples", "lacks"),
    ("fit(measures=['hsic', 'jsd'], samples=40, num_buckets=16)", "hsic (it is a function", "num_buckets=64"),
    ("SimilarityMonitor(save_sketches=True, sketch='tang2020')", "cannot be saved", "leave `save_sketches` out"),
    ("SimilarityMonitor(probe=[DataLoader(data())])", "`probe` must be one DataLoader", "a list of DataLoaders"),
    ("SimilarityMonitor(reference=folder)", "is a folder", "a checkpoint is one file"),
    # Files.
    ("Reference(written(b'', folder / 'empty.ckpt'))", "empty.ckpt is empty", "again"),
    ("Reference(written(b'<html>', folder / 'page.bin'))", "page.bin is a web page", "download the file itself"),
    ("Reference(written(b'version https://git-lfs', folder / 'lfs.bin'))", "lfs.bin", "`git lfs pull`"),
    ("Reference(written(b'not found', folder / 'text.pt'))", "begins with 'not found'", "pass the file with"),
    ("Reference(saved({}, folder / 'a.safetensors'))", "a.safetensors", "let it end in .ckpt or .pt"),
    ("loaded(written(bytes(64), folder / 'damaged.ckpt'))", "damaged.ckpt", "damaged", "torch.save("),
    ("loaded(written(bytes(64), folder / 'damaged.safetensors'))", "damaged.safetensors", "damaged", "again"),
    ("loaded(saved(nn.Linear(2, 2), folder / 'a.ckpt'))", "run code", "nn.modules.linear.Linear", "torch.save("),
    ("loaded(saved([1], folder / 'list.pt'))", "holds a list", "torch.save(network.state_dict()"),
    ("loaded(saved({'epoch': 3}, folder / 'a.ckpt'))", "no state dict", "its keys are: epoch", "network.state_dict()"),
    ("loaded(saved({'other': torch.zeros(2)}, folder / 'a.pt'))", "unexpected other", "as an nn.Module"),
    ("Reference.from_sketches(3)", "`path` must be the path of a file of sketches", "3 (int)"),
    ("Reference.from_sketches(saved({}, folder / 'a.ckpt'))", "a.ckpt is not a readable safetensors file"),
    # Before the first step of a training.
    ("fit(layers='boddy')", "no layer 'boddy' in the network", "Nearest: body", "Available: body, head, spare"),
    ("fit(layers=['conv*'])", "no layer matches the glob 'conv*'", "Available: body, head, spare"),
    ("fit(layers={'boddy': 'body'})", "no layer 'boddy' in the network", "Nearest: body"),
    ("fit(layers={'body': 'boddy'})", "no layer 'boddy' in the reference", "Nearest: body"),
    ("fit(layers='spare')", "spare", "did not run"),
    ("fit(reference=Network(name='trunk'), layers='body')", "no layer 'body' in", "Available: trunk", "layers={"),
    ("fit(reference=nn.Linear(7, 2))", "no layer 'body' in the reference", "layers={"),
    ("fit(reference=Network().to('meta'))", "the reference Network has no values for body.weight", "load its weights"),
    ("fit(reference=nn.Sequential(nn.LazyLinear(2)))", "no values for 0.weight", "load its weights"),
    ("fit(samples=2)", "the probe has 2 samples", "at least 4"),
    ("fit(probe=data(3))", "the probe has 3 samples", "at least 4"),
    ("fit(probe=[])", "the dataset is empty", "at least 4"),
    ("fit(probe=Stream())", "the probe has 2 samples", "at least 4"),
    ("fit(probe=data(width=5))", "could not be run on a batch of the probe", "8x5", "forward=lambda network, batch"),
    ("fit(probe=['a', 'b', 'c', 'd'])", "could not be run on a batch of the probe", "forward=lambda network, batch"),
    ("fit(probe=DataLoader(data(), batch_size=None))", "batch_size=None", "a DataLoader with a batch size"),
    ("fit(network=Headless)", "Headless defines no forward()", "forward=lambda network, batch"),
    ("fit(forward=lambda network: network)", "could not be run", "takes 1 positional argument", "forward=lambda"),
    ("fit(forward=lambda network, batch: network.body2)", "could not be run", "body2", "forward=lambda"),
    ("fit(forward=lambda network, batch: None)", "no layer is left to measure", "body, head, spare (did not run"),
    ("fit(network=Silent, representations='gradients')", "gradients need logits", "loss=lambda output, batch"),
    ("fit(network=Silent, measures='agreement')", "measures that do not apply: agreement", "no logits"),
    ("fit(network=Silent, measures='task2vec')", "measures that do not apply: task2vec", "needs logits"),
    ("fit(measures='fisher_rao_distance', reference=Network(7))", "the same parameters", "differ: body.bias"),
    ("fit(reference=saved(Network(7).state_dict(), folder / 'a.pt'))", "body.weight (7, 3) for (4, 3)", "nn.Module"),
    ("fit(reference=saved(broken(), folder / 'a.pt'))", "the reference cannot be compared with: body", "NaN"),
    ("fit(reference=broken)", "`reference` must be", "(function)"),
    ("fit(reference=sketch_file(folder))", "was made with num_buckets=16", "monitor with the same"),
    ("fit(reference=sketch_file(folder), num_buckets=16, num_projections=8)", "16 samples", "pass the probe"),
    # A record, and questions to it.
    ("read_history(3)", "`path` must be the path of a run", "3 (int)"),
    ("read_history(None)", "`path` must be the path of a run", "None"),
    ("read_history(['run'])", "`path` must be the path of a run", "['run'] (list)"),
    ("read_history(folder, name=3)", "`name` must be a string", "3 (int)"),
    ("read_history(folder, source='jsonl')", "`source` must be one of record, tensorboard, csv, wandb", "'jsonl'"),
    ("read_history(folder, source=3)", "`source` must be one of record, tensorboard, csv, wandb", "3"),
    ("read_history(written(b'', folder / 'record.jsonl'))", "record.jsonl holds no header", "nothing was measured"),
    ("read_history(written(b'[1]\\n', folder / 'record.jsonl'))", "line 1 is damaged", "a JSON object", "list"),
    ("SimilarityHistory(None)", "`metadata` must be a mapping, {} where nothing is known", "None"),
    ("SimilarityHistory('run')", "`metadata` must be a mapping, {} where nothing is known", "'run'"),
    ("SimilarityHistory({}, 3)", "`measurements` must be a list", "3 (int)"),
    ("SimilarityHistory({}, [{'cka': 1.0}])", "of the class Measurement", "{'cka': 1.0} (dict)"),
    ("SimilarityHistory({}).append(3)", "of the class Measurement", "3 (int)"),
    ("SimilarityHistory({}).trajectory('cka')", "no measure 'cka'", "nothing yet"),
    ("history().trajectory(3)", "`measure` must be a string", "3 (int)"),
    ("history().trajectory(['cka'])", "`measure` must be a string", "['cka'] (list)"),
    ("history().trajectory('ckka')", "no measure 'ckka'", "it holds cka, nbs, jsd"),
    ("history().trajectory('cka')", "give `layer`", "measured for a, b"),
    ("history().trajectory('cka', layer='c')", "no layer 'c'", "measured for a, b"),
    ("history().trajectory('cka', layer=0)", "`layer` must be a string", "0 (int)"),
    ("history().trajectory('cka', layer='a', representation='x')", "measured for features, not for 'x'"),
    ("history().trajectory('cka', layer='a', representation=None)", "`representation` must be a string", "None"),
    ("history().trajectory('jsd', layer='a')", "'jsd' belongs to outputs", "leave `layer` out", "'a'"),
    ("history().matrix('nbs')", "no matrix of nbs, features", "it holds cka, features at epochs 0"),
    ("history().matrix(0)", "`measure` must be a string", "0 (int)"),
    ("history().matrix(epoch=7)", "at epoch 7", "it holds cka, features at epochs 0"),
    ("history().matrix(epoch='last')", "`epoch` must be an integer", "'last' (str)"),
    ("history().matrix(epoch=0.5)", "`epoch` must be an integer", "0.5 (float)"),
    ("history().correlation(3)", "`measure` must be a string", "3 (int)"),
    ("history().correlation('cka', 'jsd')", "give `layer`", "measured for a, b"),
    ("history().correlation('cka', 'ckka', layer='a')", "no measure 'ckka'", "it holds cka, nbs, jsd"),
    ("history().correlation(layer='a', method='kendall')", "one of 'pearson', 'spearman'", "'kendall'"),
    ("history().correlation(layer='a', confidence='x')", "`confidence` must be a finite number", "'x' (str)"),
    ("history().correlation(layer='a', confidence=95)", "`confidence` must be between 0 and 1", "95"),
    ("history().correlation('cka', 'nbs', epoch=9)", "at epoch 9", "epochs are 0, 1"),
    ("history().correlation(layer='a', epoch=0)", "`epoch` is for correlations over layers", "got epoch 0"),
    ("SimilarityHistory.concatenate(3)", "must map names to histories", "3 (int)"),
    ("SimilarityHistory.concatenate('run')", "must map names to histories", "'run' (str)"),
    ("SimilarityHistory.concatenate([history()])", "must map names to histories", "list"),
    # A sketch and its file.
    ("Sketch(num_buckets=1000)", "`num_buckets` must be a power of two", "1000"),
    ("Sketch(num_projections=7)", "`num_projections` must be an even number", "7"),
    ("Sketch(dtype=torch.float16)", "`dtype` must be torch.float32 or torch.float64", "torch.float16"),
    ("Sketch().update(X, torch.arange(12.0))", "`sample_ids` must be 12 integers", "torch.float32"),
    ("Sketch().update(X, torch.arange(11))", "`sample_ids` must be 12 integers", "(11,)"),
    ("Sketch().update(X.int(), torch.arange(12))", "`features` must be floating-point", "torch.int32"),
    ("sketch().update(X, torch.arange(12))", "must keep their width: 3 so far", "5"),
    ("sketch().update(X[:, :3], torch.arange(12), gradients=X)", "without `gradients` so far", "now with them"),
    ("Sketch().cka(sketch())", "needs at least 4 samples", "0"),
    ("sketch().cka(sketch(seed=1))", "different `seed`", "0 and 1"),
    ("sketch().cka(sketch(num_buckets=32))", "different `num_buckets`", "16 and 32"),
    ("sketch().cka(sketch(12))", "different samples", "16 and 12", "on the same probe"),
    ("sketch().cka(sketch(), estimator='debiased')", "`estimator` must be", "'debiased'"),
    ("sketch().merge(sketch(width=4))", "cannot merge", "3 and 4"),
    ("sketch().save(folder / 'x.pt')", "must end in .safetensors", "x.pt"),
    ("Sketch().save(folder / 'x.safetensors')", "holds no samples", "nothing to save"),
    ("Sketch.load(written(b'', folder / 'x.safetensors'))", "x.safetensors is not a readable safetensors file"),
    # Metrics and functions.
    ("CenteredKernelAlignment('all')", "`accumulate` must be one of 'sketch', 'exact', 'minibatch'", "'all'"),
    ("CenteredKernelAlignment(estimator='debiased')", "`estimator` must be one of 'unbiased', 'biased'", "'debiased'"),
    ("CenteredKernelAlignment().update(X, Y[:3])", "the same samples row by row", "(12, 5) and (3, 5)"),
    ("CenteredKernelAlignment().update(X.numpy(), Y)", "`x` must be a torch.Tensor", "ndarray"),
    ("CenteredKernelAlignment().update(X, None)", "`y` must be a torch.Tensor", "NoneType"),
    ("CenteredKernelAlignment().update(X[0], Y[0])", "must have shape (samples, width)", "(5,)"),
    ("NormalizedBuresSimilarity().update('x', 'y')", "`x` must be a torch.Tensor", "str"),
    ("PredictionAgreement().update(X, Y[:, :3])", "the same samples and classes", "(12, 5) and (12, 3)"),
    ("OutputDivergence(base=3)", "`base` must be one of 'e', 2", "3"),
    ("OutputDivergence().update(X[:, :1], Y[:, :1])", "at least 2 classes", "(12, 1)", "torch.stack"),
    ("RankCorrelation().update(X.int(), Y.int())", "must be floating-point", "torch.int32", "call .float()"),
    ("functional.centered_kernel_alignment(X * math.nan, Y)", "`x` of shape (12, 5) holds NaN"),
    ("functional.centered_kernel_alignment(X, Y, kernel='poly')", "`kernel` must be one of 'linear', 'rbf'", "'poly'"),
    ("functional.hsic(X[:3], Y[:3])", "at least 4 rows", "(3, 5)"),
    ("functional.minibatch_centered_kernel_alignment(X, Y, batch_size=2)", "an integer, at least 4", "2"),
    ("functional.svcca(X, Y, variance=1.5)", "`variance` must be a share in (0, 1]", "1.5"),
    ("functional.mutual_knn(X, Y, k=12)", "`k` must be between 1 and 11", "12"),
    ("functional.weight_centered_kernel_alignment([], [])", "at least one linear layer", "none"),
    ("functional.weight_centered_kernel_alignment([X], [3])", "`weights_b[0]` must be a torch.Tensor", "int"),
    ("functional.jensen_shannon_divergence(X, Y, base='2')", "`base` must be one of 'e', 2", "'2'"),
    ("functional.pearson_correlation([1, 2], [1, 2])", "`a` must be a torch.Tensor", "list"),
]

# What is looked for and not there, and fragments of the FileNotFoundError.
MISSING = [
    ("Reference('no.ckpt')", "no.ckpt does not exist"),
    ("Reference.from_sketches(folder / 'no.safetensors')", "there is no sketch file", "no.safetensors"),
    ("Sketch.load(folder / 'no.safetensors')", "there is no sketch file", "no.safetensors"),
    ("read_history(folder / 'nowhere')", "nowhere does not exist"),
    ("read_history(folder)", "holds no run to read", "similarity/record.jsonl"),
    ("read_history(record(folder), source='csv')", "holds no csv to read", "metrics.csv"),
    ("read_history(record(folder), name='other')", "holds no run to read", "other/record.jsonl"),
    ("read_history(record(folder).parent)", "holds no run to read", "there are runs below it", "run"),
]

# Arguments of lightning-sim, its exit status, and fragments of what it prints to the standard error.
COMMANDS = [
    ("", 2, "required: COMMAND"),
    ("repot", 2, "invalid choice: 'repot'", "report"),
    ("report", 2, "required: RUN"),
    ("report {folder}/nowhere", 1, "nowhere does not exist"),
    ("report {folder}", 1, "holds no run to read", "there are runs below it"),
    ("report {run} --format xml", 2, "invalid choice: 'xml'", "table"),
    ("report {run} --name other", 1, "other/record.jsonl"),
    ("report {run} --name=", 1, "`name` must be a string"),
    ("report {run} --out {folder}", 1, "--out {folder} cannot be written to", "directory"),
    ("compare", 2, "required: PATH"),
    ("compare {folder}/nowhere", 1, "there is no file or folder", "nowhere"),
    ("compare {run}", 1, "no sketch files", "SimilarityMonitor(save_sketches=True)"),
    ("compare {file} --measure ckka", 1, "`--measure` must be one of 'cka'", "'ckka'"),
    ("compare {file} --layer c", 1, "no layer 'c'", "it has a"),
    ("compare {file} --epoch x", 2, "--epoch: invalid int value: 'x'"),
    ("compare {file} --epoch 7", 1, "no sketches of epoch 7", "it has -1"),
    ("compare {file} --layer a --epoch 0", 1, "leave --epoch out"),
    ("compare {file} --representation gradients", 1, "no sketches of 'gradients'", "it holds features"),
    ("compare {file} --measure jsd", 1, "no outputs were saved", "SimilarityMonitor(save_sketches=True)"),
    ("compare {file} --measure jsd --layer a", 1, "--layer has no meaning"),
    ("compare {file} --out x.docx", 2, "must end in .csv, .png, .pdf, .svg", "'x.docx'"),
    ("demo --epochs 0", 2, "--epochs: must be between 1 and 1000, got 0"),
    ("demo --epochs two", 2, "--epochs: invalid integer value: 'two'"),
    ("demo --seed -1", 2, "--seed: must be between 0 and", "-1"),
    (f"demo --seed {2**64}", 2, "--seed: must be between 0 and"),
    ("demo --oot x", 2, "unrecognized arguments: --oot"),
    ("demo --out {file}", 1, "--out {file} cannot be written to"),
]


PUBLIC = {name: getattr(lightning_sim, name) for name in (*lightning_sim.__all__, "functional")}


def run(call, folder):
    return eval(call, {**PUBLIC, **globals(), "folder": folder})


def shown(value):
    """How a message shows the value, or something in it."""
    if isinstance(value, dict | list) and not value:
        return ["got none", "got an empty mapping"]
    inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list | bytes) else ()
    return [repr(value)[:8], *(part for item in inside for part in shown(item))]


@pytest.mark.parametrize(
    ("name", "said", "given"), [(name, said, given) for name, said, many in ARGUMENTS for given in many]
)
def test_arguments_of_a_monitor(tmp_path, name, said, given):
    with pytest.raises(ValueError, match="`") as refused:
        run(f"SimilarityMonitor({name}={given})", tmp_path)
    assert type(refused.value) is ValueError
    message = str(refused.value)
    assert said in message
    assert f"`{name}`" in message
    assert any(part in message for part in shown(run(given, tmp_path)))


@pytest.mark.parametrize(("call", "said"), [(call, said) for call, *said in CALLS])
def test_calls(tmp_path, monkeypatch, call, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=" ") as refused:
        run(call, tmp_path)
    assert type(refused.value) is ValueError  # and no subclass, such as a UnicodeDecodeError
    for part in said:
        assert part in str(refused.value)


@pytest.mark.parametrize(("call", "said"), [(call, said) for call, *said in MISSING])
def test_what_is_not_there(tmp_path, call, said):
    with pytest.raises(FileNotFoundError) as refused:
        run(call, tmp_path)
    for part in said:
        assert part in str(refused.value)


@pytest.mark.parametrize(("arguments", "status", "said"), [(a, status, said) for a, status, *said in COMMANDS])
def test_the_command_line(tmp_path, capsys, arguments, status, said):
    places = {"folder": tmp_path, "run": record(tmp_path), "file": sketch_file(tmp_path)}
    try:
        ended = cli.main(arguments.format(**places).split())
    except SystemExit as stopped:
        ended = stopped.code
    assert ended == status
    message = capsys.readouterr().err
    for part in said:
        assert part.format(**places) in message
    assert "Traceback" not in message


def test_a_failing_measurement_is_warned_about_or_ends_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"NaN"), pytest.warns(UserWarning, match=r"not measured: spare \(did not run"):
        fit(network=Exploding)
    with pytest.raises(RuntimeError, match=r"could not measure: .*NaN"):
        fit(network=Exploding, layers=["body", "head"], on_error="raise")
