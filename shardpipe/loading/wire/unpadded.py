"""Audio without its padding: on the way one sample after another, and a padded batch in the memory where it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardpipe.loading.making import silence

__all__ = ["joined", "spread"]

_SCALE = np.float32(1 / 32768)


def joined(audio: npt.NDArray[Any], lengths: Sequence[int]) -> npt.NDArray[Any]:
    """The samples of [B, T] or [B, C, T], each in C order up to its length: [sum of C * length]."""
    return np.concatenate([row[..., :length].reshape(-1) for row, length in zip(audio, lengths)])


def spread(audio: npt.NDArray[Any], came: npt.NDArray[Any], lengths: Sequence[int]) -> None:
    """Puts what `joined` gave into its padded batch, of whose memory it takes the end; int16 becomes the float32 that
    it stands for.

    From the front on, no row reaches what is still to be read: behind it lie as many rows as samples.
    """
    at = 0
    for row, length in zip(audio, lengths):
        here = row[..., :length]
        part = came[at : at + here.size].reshape(here.shape)
        if part.dtype == here.dtype:
            here[...] = part
        else:
            np.multiply(part, _SCALE, out=here, dtype=np.float32)
        silence(row[..., length:])
        at += here.size
