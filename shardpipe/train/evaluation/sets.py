"""Evaluation on several sets, one of which may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from shardpipe import Batch, ShardLoader
from shardpipe.errors import ShardpipeError
from shardpipe.train.engines import World
from shardpipe.train.evaluation.held_out import evaluate
from shardpipe.train.task import Learner

__all__ = ["evaluate_sets"]


def evaluate_sets(
    learner: Learner,
    sets: Mapping[str, ShardLoader],
    world: World,
    *,
    needed: str | None,
    taken: Callable[[Batch], None],
    stop: Callable[[], bool],
) -> Iterator[tuple[str, dict[str, float] | ShardpipeError]]:
    """What `evaluate` finds on each set, given `taken` and `stop`, or the error that its data end in. Where that is the
    set that something is decided by, `needed`, the error is raised.
    """
    for name, loader in sets.items():
        try:
            yield name, evaluate(learner, loader, world, taken=taken, stop=stop)
        except ShardpipeError as error:
            if name == needed:
                error.what = f"the validation set {name}, by which the run decides, cannot be evaluated: {error.what}"
                raise
            yield name, error
