"""Who is the fastest at one format: shardpipe, its peers and the decoder alone, each at its best setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from corpus import Corpus
from decoders import DECODERS
from peering import SHARDPIPE, Peer
from processes import Child, ChildFailed, alternate, ratio
from reporting import table

__all__ = ["ALONE", "PROBES", "PROBE_FILES", "Contest"]

PROBE_FILES = 1000
PROBES = 3
"""Times that every setting is tried."""
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

    def table(self) -> str:
        ratios = self.ratios() | {SHARDPIPE.name: 1.0}
        rows = []
        for name, rate in sorted(self.rates().items(), key=lambda item: -item[1]):
            low, high = min(self.figures[name]), max(self.figures[name])
            times = f"{ratios[name]:.2f}" if name in ratios else "-"
            rows.append([name, self.settings[name], f"{rate:,.0f}", f"{low:,.0f} .. {high:,.0f}", times])
        return table(["loader", "setting", "utt/s", "all rounds", "shardpipe is times"], rows)

    def notes(self) -> str:
        lines = [f"- {line}" for line in self.tried]
        lines += [f"- {name} is out of the ratios: {fault}" for name, fault in self.faults.items()]
        return "\n".join(lines)
