"""The one corpus that all benchmarks share: seeded utterances of speech, as loose files with a data.list.

Lengths are log-normal with a median of 6 s, clipped to 1 .. 30 s. With a folder that tools/get_speech.py has filled
the audio is real speech: recordings in random order, put together and cut to those lengths, resampled to 16 kHz, with
the faint noise of a room under it (the recordings are telephone speech, so their upper half band is otherwise empty,
which no recording made at 16 kHz is). Without one it is synthetic: voiced and unvoiced sounds in words with pauses,
which compress as speech does. Every format holds the same audio, and what is built once is kept and used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from shardpipe.audio import encode, resample
from shardpipe.pack import PackOptions, pack

__all__ = ["FORMATS", "RATE", "Corpus", "add_corpus_arguments", "built", "corpus_of", "packed"]

RATE = 16000
FORMATS = ("flac", "wav", "opus", "mp3")
SHARD_BYTES = 32 << 20
"""Of the packed corpus: some 25 shards, so that every peer's workers find several each."""
_SECONDS = (1.0, 30.0)
_ROOM = 0.0004  # about -68 dB
_FOLDER_FILES = 1000
_VERSION = 2  # of what is below: another one builds the corpus anew


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the audio is made from; one recipe and one format are one folder."""

    utterances: int = 8000
    median_seconds: float = 6.0
    sigma: float = 0.6
    seed: int = 0
    speech: str | None = None
    """A folder with tools/get_speech.py's data.list; None makes synthetic audio."""
    version: int = _VERSION

    @property
    def name(self) -> str:
        fields = asdict(self) | {"speech": _content(Path(self.speech)) if self.speech else None}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
        return f"{'speech' if self.speech else 'synthetic'}-{self.utterances}-{digest}"

    def frames(self) -> np.ndarray:
        """Of every utterance."""
        rng = np.random.default_rng(self.seed)
        seconds = rng.lognormal(np.log(self.median_seconds), self.sigma, self.utterances)
        return np.rint(np.clip(seconds, *_SECONDS) * RATE).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus that has been built: `folder` has data.list and the audio, `work` is where peers put their own forms."""

    folder: Path
    work: Path
    format: str
    utterances: int
    frames: int
    frames_squared: int
    """Sum of the squares of lengths: with the sum itself it tells whether a loader delivered the same utterances."""
    bytes: int
    """Of the audio files."""
    speech: bool

    @property
    def list(self) -> Path:
        return self.folder / "data.list"

    @property
    def hours(self) -> float:
        return self.frames / RATE / 3600

    def describe(self) -> str:
        kind = "real" if self.speech else "synthetic"
        return (
            f"{self.utterances:,} utterances of {kind} speech, {self.hours:.1f} h at 16 kHz, as {self.format}: "
            f"{self.bytes / 1e6:,.0f} MB, {100 * self.bytes / (2 * self.frames):.0f} % of 16-bit PCM"
        )


def add_corpus_arguments(parser: argparse.ArgumentParser, *, utterances: int = 8000) -> None:
    default = Path(tempfile.gettempdir()) / "shardpipe-benchmarks"
    parser.add_argument("--work", type=Path, default=default, help="where corpora are kept (default: %(default)s)")
    parser.add_argument("--speech", help="what tools/get_speech.py has made; else the audio is synthetic")
    parser.add_argument("--utterances", type=int, default=utterances, help="of the corpus (default: %(default)s)")


def corpus_of(options: argparse.Namespace, audio_format: str = "flac") -> Corpus:
    """The corpus for the arguments of `add_corpus_arguments`, built unless it is there."""
    speech = None if options.speech is None else str(Path(options.speech).resolve())
    recipe = Recipe(utterances=options.utterances, speech=speech)
    work = options.work / recipe.name
    folder = built(work / audio_format, lambda staging: _make(staging, recipe, audio_format))
    facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return Corpus(folder=folder, work=work, format=audio_format, speech=recipe.speech is not None, **facts)


def packed(corpus: Corpus) -> Path:
    """The corpus as shardpipe's shards, the audio bytes as they are; other readers of tars take them too."""

    def make(staging: Path) -> None:
        pack(
            corpus.list, staging / "set", options=PackOptions(shard_size=SHARD_BYTES, jobs=len(os.sched_getaffinity(0)))
        )

    return built(corpus.work / f"{corpus.format}-shardpipe", make) / "set"


