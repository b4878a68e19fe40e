"""Loss and error rates of a model on held-out data."""

from __future__ import annotations

from shardpipe import ShardLoader
from shardpipe.train.engines import World
from shardpipe.train.evaluation.score import ErrorCounts
from shardpipe.train.task import Learner

__all__ = ["evaluate"]


def evaluate(learner: Learner, loader: ShardLoader, world: World) -> dict[str, float]:
    """One pass over the loader's data (it must not repeat), shared by all processes, decoding greedily.

    Every utterance counts once. One that is too short for its text has error rates like any other but no loss; such are
    counted in `left_out`. A batch's content does not depend on the number of processes, so neither does the result,
    but for the rounding of sums.
    """
    errors = ErrorCounts()
    loss = weight = utterances = left_out = 0.0
    for batch in loader:
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
