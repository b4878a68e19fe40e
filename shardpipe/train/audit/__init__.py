"""Proof, from the key logs of a run, that every sample of every epoch came exactly once.

lines       the lines of all processes' logs, by their counts, and whether one was removed, doubled or changed
epochs      what came of each epoch
judging     whether an epoch came out as it should
proving     a run's logs from the beginning to its newest checkpoint
naming      keys and lengths of the samples that are named, as far as the dataset can be read
telling     what is found, as a person and as a program read it
"""

from shardpipe.train.audit.proving import audit
from shardpipe.train.audit.telling import Audit

__all__ = ["Audit", "audit"]
