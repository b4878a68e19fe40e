"""The peers: where their environments are, how each is asked, and their own forms of the corpus."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import Corpus, built, packed
from processes import Child, ChildFailed

__all__ = ["PEERS", "RESUMING", "SHARDPIPE", "Peer", "available"]

_HERE = Path(__file__).parent / "peers"
_PROCESSES = ("0 workers", "1 workers", "2 workers", "3 workers")
_THREADS = ("1 threads", "2 threads", "3 threads", "4 threads")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A loader, beside shardpipe or shardpipe itself."""

    name: str
    module: str
    environment: str | None
    """Folder of benchmarks/peers that has it installed; None for shardpipe's own."""
    settings: tuple[str, ...]
    """Of which the fastest is taken."""
    source: str
    """files, tars, or own: a form of the data that it makes."""

    @property
    def python(self) -> Path:
        if self.environment is None:
            return Path(sys.executable)
        return _HERE / self.environment / ".venv" / "bin" / "python"

    def folder(self, corpus: Corpus) -> Path:
        """The data in the form the peer reads, made unless it is there. Raises ChildFailed."""
        if self.source == "files":
            return corpus.folder
        if self.source == "tars":
            return packed(corpus)

        def make(staging: Path) -> None:
            print(f"preparing {corpus.format} for {self.name}", flush=True)
            with self._child(corpus, staging, self.settings[0]) as child:
                child.ask(do="prepare")

        return built(corpus.work / f"{corpus.format}-{self.module}", make)

    def start(self, corpus: Corpus, *, setting: str, decoder: str = "soundfile") -> Child:
        """A child that reads epochs: peers/child.py."""
        return self._child(corpus, self.folder(corpus), setting, "--decoder", decoder)

    def resume(self, corpus: Corpus, *, setting: str, state: Path | None) -> Child:
        """A child that goes on from a state: peers/resume_child.py."""
        more = () if state is None else ("--state", state)
        return self._child(corpus, self.folder(corpus), setting, *more, script="resume_child.py")

    def _child(self, corpus: Corpus, folder: Path, setting: str, *more: object, script: str = "child.py") -> Child:
        job = ("--list", corpus.list, "--folder", folder, "--format", corpus.format, "--batch-size", 16)
        return Child(_HERE / script, self.module, *job, "--setting", setting, *more, python=self.python)


def _torch(name: str, module: str, source: str, settings: tuple[str, ...] = _PROCESSES) -> Peer:
    return Peer(name=name, module=module, environment="env-torch", settings=settings, source=source)


SHARDPIPE = Peer(
    name="shardpipe",
    module="shardpipe",
    environment=None,
    settings=(*_THREADS[1:3], *_PROCESSES[2:]),
    source="tars",
)
PEERS = (
    _torch("torch DataLoader, loose files", "torch", "files"),
    _torch("webdataset", "webdataset", "tars"),
    _torch("MosaicML Streaming", "streaming", "own"),
    _torch("LitData", "litdata", "own"),
    _torch("Lhotse Shar", "lhotse", "own"),
    _torch("SPDL, loose files", "spdl", "files", _THREADS),
    Peer(
        name="Grain, ArrayRecord",
        module="grain",
        environment="env-grain",
        settings=(*_THREADS, *_PROCESSES[1:]),
        source="own",
    ),
)


RESUMING = (
    *(peer for peer in PEERS if peer.module in ("streaming", "litdata", "grain")),
    _torch("torchdata StatefulDataLoader, loose files", "torchdata", "files"),
)
"""Peers that save a state in mid-epoch and go on from it."""


def available(peers: Sequence[Peer], names: list[str] | None) -> tuple[list[tuple[Peer, str]], list[str]]:
    """Those installed, each with its version, and a line on each that is not; `names` are modules, None all."""
    found: list[tuple[Peer, str]] = []
    missing: list[str] = []
    for peer in peers:
        if names is not None and peer.module not in names:
            continue
        try:
            found.append((peer, _version(peer)))
        except (ChildFailed, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            missing.append(f"{peer.name} is left out: {reason}")
            print(missing[-1], flush=True)
    return found, missing


def _version(peer: Peer) -> str:
    job: tuple[Any, ...] = ("--list", "", "--folder", "", "--format", "", "--batch-size", 16)
    with Child(_HERE / "child.py", peer.module, *job, python=peer.python) as child:
        return str(child.ask(do="version")["version"])
