"""Do features, gradients and their product tell which data a network was trained on? Section 5.1 of Tang et al. 2020.

Small networks, three seeds for each set of training data, are compared on samples of the first set: seeds with each other
(within) and with networks trained on other data (between). The further a representation takes the two apart, the better
it shows what was learnt. Unbiased CKA, mean over pairs of networks and in brackets the lowest and the highest.

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
            images, labels, probe, classes = as_cifar10(images[:4000]), labels[:4000], as_cifar10(probe[:512]), classes[:512]
            sets = {"MNIST": (images, labels), "turned MNIST": (images.rot90(1, (2, 3)), labels)}
            sets["CIFAR-10"] = cifar10(given.data, "train", 4000)
            make, epochs, seeds = partial(Network, STRIDED), 3, 3
        else:
            (images, labels), (probe, classes) = digits()
            sets = {"digits": (images, labels), "turned digits": (images.rot90(1, (2, 3)), labels)}
            probe, classes, make, epochs, seeds = probe[:200], classes[:200], partial(Network, SMALL), 2, 2
        first, *others = {name: [trained(make, data, epochs, seed) for seed in range(seeds)] for name, data in sets.items()}.items()
        pairs = {f"within {first[0]}": list(itertools.combinations(first[1], 2))}
        pairs |= {f"{first[0]} to {name}": list(itertools.product(first[1], networks)) for name, networks in others}
        layers = first[1][0].layers
        data = TensorDataset(probe, classes)
        options = {"layers": layers, "measures": ("cka",), "representations": REPRESENTATIONS, "matrices": ()}
        rows, errors, means = [], [], {}
        for title, networks in pairs.items():
            histories = [compare_networks(a, b, data, progress=False, **options) for a, b in networks]
            for representation in REPRESENTATIONS:
                cells = []
                for place, layer in enumerate(layers):
                    of_layer = {"layer": layer, "representation": representation}
                    found = [history.trajectory("cka", **of_layer) for history in histories]
                    values = [float(trajectory.values[0]) for trajectory in found]
                    errors.extend(float(trajectory.standard_errors[0]) for trajectory in found)
                    cells.append(f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
                    means[representation, place + 1, title] = statistics.mean(values)
                rows.append([representation, title, len(values), *cells])
        table(("representation", "networks", "pairs", *layers), sorted(rows, key=lambda row: REPRESENTATIONS.index(row[0])))
        print(f"{len(probe)} samples; unrelated representations read 0 ± {(2 / (len(probe) * (len(probe) - 3))) ** 0.5:.4f}")
        print(f"standard error over samples of one value: {statistics.mean(errors):.3f} in the mean")
        print("paper: within above between, by most for gradients and the product")
        within, *between = pairs
        curves = {
            name: {
                place: means[name, place, within] - statistics.mean(means[name, place, title] for title in between)
                for place in range(1, len(layers) + 1)
            }
            for name in REPRESENTATIONS
        }
        figure = profile_figure("CKA within a data set minus between two", curves, ("layer", "difference"))
        figure.savefig(given.figure)


if __name__ == "__main__":
    main()
