"""Word and character error rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ErrorCounts", "edit_distance"]


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn `first` into `second`."""
    numbers = {item: i for i, item in enumerate({*first, *second})}
    columns = np.array([numbers[item] for item in second], dtype=np.int64)
    places = np.arange(len(second) + 1)
    row = places
    for i, item in enumerate(first, 1):
        above = row + 1
        above[0] = i
        above[1:] = np.minimum(above[1:], row[:-1] + (columns != numbers[item]))
        # An insertion costs 1 a place, so the best one ending here is a running minimum along the row.
        row = np.minimum.accumulate(above - places) + places
    return int(row[-1])


@dataclass
class ErrorCounts:
    """Edits against the references' words and characters, summed over utterances; a space is a character."""

    word_errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0

    def add(self, reference: str, hypothesis: str) -> None:
        said, heard = reference.split(), hypothesis.split()
        self.word_errors += edit_distance(said, heard)
        self.words += len(said)
        self.char_errors += edit_distance(" ".join(said), " ".join(heard))
        self.chars += len(" ".join(said))