def built(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` in a folder beside it that is then renamed, unless it is there already."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(staging)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def _make(staging: Path, recipe: Recipe, audio_format: str) -> None:
    frames = recipe.frames()
    for number in range(0, recipe.utterances, _FOLDER_FILES):
        (staging / "audio" / f"{number // _FOLDER_FILES:03d}").mkdir(parents=True)
    print(f"making {recipe.utterances:,} utterances as {audio_format}", flush=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        tasks = [
            processes.submit(_make_some, staging, recipe, audio_format, range(first, min(first + 100, len(frames))))
            for first in range(0, len(frames), 100)
        ]
        made = [line for task in tasks for line in task.result()]
    lines = [json.dumps(fields) + "\n" for fields, _, _ in made]
    (staging / "data.list").write_text("".join(lines), encoding="utf-8")
    held = np.array([count for _, count, _ in made])
    facts = {
        "utterances": len(made),
        "frames": int(held.sum()),
        "frames_squared": int((held**2).sum()),
        "bytes": sum(size for _, _, size in made),
    }
    (staging / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _make_some(
    staging: Path, recipe: Recipe, audio_format: str, numbers: range
) -> list[tuple[dict[str, str], int, int]]:
    """Writes these utterances; gives each one's line of the list, its frames and its bytes."""
    made = []
    frames = recipe.frames()
    for number in numbers:
        rng = np.random.default_rng([recipe.seed, number])
        audio = _speech(recipe.speech, frames[number], rng) if recipe.speech else _synthetic(frames[number], rng)
        audio += rng.normal(0, _ROOM, len(audio)).astype(np.float32)
        data = _encoded(np.clip(audio, -1, 1), audio_format)
        name = f"audio/{number // _FOLDER_FILES:03d}/utt{number:06d}.{audio_format}"
        (staging / name).write_bytes(data)
        words = " ".join(rng.choice(_WORDS, size=max(1, int(frames[number] * 2.5 / RATE))))
        made.append(({"key": f"utt{number:06d}", "wav": name, "txt": words}, int(frames[number]), len(data)))
    return made


_WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "yes",
    "no",
    "left",
    "right",
    "up",
    "down",
    "stop",
    "go",
]


def _encoded(audio: np.ndarray, audio_format: str) -> bytes:
    if audio_format != "mp3":
        return encode(audio, RATE, audio_format)
    with tempfile.SpooledTemporaryFile() as file:
        soundfile.write(file, audio, RATE, format="MP3", subtype="MPEG_LAYER_III")
        file.seek(0)
        return file.read()


def _content(folder: Path) -> str:
    return hashlib.sha256((folder / "data.list").read_bytes()).hexdigest()


@cache
def _recordings(folder: str) -> list[Path]:
    lines = (Path(folder) / "data.list").read_text(encoding="utf-8").splitlines()
    return [Path(folder) / json.loads(line)["wav"] for line in lines]


def _speech(folder: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """[frames] float32: recordings drawn at random, one after another, the last one cut."""
    recordings = _recordings(folder)
    pieces: list[np.ndarray] = []
    left = frames
    while left > 0:
        audio, rate = soundfile.read(recordings[rng.integers(len(recordings))], dtype="float32", always_2d=True)
        piece = resample(audio[:, :1], rate, RATE)[:left, 0]
        pieces.append(piece)
        left -= len(piece)
    return np.concatenate(pieces)


def _synthetic(frames: int, rng: np.random.Generator) -> np.ndarray:
    """[frames] float32: words of voiced and hissing sounds at a speaker's own pitch, with pauses between them."""
    return np.concatenate(list(_sounds(frames, rng)))[:frames].astype(np.float32)


def _sounds(frames: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    pitch = rng.uniform(90, 230)
    phase = 0.0
    while frames > 0:
        count = int(rng.uniform(0.05, 0.25) * RATE)
        edge = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / 200)
        kind = rng.random()
        if kind < 0.15:
            sound = np.zeros(count)
        elif kind < 0.35:
            sound = np.diff(rng.normal(0, 1, count + 1)) * rng.uniform(0.01, 0.03)
        else:
            track = pitch * np.exp(np.cumsum(rng.normal(0, 0.0004, count)))
            phases = phase + 2 * np.pi * np.cumsum(track) / RATE
            phase = float(phases[-1] % (2 * np.pi))
            sound = _vowel(phases, pitch, rng) * rng.uniform(0.08, 0.3)
            sound += rng.normal(0, 0.02, count) * np.abs(sound)
        yield sound * edge
        frames -= count


def _vowel(phases: np.ndarray, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Harmonics under three formants and the voice's own slope of 6 dB an octave."""
    formants: Any = rng.uniform([250, 800, 2200], [850, 2300, 3300])
    sound = np.zeros(len(phases))
    for harmonic in range(1, int(4500 / pitch)):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - formant) / 90) ** 2) for formant in formants) + 0.02
        sound += gain / harmonic**0.5 * np.sin(harmonic * phases + harmonic**2)
    return sound / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_arguments(parser)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["flac"])
    options = parser.parse_args()
    for audio_format in options.formats:
        corpus = corpus_of(options, audio_format)
        print(f"{corpus.describe()}; {corpus.list}")


if __name__ == "__main__":
    main()
