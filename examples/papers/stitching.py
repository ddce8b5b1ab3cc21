"""Can a layer of one network take the place of another's? Figures 2, 4, 5, 7 and 8 of Csiszarik et al. 2021.

Every layer of one trained network, after its batch norm and before its ReLU, is stitched into another that differs in
its seed: by direct matching (least squares, a rotation) and by task matching, one epoch from the least squares. Scored
is accuracy over that of the network whose back it is, on images that no stitch was found with, beside two controls: no
stitch, and an untrained front.

Run: python examples/papers/stitching.py FOLDER
"""

import logging
from functools import partial

import torch
from material import SMALL, TINY10, Network, cifar10, digits, run, table, tiny10, trained
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.stitching import StitchingSums
from lightning_sim.stitching.study import StitchingStudy, profile_figure


def by_name(by_layer: dict[int, dict[str, float]]) -> dict[str, dict[int, float]]:
    return {name: {layer: of[name] for layer, of in by_layer.items()} for name in by_layer[1]}


def matching(studies: dict[int, StitchingStudy], controls: dict[int, StitchingStudy]) -> tuple[dict, dict]:
    """Figures 2 and 4: curves of relative accuracy, and of loss and R2, over the layers."""
    found, fits = {}, {}
    for layer, study in studies.items():
        start = study.map()
        scores = {
            "no stitch": study.score(None).scores,
            "untrained front": controls[layer].score(controls[layer].map()).scores,
            "least squares": study.score(start).scores,
            "orthogonal": study.score(study.map(kind="orthogonal")).scores,
        }
        stitch = study.train(start)
        scores["task loss"] = study.score(stitch).scores
        found[layer] = {name: of.relative for name, of in scores.items()}
        matched = {"least squares": float(start.r2), "task loss": study.r2(stitch)}
        fits[layer] = {f"cross-entropy, {name}": scores[name].cross_entropy for name in matched}
        fits[layer] |= {f"R2, {name}": r2 for name, r2 in matched.items()}
    for by_layer in (found, fits):
        table(("layer", *by_layer[1]), [(layer, *of.values()) for layer, of in by_layer.items()])
    return by_name(found), by_name(fits)


def profiles(study: StitchingStudy) -> tuple[dict, dict]:
    """Figures 7 and 8: curves of relative accuracy over rank and over sparsity."""
    low = study.low_rank_profile([1, 2, 4, 8, 16])
    ranks = {name: {rank: at.scores.relative for rank, at in of.items()} for name, of in low.items()}
    table(("rank of the map", *map(str, low["task loss"])), [(name, *of.values()) for name, of in ranks.items()])
    sparse = study.sparsity_profile([0.001, 0.01, 0.03, 0.1], [0.3, 1.0, 3.0])
    rows = [(name, weight, at.sparsity, at.scores.relative) for name, of in sparse.items() for weight, at in of.items()]
    table(("sparse by", "weight of the L1 norm", "sparsity", "relative accuracy"), rows)
    return ranks, {name: {at.sparsity: at.scores.relative for at in of.values()} for name, of in sparse.items()}


def unlike(study: StitchingStudy, batches: DataLoader) -> None:
    """Figure 5: what stitches reach that are trained to be unlike what they take the place of."""
    rows = []
    for weight in (0.0, 1.0, 10.0, 100.0):
        stitched = study.stitched(study.train(study.map(), cka=weight, learning_rate=0.01))
        with torch.no_grad():
            sides = ((stitched.with_features(batch)[1], stitched.of_the_back(batch)[1]) for batch in batches)
            similar = [centered_kernel_alignment(*(side.flatten(1) for side in pair)) for pair in sides]
        relative = study.score(stitched.stitch).scores.relative
        rows.append((weight, float(torch.stack(similar).mean()), relative))
    table(("weight of CKA in the loss", "CKA with the layer that is replaced", "relative accuracy"), rows)


def main() -> None:
    with run(__file__, __doc__) as given:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        if given.data:
            (front, back), untrained = tiny10(given.data, 2), Network(TINY10).eval()
            images, held_out = cifar10(given.data, "train", 5000), cifar10(given.data, "test", 2000)
        else:
            images, held_out = digits()
            front, back = (trained(partial(Network, SMALL), images, 8, seed) for seed in (0, 1))
            untrained = Network(SMALL).eval()
        fit = DataLoader(TensorDataset(*images), 128 if given.data else 64, shuffle=True)
        test = DataLoader(TensorDataset(*held_out), 500)
        names = {f"bn{layer}": f"bn{layer}" for layer in range(1, len(front.layers))}
        studies: dict[int, StitchingStudy] = {}
        controls: dict[int, StitchingStudy] = {}
        for network, found in ((front, studies), (untrained, controls)):
            sums = StitchingSums(network, back, names)
            sums.add(fit)
            for layer, name in enumerate(names, 1):
                found[layer] = StitchingStudy(network, name, back, name, fit, test, sums=sums)
        print("relative accuracy of every layer's stitch (Figure 2); loss and R2, which should both fall (Figure 4)\n")
        layers, fits = matching(studies, controls)
        print("relative accuracy at layer 3 of low rank (Figure 7) and of sparse maps (Figure 8)\n")
        ranks, sparse = profiles(studies[3])
        line = studies[len(names) - 1].mode_connectivity(3, learning_rate=0.03)
        between = ", ".join(f"{at.scores.relative:.3f}" for at in line.values())
        print(f"layer {len(names) - 1}, two stitches from random starts and half way between: {between}\n")
        print("stitches of layer 3 trained against CKA (Figure 5, paper: below 0.7 at no cost in accuracy)\n")
        unlike(studies[3], test)
        for number, title, curves, labels in (
            (2, "every layer", layers, ("layer", "relative accuracy")),
            (4, "loss and R2 both fall", fits, ("layer", "")),
            (7, "low rank, layer 3", ranks, ("rank", "relative accuracy")),
            (8, "sparse, layer 3", sparse, ("sparsity", "relative accuracy")),
        ):
            path = given.figure if number == 2 else given.out / f"stitching_{number}.png"
            profile_figure(f"Figure {number}: {title}", curves, labels).savefig(path)


if __name__ == "__main__":
    main()
