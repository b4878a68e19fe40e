"""A run: where it starts, its parts, and what it counts, records, saves and shows.

start       the checkpoint to begin at, or none
settings    config.yaml, and those of each start
opening     folder, data and model, put where the run was left
records     the files that it appends to, cut back and continued
running     the run under way; given what it was given, evaluating what is decided by that, saves when it is saved,
            goodput what its time goes into, doubts what keeps it from learning
"""

from shardpipe.train.run.opening import open_run
from shardpipe.train.run.settings import checkpoints_of, last_settings, limits_of

__all__ = ["checkpoints_of", "last_settings", "limits_of", "open_run"]
