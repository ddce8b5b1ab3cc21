"""Do features, gradients and their product tell which data a network was trained on? Section 5.1 of Tang et al. 2020.

Small networks, three seeds for each set of training data, are compared on samples of the first set: seeds with each
other (within) and with networks trained on other data (between). The further a representation takes the two apart, the
better it shows what was learnt. Unbiased CKA, mean over pairs of networks and in brackets the lowest and the highest.

Run: python examples/papers/features_and_gradients.py FOLDER
"""

import itertools
import statistics
from functools import partial

from material import SMALL, Network, as_cifar10, cifar10, digits, mnist, run, table, trained
from torch.utils.data import TensorDataset

from lightning_sim import compare_networks
from lightning_sim.stitching.study import profile_figure

STRIDED = ((3, 8, 3, 2), (8, 16, 3, 2), (16, 16, 3, 1))
REPRESENTATIONS = ("features", "gradients", "features*gradients")


def main() -> None:
    with run(__file__, __doc__) as given:
        if given.data:
            (images, labels), (probe, classes) = mnist(given.data)
            images, labels, probe = as_cifar10(images[:4000]), labels[:4000], as_cifar10(probe[:512])
            sets = {"MNIST": (images, labels), "turned MNIST": (images.rot90(1, (2, 3)), labels)}
            sets["CIFAR-10"] = cifar10(given.data, "train", 4000)
            make, epochs, seeds = partial(Network, STRIDED), 3, 3
        else:
            (images, labels), (probe, classes) = digits()
            sets = {"digits": (images, labels), "turned digits": (images.rot90(1, (2, 3)), labels)}
            probe, make, epochs, seeds = probe[:200], partial(Network, SMALL), 2, 2
        networks = {
            name: [trained(make, samples, epochs, seed) for seed in range(seeds)] for name, samples in sets.items()
        }
        (name, own), *others = networks.items()
        pairs = {f"within {name}": list(itertools.combinations(own, 2))}
        pairs |= {f"{name} to {other}": list(itertools.product(own, theirs)) for other, theirs in others}
        layers, data = own[0].layers, TensorDataset(probe, classes[: len(probe)])
        options = {"layers": layers, "measures": ("cka",), "representations": REPRESENTATIONS, "matrices": ()}
        rows, errors, means = [], [], {}
        for title, compared in pairs.items():
            histories = [compare_networks(a, b, data, progress=False, **options) for a, b in compared]
            for kind in REPRESENTATIONS:
                cells = []
                for place, layer in enumerate(layers, 1):
                    found = [history.trajectory("cka", layer=layer, representation=kind) for history in histories]
                    values = [float(trajectory.values[0]) for trajectory in found]
                    errors.extend(float(trajectory.standard_errors[0]) for trajectory in found)
                    means[kind, place, title] = statistics.mean(values)
                    cells.append(f"{means[kind, place, title]:.3f} [{min(values):.3f}, {max(values):.3f}]")
                rows.append([kind, title, len(values), *cells])
        rows.sort(key=lambda row: REPRESENTATIONS.index(row[0]))
        table(("representation", "networks", "pairs", *layers), rows)
        chance = (2 / (len(probe) * (len(probe) - 3))) ** 0.5
        print(f"{len(probe)} samples; unrelated representations read 0 ± {chance:.4f}")
        print(f"standard error over samples of one value: {statistics.mean(errors):.3f} in the mean")
        print("paper: within above between, by most for gradients and the product")
        within, *between = pairs
        curves = {
            kind: {
                place: means[kind, place, within] - statistics.mean(means[kind, place, title] for title in between)
                for place in range(1, len(layers) + 1)
            }
            for kind in REPRESENTATIONS
        }
        figure = profile_figure("CKA within a data set minus between two", curves, ("layer", "difference"))
        figure.savefig(given.figure)


if __name__ == "__main__":
    main()
