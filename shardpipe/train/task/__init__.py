"""What is trained: characters as units, features, a Conformer, and its losses."""

from shardpipe.train.task.learner import Learner, Result
from shardpipe.train.task.tokens import CharTokenizer

__all__ = ["CharTokenizer", "Learner", "Result"]
