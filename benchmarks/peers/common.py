"""What all peers share: the utterances, the decoders and the padding. Imports nothing that only some of them have."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

__all__ = [
    "SHUFFLE_BUFFER",
    "Batches",
    "Epoch",
    "Job",
    "Resumed",
    "Utterance",
    "decode",
    "job_arguments",
    "pad",
    "pad_tensors",
]

SHUFFLE_BUFFER = 1000
"""Of the peers that shuffle in a buffer: the size that their examples take."""


def job_arguments(parser: argparse.ArgumentParser) -> None:
    """The peer, and the fields of a Job."""
    parser.add_argument("peer")
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--format", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--setting", default="0 workers")
    parser.add_argument("--decoder", choices=("soundfile", "shardpipe"), default="soundfile")


class Utterance(NamedTuple):
    key: str
    path: Path
    text: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a peer is asked to do: padded float32 batches of everything in `list`, shuffled, each epoch anew."""

    list: Path
    folder: Path
    """Where `prepare` put the peer's own form of the data."""
    format: str
    batch_size: int
    setting: str
    """How many of what: "2 workers", "3 threads"; and for shardpipe "300 seconds", the budget of a batch."""
    decoder: str
    """soundfile, or what a peer has of its own instead; or shardpipe: the decoder that shardpipe uses."""

    @property
    def count(self) -> int:
        return int(self.setting.split()[0])

    @property
    def unit(self) -> str:
        return self.setting.split()[1]

    def utterances(self) -> Iterator[Utterance]:
        for line in self.list.read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            yield Utterance(fields["key"], self.list.parent / fields["wav"], fields["txt"])

    def decoded(self, data: bytes) -> np.ndarray:
        return decode(data, self.format, self.decoder)


def decode(data: bytes, audio_format: str, decoder: str) -> np.ndarray:
    """[frames] float32."""
    if decoder == "soundfile":
        return _mono(soundfile.read(io.BytesIO(data), dtype="float32")[0])
    from shardpipe import audio

    return audio.decode(data, audio_format)[:, 0]


def pad(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """[B, T] float32, and the lengths."""
    lengths = [len(sample) for sample in samples]
    audio = np.zeros((len(samples), max(lengths)), np.float32)
    for row, sample in zip(audio, samples):
        row[: len(sample)] = sample
    return audio, lengths


def pad_tensors(samples: Sequence[np.ndarray]) -> tuple[Any, list[int]]:
    """`pad` as torch's loaders want it: a tensor travels between processes in shared memory."""
    import torch

    audio, lengths = pad(samples)
    return torch.from_numpy(audio), lengths


def _mono(audio: np.ndarray) -> np.ndarray:
    return audio if audio.ndim == 1 else audio.mean(axis=1)


Batches = Iterator[tuple[Any, Sequence[int]]]
"""Batches and their lengths."""
Epoch = Callable[[], Batches]
"""What a peer's `open_epochs` gives: every call is one epoch."""
Resumed = tuple[Batches, Callable[[], Any]]
"""What a peer's `resume` gives: the rest of an epoch, and how to take the state that goes on behind its last batch."""
