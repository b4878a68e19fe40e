"""A run: where it starts, its parts, and what it counts, records, saves and shows.

start       the checkpoint to begin at, or none
settings    config.yaml, and those of each start
opening     folder, data and model, put where the run was left
running     the run under way; saves when it is saved, doubts what keeps it from learning
"""

from shardpipe.train.run.opening import open_run
from shardpipe.train.run.settings import checkpoints_of, last_settings

__all__ = ["checkpoints_of", "last_settings", "open_run"]
