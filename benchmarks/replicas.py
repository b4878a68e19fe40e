"""Replicas of the data service, as users start them, and what processes take of processors and memory."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from processes import ROOT, ChildFailed

__all__ = ["MIB", "Replica", "Secured", "peak_memory", "processor_seconds"]

MIB = 1 << 20
_MAIN = "from shardpipe.cli import main; main()"
_PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes together, all their threads, since each began."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def peak_memory(pid: int) -> int:
    """The most bytes that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


@dataclass(frozen=True, kw_only=True)
class Secured:
    """A certificate that this machine has signed itself, and a token: what a service beyond the loopback must have."""

    certificate: Path
    key: Path
    token: Path

    @classmethod
    def made(cls, folder: Path) -> Secured:
        made = cls(certificate=folder / "certificate.pem", key=folder / "key.pem", token=folder / "token")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        command += ["-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        made.token.write_text(f"{secrets.token_hex(32)}\n", encoding="ascii")
        return made

    @property
    def of_server(self) -> tuple[object, ...]:
        return "--tls-cert", self.certificate, "--tls-key", self.key, "--token-file", self.token

    @property
    def of_client(self) -> dict[str, str]:
        return {"tls_ca": str(self.certificate), "token_file": str(self.token)}


class Replica:
    """One `shardpipe serve` on the loopback, until the block is left."""

    def __init__(self, *arguments: object) -> None:
        self._errors = open(os.memfd_create("replica"), "w+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "serve", *map(str, arguments), "--bind", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        )
        self.pid = self._process.pid
        self.url = ""
        """Without a dataset's name."""

    def __enter__(self) -> Replica:
        until = time.monotonic() + _PATIENCE
        while " at http" not in (said := self._said()):
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise ChildFailed(f"no replica came up: {said[-2000:]}")
            time.sleep(0.02)
        self.url = said.rpartition(" at ")[2].split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _said(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 16, 0).decode(errors="replace")
