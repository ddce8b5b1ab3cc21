"""Whether a layer of one network can take the place of another's: stitched networks, made, trained and scored."""

from lightning_sim.stitching.fitting import StitchingSums
from lightning_sim.stitching.network import Stitch, Stitched
from lightning_sim.stitching.scores import Scores, score_stitched

__all__ = ["Scores", "Stitch", "Stitched", "StitchingSums", "score_stitched"]
