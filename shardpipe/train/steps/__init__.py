"""What an optimizer step is made of, whatever the world: which batches, what is random about them, what they add up to.

size        how many batches a run's steps have
dealing     the batches of this process, each with what seeds it and whether it ends its step
tally       what a step adds up to over its batches and all processes, and how long it took
"""

from shardpipe.train.steps.dealing import MicroBatch, micro_batches
from shardpipe.train.steps.size import batches_per_step
from shardpipe.train.steps.tally import Clock, Tally

__all__ = ["Clock", "MicroBatch", "Tally", "batches_per_step", "micro_batches"]
