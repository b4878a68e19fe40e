"""Loss and error rates of a model on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from shardpipe import Batch, ShardLoader
from shardpipe.errors import ShardpipeError
from shardpipe.train.engines import World
from shardpipe.train.evaluation.score import ErrorCounts
from shardpipe.train.task import Learner

__all__ = ["EvaluationStopped", "evaluate"]


class EvaluationStopped(Exception):
    """It was asked to end before it had gone through the data."""


def evaluate(
    learner: Learner,
    loader: ShardLoader,
    world: World,
    *,
    taken: Callable[[Batch], None],
    stop: Callable[[], bool],
) -> dict[str, float]:
    """One pass over the loader's data (it must not repeat), shared by all processes, decoding greedily.

    Every utterance counts once. One that is too short for its text has error rates like any other but no loss; such are
    counted in `left_out`. A batch's content does not depend on the number of processes, so neither does the result,
    but for the rounding of sums.

    `taken` is told of every batch before it is computed.

    Raises the ShardpipeError that the data of any process end in, in all of them; EvaluationStopped, in all of them as
    well, when `stop` holds in any.
    """
    errors = ErrorCounts()
    loss = weight = utterances = left_out = 0.0
    for batch in _batches(loader, world, stop):
        taken(batch)
        result = learner.forward(batch, train=False)
        loss += result.loss.item()
        weight += result.weight
        utterances += result.utterances
        left_out += len(result.left_out)
        paths = result.log_probs.argmax(-1).tolist()
        for i, frames in enumerate(result.frames.tolist()):
            if batch.weights[i]:
                errors.add(batch.texts[i], learner.tokenizer.collapse(paths[i][:frames]))
    counts = (errors.word_errors, errors.words, errors.char_errors, errors.chars)
    sums = world.sum((loss, weight, utterances, left_out, len(loader.skipped), *counts))
    loss, weight, utterances, left_out, unreadable_by_all, *edits = sums
    return {
        "loss": loss / max(weight, 1),
        "wer": edits[0] / max(edits[1], 1),
        "cer": edits[2] / max(edits[3], 1),
        "utterances": int(utterances),
        "left_out": int(left_out),
        "excluded": loader.num_excluded,
        "unreadable": int(unreadable_by_all),
    }


def _batches(loader: ShardLoader, world: World, stop: Callable[[], bool]) -> Iterator[Batch]:
    """Those of this process. Where one of the others fails all stop, for a model in shares computes in all or none."""
    with closing(loader.batches()) as batches:
        while True:
            batch = None
            failed: Exception | None = None
            try:
                if stop():
                    raise EvaluationStopped
                batch = next(batches, None)
            except (ShardpipeError, EvaluationStopped) as error:
                failed = error
            world.agree(failed)
            if batch is None:
                return
            yield batch
