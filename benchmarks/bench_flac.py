"""At which level does FLAC decode fastest? The same utterances at levels 0 to 8, decoded in memory on one core.

A level is how hard the encoder tries; the decoder meets only what came of it: fewer bytes, and predictors that are more
work. Levels are encoded in turn utterance by utterance, and decoded in rounds that go over all of them. Exits with 1 if
`FLAC_LEVEL`, at which shardpipe packs, is slow to decode or costly in bytes.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from itertools import islice
from statistics import median
from time import perf_counter

import numpy as np
from corpus import RATE, Corpus, add_corpus_arguments, corpus_of
from processes import alternate, ratio, use_cores
from reporting import Checks, Figure, table, write_results

from shardpipe import audio

LEVELS = range(9)
USUAL = 5
"""Of libFLAC and its programs."""
OF_FASTEST = 0.97
"""shardpipe's level is to reach this share of the rate of the fastest."""
LARGER = 1.1
"""And its files are to be no larger than this, by those of the usual level."""

REPORT = """\
{about} {files:,} of its utterances, {minutes:.0f} min, on one core; medians of {rounds} alternating rounds. Decoded is
into float32 that is there already, as the loader does it.

{table}

shardpipe packs at level {level}.

## Checks

{checks}
"""


class Encoded:
    """The first utterances of a corpus, at every level, and how long the encoder took."""

    def __init__(self, corpus: Corpus, count: int) -> None:
        self.files: dict[int, list[bytes]] = {level: [] for level in LEVELS}
        self.seconds = dict.fromkeys(LEVELS, 0.0)
        self.frames: list[int] = []
        for path in islice(sorted(corpus.folder.glob("audio/*/*")), count):
            samples = audio.decode(path.read_bytes(), corpus.format, "int16")
            self.frames.append(len(samples))
            for level in LEVELS:
                begun = perf_counter()
                self.files[level].append(audio.encode(samples, RATE, "flac", flac_level=level))
                self.seconds[level] += perf_counter() - begun
        self._out = np.empty(max(self.frames), np.float32)

    def decode(self, level: int) -> float:
        """Utterances a second."""
        begun = perf_counter()
        for data, frames in zip(self.files[level], self.frames):
            audio.decode_into(data, "flac", self._out[:frames])
        return len(self.frames) / (perf_counter() - begun)

    def size(self, level: int) -> float:
        """By that of 16-bit PCM."""
        return sum(map(len, self.files[level])) / (2 * sum(self.frames))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--files", type=int, default=600, help="utterances taken (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    corpus = corpus_of(options)
    use_cores(1)
    encoded = Encoded(corpus, options.files)
    measures = {str(level): partial(encoded.decode, level) for level in LEVELS}
    for measure in measures.values():
        measure()  # not counted: memory and caches are warm after a first pass
    rounds = alternate(options.rounds, measures)
    figures = {level: rounds[str(level)] for level in LEVELS}
    fastest = max(LEVELS, key=lambda level: median(figures[level]))
    checks = Checks()
    share = ratio(figures[audio.FLAC_LEVEL], figures[fastest])
    text = f"level {audio.FLAC_LEVEL}: {100 * share:.1f} % of the rate of level {fastest}, the fastest"
    checks.add(share >= OF_FASTEST, f"{text} (at least {100 * OF_FASTEST:.0f} %)")
    larger = encoded.size(audio.FLAC_LEVEL) / encoded.size(USUAL)
    text = f"level {audio.FLAC_LEVEL}: {100 * (larger - 1):+.1f} % bytes by level {USUAL}"
    checks.add(larger <= LARGER, f"{text} (at most {100 * (LARGER - 1):+.0f} %)")
    text = REPORT.format(
        about=corpus.describe() + ".",
        files=len(encoded.frames),
        minutes=sum(encoded.frames) / RATE / 60,
        rounds=options.rounds,
        table=table(
            ["level", "% of PCM", "decoded, utt/s", "all rounds", f"times level {USUAL}", "encoded, utt/s"],
            [
                [
                    level,
                    f"{100 * encoded.size(level):.2f}",
                    f"{median(figures[level]):,.0f}",
                    f"{min(figures[level]):,.0f} .. {max(figures[level]):,.0f}",
                    f"{ratio(figures[level], figures[USUAL]):.3f}",
                    f"{len(encoded.frames) / encoded.seconds[level]:,.0f}",
                ]
                for level in LEVELS
            ],
        ),
        level=audio.FLAC_LEVEL,
        checks=checks,
    )
    print(text)
    figure = draw(encoded, figures)
    print(write_results("flac", text, packages=("shardpipe", "numpy", "soundfile", "miniaudio"), figure=figure).name)
    return 0 if checks.good else 1


def draw(encoded: Encoded, figures: dict[int, list[float]]) -> Figure:
    figure = Figure(2, height=3.4)
    rates, sizes = figure.panels
    colours = ["#1f6fb4" if level == audio.FLAC_LEVEL else "#b9bfc6" for level in LEVELS]
    rates.bar(LEVELS, [median(figures[level]) for level in LEVELS], color=colours)
    rates.set_title("Decoded on one core")
    rates.set_ylabel("utterances / s")
    sizes.bar(LEVELS, [100 * encoded.size(level) for level in LEVELS], color=colours)
    sizes.set_title("Size of the files")
    sizes.set_ylabel("% of 16-bit PCM")
    for panel in figure.panels:
        panel.set_xticks(LEVELS)
        panel.set_xlabel(f"FLAC level ({audio.FLAC_LEVEL}: shardpipe's)")
        panel.grid(axis="x", visible=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
