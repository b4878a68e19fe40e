"""Checkpoints that are there whole or not at all, and hold nothing about the machine that wrote them.

A checkpoint is a folder named by its count of consumed samples. It holds the model and the optimizer as
torch.distributed.checkpoint writes them (`tensors`), and checkpoint.json (`marker`), written last, with the loader's
state, the run's progress, and the size and checksum of every other file. The folder gets its name when all of it is on
the disk (`folder`).
"""

from shardpipe.train.checkpoints.folder import Checkpoints
from shardpipe.train.checkpoints.marker import Checkpoint, Identity, Progress, read_checkpoint
from shardpipe.train.checkpoints.tensors import restore

__all__ = ["Checkpoint", "Checkpoints", "Identity", "Progress", "read_checkpoint", "restore"]
