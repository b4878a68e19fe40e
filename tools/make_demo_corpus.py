#!/usr/bin/env python3
"""Makes the corpus that is embedded in the package: short English commands and numbers, spoken by espeak-ng.

    python tools/make_demo_corpus.py [--out shardpipe/demo/corpus] [--utterances 420] [--valid 36]

writes OUT/audio/KEY.opus (16 kHz, mono), OUT/data.list and OUT/valid.list. The words are few, so that a tiny model
learns something within a minute on a CPU; voice, speed and pitch vary. The same espeak-ng, libopus and arguments give
the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from shardpipe.audio import encode, resample

__all__ = ["Prompt", "main", "prompts", "sentence", "speak"]

RATE = 16000
# A variant (+f2) is ignored for the voice en-gb, so that one comes plain.
VOICES = ("en-us+m3", "en-us+f2", "en-gb", "en-gb-x-rp+f3", "en-gb-scotland+m7", "en-029+f5")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THINGS = ["lamp", "radio", "heater", "fan"]
DOORS = ["door", "window", "gate"]
COLOURS = ["red", "green", "blue", "white"]
WAYS = ["left", "right", "up", "down"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is said, and by whom."""

    key: str
    text: str
    voice: str
    words_per_minute: int
    pitch: int


def sentence(rng: random.Random) -> str:
    """A command or a row of digits, two to six words, from about forty words in all."""
    kind = rng.randrange(5)
    if kind == 0:
        return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(3, 6)))
    if kind == 1:
        return f"turn the {rng.choice(COLOURS)} {rng.choice(THINGS)} {rng.choice(['on', 'off'])}"
    if kind == 2:
        return f"{rng.choice(['open', 'close'])} {rng.choice(DOORS)} {rng.choice(DIGITS)}"
    if kind == 3:
        return f"go {rng.choice(WAYS)} {rng.choice(DIGITS)} steps"
    return f"{rng.choice(['call', 'stop'])} number {rng.choice(DIGITS)} {rng.choice(DIGITS)}"


def prompts(count: int, *, seed: int) -> Iterator[Prompt]:
    """`count` prompts, the voices in turn."""
    rng = random.Random(seed)
    for number in range(count):
        yield Prompt(
            key=f"demo-{number:04d}",
            text=sentence(rng),
            voice=VOICES[number % len(VOICES)],
            words_per_minute=rng.randrange(130, 191, 10),
            pitch=rng.randrange(35, 66, 5),
        )


def speak(prompt: Prompt) -> bytes:
    """The prompt as an Opus file."""
    command = ["espeak-ng", "-v", prompt.voice, "-s", str(prompt.words_per_minute), "-p", str(prompt.pitch), "--stdout"]
    wav = subprocess.run([*command, prompt.text], capture_output=True, check=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return encode(resample(audio, rate, RATE), RATE, "opus")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "shardpipe" / "demo" / "corpus")
    parser.add_argument("--utterances", type=int, default=420, help="of data.list (default: %(default)s)")
    parser.add_argument("--valid", type=int, default=36, help="more of them, for valid.list (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of words, speeds and pitches (default: %(default)s)")
    options = parser.parse_args(arguments)
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not installed. On Debian and Ubuntu: apt install espeak-ng", file=sys.stderr)
        return 1
    chosen = list(prompts(options.utterances + options.valid, seed=options.seed))
    with ThreadPoolExecutor() as threads:
        files = list(threads.map(speak, chosen))
    _write(options.out, chosen[: options.utterances], files[: options.utterances], "data.list")
    _write(options.out, chosen[options.utterances :], files[options.utterances :], "valid.list")
    print(f"{len(files)} utterances, {sum(map(len, files)) / 1e6:.2f} MB, in {options.out}")
    return 0


def _write(out: Path, chosen: list[Prompt], files: list[bytes], list_name: str) -> None:
    (out / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for prompt, data in zip(chosen, files, strict=True):
        name = f"audio/{prompt.key}.opus"
        (out / name).write_bytes(data)
        fields: dict[str, Any] = {"key": prompt.key, "wav": name, "txt": prompt.text, "speaker": prompt.voice}
        lines.append(json.dumps(fields) + "\n")
    (out / list_name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
