"""What is trained: characters as units, features, a Conformer, and its losses."""

from shardpipe.train.task.learner import Learner, Result
from shardpipe.train.task.model import SIZES
from shardpipe.train.task.tokens import CharTokenizer

__all__ = ["SIZES", "CharTokenizer", "Learner", "Result"]
