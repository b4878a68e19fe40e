"""What keeps a model from learning though nothing is wrong with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from shardpipe.train.checkpoints import Progress
from shardpipe.train.task import CharTokenizer

__all__ = ["about_counts", "about_texts"]

_TEXTS = 5000
_UNKNOWN = 0.02
_LEFT_OUT = 0.2
_SHOWN = 5


def about_texts(name: str, texts: Iterable[str], tokenizer: CharTokenizer) -> str | None:
    """Says so if more than 2 % of the characters of the first texts are none of the units."""
    missing: Counter[str] = Counter()
    number = looked_at = 0
    for text in islice(texts, _TEXTS):
        looked_at += 1
        units = tokenizer.encode(text)
        number += len(units)
        if tokenizer.unknown in units:
            missing.update(tokenizer.missing(text))
    if sum(missing.values()) <= _UNKNOWN * number:
        return None
    most = " ".join(character for character, _ in missing.most_common(_SHOWN))
    share = sum(missing.values()) / number
    return (
        f"{share:.1%} of the characters in the first {looked_at:,} texts of {name} are not among the "
        f"{len(tokenizer.units)} units, {most} most of all: to the model they are all <unk>. Are the units of another "
        "language, or of another case?"
    )


def about_counts(progress: Progress, samples: int) -> dict[str, str]:
    """Says so, by kind, if more than a fifth of the samples that were consumed teach nothing."""
    used = samples - progress.excluded
    found = {
        "excluded": (progress.excluded, samples, "are outside --min-seconds and --max-seconds"),
        "left_out": (
            progress.left_out,
            used,
            "have fewer frames (one in 40 ms) than their text has characters: is it the text of that audio?",
        ),
        "unreadable": (progress.unreadable, used, "cannot be decoded: see `shardpipe verify`"),
    }
    return {
        kind: f"{count:,} of {of:,} utterances so far teach nothing, for they {why}"
        for kind, (count, of, why) in found.items()
        if count > _LEFT_OUT * of
    }
