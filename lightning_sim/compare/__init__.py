"""Comparing what was saved: sketches of layers, epochs and runs, with no network at hand."""

from lightning_sim.compare.matrices import epoch_matrix, layer_matrix, run_rows, tidy
from lightning_sim.compare.outputs import output_matrix
from lightning_sim.compare.sources import SketchedRun, find_run

__all__ = ["SketchedRun", "epoch_matrix", "find_run", "layer_matrix", "output_matrix", "run_rows", "tidy"]
