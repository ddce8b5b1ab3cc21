"""Settings for all tests."""

import torch
import torch.distributed.fsdp

# Handing small operations to several threads takes longer than computing them.
torch.set_num_threads(1)

# Before torch 2.6 there was no public FSDP2.
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    collect_ignore = ["callbacks/test_sharded.py", "probe/test_shards.py"]
