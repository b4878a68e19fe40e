"""Checkpoints that are there whole or not at all, hold nothing about the machine that wrote them, and run nothing.

A checkpoint is a folder named by its count of consumed samples. It holds model and optimizer, as safetensors of each
process (format 2), and checkpoint.json, written last, with the loader's state, the run's progress, and the size and
checksum of every other file.

marker      checkpoint.json
storage     where they lie: a folder, or a URL
reading     one that is there, and whether it is as it was written
pieces      tensors in safetensors, written and read by torch.distributed.checkpoint; pickled reads format 1's
tensors     model and optimizer by the names of their tensors
keeping     which are kept; collection has all of a run
saving      written beside the training
faults      what went wrong in any of the processes
"""

from shardpipe.train.checkpoints.collection import Checkpoints
from shardpipe.train.checkpoints.keeping import Keep, best_of, kept, sets_in
from shardpipe.train.checkpoints.marker import FORMAT, Checkpoint, Identity, Progress, count_of, damaged, name_of
from shardpipe.train.checkpoints.reading import looks_whole, read_checkpoint
from shardpipe.train.checkpoints.saving import Saver
from shardpipe.train.checkpoints.tensors import read_weights, restore

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Checkpoints",
    "Identity",
    "Keep",
    "Progress",
    "Saver",
    "best_of",
    "count_of",
    "damaged",
    "kept",
    "looks_whole",
    "name_of",
    "read_checkpoint",
    "read_weights",
    "restore",
    "sets_in",
]
