"""Utterances a second into padded float32 batches: shardpipe, its peers, and the decoder alone, side by side.

All deliver every utterance of one corpus once, shuffled by their own means, as float32 batches of 16 padded to their
longest, from the same encoded bytes in the page cache; what each delivered is checked. Each runs in a process of its
own, at the best of several numbers of workers or threads, tried before. Then rounds go over all of them in turn, and
shardpipe's rate by another's of the same round, the median over rounds, is the ratio. Peers decode with soundfile, as
their users have it; a second table gives them shardpipe's decoder, which tells decoder and pipeline apart. Exits with 1
if a target is missed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from corpus import FORMATS, Corpus, add_corpus_arguments, corpus_of
from decoders import DECODERS
from peering import PEERS, SHARDPIPE, Peer, available
from processes import Child, ChildFailed, alternate, ratio, use_cores
from reporting import Checks, Figure, bars, table, write_results

BEST_PEER = {"flac": 3.0, "wav": 4.0}
"""shardpipe is to be so many times as fast as the best peer."""
OF_DECODER = {"flac": 0.85}
"""And to reach this share of the rate of the fastest decoder alone."""
PROBE_FILES = 1000
PROBES = 3
"""Times that every setting is tried."""
LOSSY_UTTERANCES = 2000
LOSSY = 0.005
"""Decoders of lossy formats may differ in the padding at a file's ends."""

ALONE = "decoder alone"
Measures = dict[str, Callable[[], float]]


def check_job(corpus: Corpus, answer: dict[str, Any]) -> str:
    """What a full pass got wrong, "" if it did the job."""
    lossy = corpus.format in ("opus", "mp3")
    if answer["samples"] != corpus.utterances:
        return f"{answer['samples']:,} of {corpus.utterances:,} utterances"
    for what, found, wanted in (
        ("frames", answer["frames"], corpus.frames),
        ("squared frames", answer["frames_squared"], corpus.frames_squared),
    ):
        if abs(found - wanted) > (LOSSY * wanted if lossy else 0):
            return f"{found:,} {what}, not {wanted:,}"
    return ""


def best_setting(peer: Peer, corpus: Corpus, decoder: str, seconds: float) -> tuple[str, str]:
    """(the fastest setting, all of them with their rates): medians, for one try may meet the machine at its worst. A
    setting that fails is passed over.
    """
    failed: list[str] = []

    def tried(setting: str, child: Child) -> float:
        if setting not in failed:
            try:
                return float(child.ask(do="epoch", seconds=seconds)["rate"])
            except ChildFailed as error:
                print(f"{peer.name} with {setting} failed:\n{error}", flush=True)
                failed.append(setting)
        return math.nan

    measures: Measures = {}
    with ExitStack() as children:
        for setting in peer.settings:
            child = children.enter_context(peer.start(corpus, setting=setting, decoder=decoder))
            measures[setting] = partial(tried, setting, child)
            measures[setting]()  # not counted: what is loaded and started first
        figures = alternate(PROBES, measures)
    rates = {setting: median(figures[setting]) for setting in measures if setting not in failed}
    if not rates:
        raise ChildFailed("no setting worked")
    figures_said = [f"{setting} {rate:,.0f}" for setting, rate in rates.items()]
    said = ", ".join(figures_said + [f"{setting} failed" for setting in failed])
    print(f"{peer.name}, {decoder}: {said}", flush=True)
    return max(rates, key=lambda setting: rates[setting]), said


