"""Utterances a second into padded float32 batches: shardpipe, its peers, and the decoder alone, side by side.

All deliver every utterance of one corpus once, shuffled by their own means, as float32 batches of 16 padded to their
longest, from the same encoded bytes in the page cache; what each delivered is checked. Each runs in a process of its
own, at the best of several numbers of workers or threads, tried before. Then rounds go over all of them in turn, and
shardpipe's rate by another's of the same round, the median over rounds, is the ratio. Peers decode as their users have
it, SPDL by its own spdl.io, the others with soundfile; a second table gives them shardpipe's decoder, which tells
decoder and pipeline apart. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from contest import ALONE, PROBE_FILES, PROBES, Contest
from corpus import FORMATS, add_corpus_arguments, corpus_of
from peering import PEERS, SHARDPIPE, available
from processes import use_cores
from reporting import Checks, Figure, bars, write_results

from shardpipe.audio import decoders

RIVALS: dict[str, Callable[[str], bool]] = {
    "SPDL": lambda name: name.startswith("SPDL"),
    "the best peer but SPDL": lambda name: not name.startswith("SPDL"),
    "the best peer": lambda _: True,
}
"""SPDL has targets of its own: it alone has another decoder than soundfile's."""


class Target(NamedTuple):
    """shardpipe is to be `least` times as fast as the fastest of these rivals; `wanted` is said, and not required."""

    rivals: str
    least: float
    wanted: float | None = None


TARGETS = {
    "flac": (Target("SPDL", 1.65, 1.75), Target("the best peer but SPDL", 2.75, 3.0)),
    "wav": (Target("SPDL", 1.5), Target("the best peer but SPDL", 4.0)),
    "opus": (Target("the best peer", 2.0),),
}
OF_DECODER = {"flac": 0.85}
"""And to reach this share of the rate of the fastest decoder alone."""
LOSSY_UTTERANCES = 2000


def check(contest: Contest, checks: Checks) -> None:
    ratios = contest.ratios()
    audio_format = contest.corpus.format
    kind = audio_format.upper()
    for target in TARGETS.get(audio_format, ()):
        wanted = f", {target.wanted}x wanted" if target.wanted else ""
        aim = f"(at least {target.least}x{wanted})"
        among = [name for name in ratios if not name.startswith(ALONE) and RIVALS[target.rivals](name)]
        if among:
            best = min(among, key=lambda name: ratios[name])
            rival = best if best.startswith(target.rivals) else f"{target.rivals}, {best}"
            checks.add(ratios[best] >= target.least, f"{kind}: {ratios[best]:.2f}x {rival} {aim}")
        else:
            checks.add(False, f"{kind}: {target.rivals} did not take part {aim}")
    if share := OF_DECODER.get(audio_format):
        reached = min(value for name, value in ratios.items() if name.startswith(ALONE))
        text = f"{kind}: {100 * reached:.0f} % of the fastest decoder alone (at least {100 * share:.0f} %)"
        checks.add(reached >= share, text)
    if fault := contest.faults.get(SHARDPIPE.name):
        checks.add(False, f"{kind}: shardpipe {fault}")


def drawn(contest: Contest) -> dict[str, float]:
    """The rates for the plot: with the decoder's where it has a target; elsewhere it may dwarf all others."""
    shown = contest.corpus.format in OF_DECODER
    return {name: rate for name, rate in contest.rates().items() if shown or not name.startswith(ALONE)}


REPORT = """\
On {cores} cores. Peers: {versions}. Batches of 16, padded float32; medians of {rounds} alternating rounds, a whole
epoch each, after one that is not counted. {missing}

{sections}

## Checks

{checks}
"""
SECTION = """\
## {title}

{about}

{table}

Tried before, utt/s, medians of {probes} alternating tries of seconds each (the decoder alone: of {files:,} files):

{notes}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument(
        "--same-decoder",
        nargs="*",
        choices=FORMATS,
        default=("flac", "wav"),
        help="formats for which the peers get shardpipe's decoder as well",
    )
    parser.add_argument("--peers", nargs="*", help="modules of benchmarks/peers (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    parser.add_argument(
        "--probe", type=float, default=2.0, help="seconds to try a setting, each time (default: %(default)s)"
    )
    options = parser.parse_args()
    corpora = [corpus_of(limited(options, audio_format), audio_format) for audio_format in options.formats]
    found, missing = available(PEERS, options.peers)
    peers = [peer for peer, _ in found]
    for corpus in corpora:
        for peer in (SHARDPIPE, *peers):
            peer.folder(corpus)
    cores = use_cores(options.cores)
    checks = Checks()
    sections: list[str] = []
    figure = Figure(len(corpora), height=3.8)
    for corpus, panel in zip(corpora, figure.panels):
        as_is = Contest(corpus, "soundfile", options.rounds)
        as_is.run(peers, options.probe, with_decoder_alone=True)
        check(as_is, checks)
        about = f"{corpus.describe()}. shardpipe decodes by {decoders()[corpus.format]}."
        sections.append(section(as_is, corpus.format.upper(), about))
        bars(panel, f"{corpus.format.upper()} to padded batches, {cores} cores", drawn(as_is), unit="utterances / s")
        if corpus.format in options.same_decoder and peers:
            same = Contest(corpus, "shardpipe", options.rounds)
            same.run(peers, options.probe, with_decoder_alone=False)
            sections.append(
                section(same, f"{corpus.format.upper()}, the peers with shardpipe's decoder", "Not a target.")
            )
    versions = ", ".join(f"{peer.name} {version}" for peer, version in found) or "none"
    text = REPORT.format(
        cores=cores,
        versions=versions,
        rounds=options.rounds,
        missing=" ".join(f"{line}." for line in missing),
        sections="\n".join(sections),
        checks=checks,
    )
    print(text)
    packages = ("shardpipe", "numpy", "torch", "soundfile", "miniaudio")
    print(f"written to {write_results('loader', text, packages=packages, figure=figure).name}")
    return 0 if checks.good else 1


def limited(options: argparse.Namespace, audio_format: str) -> argparse.Namespace:
    """Fewer utterances of formats that are slow to make."""
    most = LOSSY_UTTERANCES if audio_format in ("opus", "mp3") else options.utterances
    return argparse.Namespace(**vars(options) | {"utterances": min(most, options.utterances)})


def section(contest: Contest, title: str, about: str) -> str:
    return SECTION.format(
        title=title, about=about, table=contest.table(), probes=PROBES, files=PROBE_FILES, notes=contest.notes()
    )


if __name__ == "__main__":
    sys.exit(main())
