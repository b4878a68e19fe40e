"""How good a model is on held-out data: its loss, and the error rates of what it reads."""

from shardpipe.train.evaluation.held_out import EvaluationStopped, evaluate
from shardpipe.train.evaluation.sets import evaluate_sets

__all__ = ["EvaluationStopped", "evaluate", "evaluate_sets"]
