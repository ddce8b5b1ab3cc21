"""How do similarity of features and of outputs to the final network move together over training?

Every epoch's network is compared with the last one on held-out samples: CKA of every layer and the Jensen-Shannon
divergence of the outputs, and their correlation over training for every layer, with its interval (too narrow, since
epochs of one run are not independent). Nearness of features goes with nearness of outputs if all are below zero.

Run: python examples/papers/converging_on_the_final_network.py FOLDER
"""

import copy
from functools import partial

from material import SMALL, Network, cifar10, digits, run, table, trained
from torch import nn
from torch.utils.data import TensorDataset

from lightning_sim import SimilarityEngine
from lightning_sim.figures import Panel, panel_grid

STRIDED = ((3, 16, 3, 2), (16, 32, 3, 2), (32, 32, 3, 1), (32, 32, 1, 1))


def main() -> None:
    with run(__file__, __doc__) as given:
        if given.data:
            fit, probe = cifar10(given.data, "train", 4000), cifar10(given.data, "test", 1024)
            make, epochs, rate = partial(Network, STRIDED), 10, 3e-3
        else:
            fit, probe = digits()
            make, epochs, rate = partial(Network, SMALL), 5, 5e-3
        course: list[nn.Module] = []
        trained(make, fit, epochs, 0, rate=rate, after=lambda network, epoch: course.append(copy.deepcopy(network)))
        layers = [*course[0].layers, "fc"]
        with SimilarityEngine(course[0], course[-1], TensorDataset(*probe), layers=layers) as engine:
            for epoch, network in enumerate(course):
                engine.measure(network, epoch=epoch, step=epoch)
        history = engine.history
        print("correlation with the divergence of the outputs [95 % interval], the last epoch itself left out\n")
        before = type(history)(history.metadata, history.measurements[:-1])
        rows = []
        for layer in layers:
            cka = before.trajectory("cka", layer=layer)
            ends = [f"{cka.values[at]:.3f} ± {cka.standard_errors[at]:.3f}" for at in (0, -1)]
            found = [before.correlation("cka", "jsd", layer=layer, method=method) for method in ("pearson", "spearman")]
            texts = [f"{c.value:.2f} [{c.low:.2f}, {c.high:.2f}]" for c in found]
            rows.append([layer, *ends, *texts])
        table(("layer", "CKA, untrained", "CKA, last but one", "Pearson", "Spearman"), rows)
        layers_cka = {layer: history.trajectory("cka", layer=layer) for layer in layers}
        outputs = {name: history.trajectory(name) for name in ("jsd", "agreement")}
        panels = [Panel("CKA with the final network", layers_cka, by_depth=True), Panel("outputs", outputs)]
        panel_grid("Similarity to the final network", panels)[0].savefig(given.figure)


if __name__ == "__main__":
    main()
