"""What is trained: characters as units, features, a Conformer, its losses and its error rates."""

from shardpipe.train.task.evaluation import evaluate
from shardpipe.train.task.learner import Learner, Result
from shardpipe.train.task.tokens import CharTokenizer

__all__ = ["CharTokenizer", "Learner", "Result", "evaluate"]
