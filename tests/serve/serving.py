"""Servers for tests: processes of their own on the loopback, as users start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from shardpipe import Batch, ShardLoader
from shardpipe.loading.wire import BatchRequest, DatasetName

__all__ = ["MAIN", "ROOT", "Server", "assert_same", "batch_request", "batches_of", "running", "same_batch"]

ROOT = Path(__file__).parents[2]
MAIN = "from shardpipe.cli import main; main()"
_PATIENCE = 60


class Server:
    """One `shardpipe serve`; its port stays the same when it is started again."""

    def __init__(self, *arguments: str, log: Path, bind: str = "127.0.0.1:0", main: str = MAIN) -> None:
        self._arguments = arguments
        self._log = log
        self._bind = bind
        self._main = main
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        before = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self._main, "serve", *self._arguments, "--bind", self._bind],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        said = ""
        for _ in range(_PATIENCE * 20):
            said = self._log.read_bytes()[before:].decode()
            if " at http" in said or self.process.poll() is not None:
                break
            threading.Event().wait(0.05)
        assert " at http" in said, said
        self.url = said.rpartition(" at ")[2].split()[0]
        self._bind = self.url.rpartition("/")[2]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        """Its exit code, after SIGTERM."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(_PATIENCE)


def batch_request(fingerprint: str, *samples: tuple[int, int, int], transform: str | None = None) -> BatchRequest:
    """For samples of the dataset speech."""
    return BatchRequest(
        datasets=[DatasetName("speech", fingerprint)],
        samples=list(samples),
        weights=[1] * len(samples),
        seed=0,
        dtype="float32",
        channels="error",
        sample_rate=None,
        on_error="raise",
        transform=transform,
        collate=None,
        place=None,
    )


@contextmanager
def running(*arguments: Any, bind: str = "127.0.0.1:0", main: str = MAIN) -> Iterator[Server]:
    """A server of these arguments, until the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(*map(str, arguments), log=Path(folder) / "server.log", bind=bind, main=main)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def batches_of(data: Any, *, rounds: int = 1, **options: Any) -> list[Any]:
    """All batches of so many epochs."""
    loader = ShardLoader(data, **options)
    return [batch for _ in range(rounds) for batch in loader]


def same_batch(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        if isinstance(getattr(one, name), torch.Tensor)
        else getattr(one, name) == getattr(other, name)
        for name in one
    )


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others) > 0
    for i, (one, other) in enumerate(zip(some, others)):
        assert same_batch(one, other), i