class Contest:
    """One format and one decoder of the peers: who takes part, at which setting, and what came of it."""

    def __init__(self, corpus: Corpus, decoder: str, rounds: int) -> None:
        self.corpus = corpus
        self.decoder = decoder
        self.rounds = rounds
        self.settings: dict[str, str] = {}
        self.tried: list[str] = []
        self.faults: dict[str, str] = {}
        self.figures: dict[str, list[float]] = {}

    def run(self, peers: list[Peer], seconds: float, *, with_decoder_alone: bool) -> None:
        entries: list[tuple[Peer, str]] = []
        for peer in (SHARDPIPE, *peers):
            try:
                setting, said = best_setting(peer, self.corpus, self.decoder, seconds)
            except ChildFailed as error:
                if peer is SHARDPIPE:
                    raise
                self.faults[peer.name] = str(error).splitlines()[-1]
                continue
            self.tried.append(f"{peer.name}: {said}")
            entries.append((peer, setting))
        with ExitStack() as children:
            measures: Measures = {}
            for peer, setting in entries:
                child = children.enter_context(peer.start(self.corpus, setting=setting, decoder=self.decoder))
                self.settings[peer.name] = setting
                measure = partial(self._epoch, peer.name, child)
                measure()  # page cache, worker processes and libraries are warm after a first pass
                measures[peer.name] = measure
            if with_decoder_alone:
                measures |= children.enter_context(self._decoders())
            self.figures = alternate(self.rounds, measures)

    def _epoch(self, name: str, child: Child) -> float:
        answer = child.ask(do="epoch", seconds=None)
        if fault := check_job(self.corpus, answer):
            self.faults[name] = f"delivered {fault}"
        return float(answer["rate"])

    @contextmanager
    def _decoders(self) -> Iterator[Measures]:
        """The fastest decoder in threads, and in processes."""
        with Child(
            Path(__file__).with_name("decoders.py"), "--list", self.corpus.list, "--format", self.corpus.format
        ) as child:

            def rate(decoder: str, processes: bool, files: int | None = None) -> float:
                return float(child.ask(decoder=decoder, processes=processes, files=files)["rate"])

            measures: Measures = {}
            for processes, kind in ((False, "threads"), (True, "processes")):
                tries = {name: partial(rate, name, processes, PROBE_FILES) for name in DECODERS[self.corpus.format]}
                rates = {name: median(figures) for name, figures in alternate(PROBES, tries).items()}
                fastest = max(rates, key=lambda decoder: rates[decoder])
                self.tried.append(f"{ALONE}, {kind}: " + ", ".join(f"{d} {r:,.0f}" for d, r in rates.items()))
                name = f"{ALONE}, {kind}"
                self.settings[name] = fastest
                measures[name] = partial(rate, fastest, processes)
            yield measures

    def ratios(self) -> dict[str, float]:
        """shardpipe by every other that did the job."""
        ours = self.figures[SHARDPIPE.name]
        others = {name: figures for name, figures in self.figures.items() if name != SHARDPIPE.name}
        return {name: ratio(ours, figures) for name, figures in others.items() if name not in self.faults}

    def rates(self) -> dict[str, float]:
        return {name: median(figures) for name, figures in self.figures.items()}

    def drawn(self) -> dict[str, float]:
        """The rates for the plot: with the decoder's where it has a target; elsewhere it may dwarf all others."""
        shown = self.corpus.format in OF_DECODER
        return {name: rate for name, rate in self.rates().items() if shown or not name.startswith(ALONE)}

    def table(self) -> str:
        ratios = self.ratios() | {SHARDPIPE.name: 1.0}
        rows = []
        for name, rate in sorted(self.rates().items(), key=lambda item: -item[1]):
            low, high = min(self.figures[name]), max(self.figures[name])
            times = f"{ratios[name]:.2f}" if name in ratios else "-"
            rows.append([name, self.settings[name], f"{rate:,.0f}", f"{low:,.0f} .. {high:,.0f}", times])
        return table(["loader", "setting", "utt/s", "all rounds", "shardpipe is times"], rows)

    def check(self, checks: Checks) -> None:
        ratios = self.ratios()
        peers = {name: value for name, value in ratios.items() if not name.startswith(ALONE)}
        kind = self.corpus.format.upper()
        if target := BEST_PEER.get(self.corpus.format):
            if peers:
                best = min(peers, key=lambda name: peers[name])
                checks.add(
                    peers[best] >= target, f"{kind}: {peers[best]:.2f}x the best peer, {best} (at least {target}x)"
                )
            else:
                checks.add(False, f"{kind}: no peer to compare with (at least {target}x the best)")
        if share := OF_DECODER.get(self.corpus.format):
            reached = min(value for name, value in ratios.items() if name.startswith(ALONE))
            checks.add(
                reached >= share,
                f"{kind}: {100 * reached:.0f} % of the fastest decoder alone (at least {100 * share:.0f} %)",
            )
        if fault := self.faults.get(SHARDPIPE.name):
            checks.add(False, f"{kind}: shardpipe {fault}")

    def notes(self) -> str:
        lines = [f"- {line}" for line in self.tried]
        lines += [f"- {name} is out of the ratios: {fault}" for name, fault in self.faults.items()]
        return "\n".join(lines)


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
        as_is.check(checks)
        sections.append(section(as_is, corpus.format.upper(), corpus.describe() + "."))
        bars(panel, f"{corpus.format.upper()} to padded batches, {cores} cores", as_is.drawn(), unit="utterances / s")
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
    """Fewer utterances of formats that are slow to make and only reported."""
    most = LOSSY_UTTERANCES if audio_format in ("opus", "mp3") else options.utterances
    return argparse.Namespace(**vars(options) | {"utterances": min(most, options.utterances)})


def section(contest: Contest, title: str, about: str) -> str:
    return SECTION.format(
        title=title, about=about, table=contest.table(), probes=PROBES, files=PROBE_FILES, notes=contest.notes()
    )


if __name__ == "__main__":
    sys.exit(main())
