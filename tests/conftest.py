"""Settings for all tests."""

import torch

# Handing small operations to several threads takes longer than computing them.
torch.set_num_threads(1)
