"""What this machine and its Python have, as far as shardpipe cares: versions, cores, memory, CUDA devices."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shardpipe import __version__
from shardpipe.runtime import cores

__all__ = ["PACKAGES", "Machine", "Torch", "look_at"]

PACKAGES = {
    "torch": "the loader",
    "torchaudio": "shardpipe-train",
    "tensorboard": "shardpipe-train",
    "numpy": "everything",
    "pyarrow": "the index",
    "fsspec": "URLs",
    "s3fs": "s3:// URLs",
    "soundfile": "audio",
    "miniaudio": "audio",
    "soxr": "resampling",
    "isal": "checksums",
    "av": "Opus by PyAV's libopus",
}
"""Looked for, and what needs them."""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What torch says of itself."""

    devices: tuple[str, ...] = ()
    """Names of the CUDA devices that it can use."""
    note: str = ""
    """What it has to say about them, such as that the driver is too old."""
    fault: str = ""
    """Why it cannot be imported; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What `shardpipe doctor` looks at before it measures anything."""

    python: str
    platform: str
    cores: int
    """Those that this process may run on: as many threads has a loader, up to 8."""
    core_limit: float | None
    """How many cores' time its control group may take, if that is limited: containers mostly are."""
    load: float
    """Processes that wanted a core during the last minute, on average over the whole machine."""
    busy: bool
    memory: int
    """Bytes that it may have."""
    packages: dict[str, str | None]
    """Versions of shardpipe and of PACKAGES; None if it is not there."""
    torch: Torch

    @property
    def cores_at_once(self) -> float:
        """The cores that it can keep busy."""
        return min(self.cores, self.core_limit or self.cores)


def look_at() -> Machine:
    """This machine, as it is now."""
    load = os.getloadavg()[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = {"shardpipe": __version__, **{name: _version(name) for name in PACKAGES}}
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=cores(),
        core_limit=_core_limit(),
        load=load,
        # Someone else's work on more than half of the cores halves what is measured on all of them.
        busy=load > (os.cpu_count() or 1) / 2,
        memory=min([memory, *(int(words[0]) for words in _limits("memory.max"))]),
        packages=packages,
        torch=_torch(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Torch:
    """Asks torch itself, which knows what it was built for and what the driver takes."""
    try:
        import torch
    except (ImportError, OSError) as error:  # it is not there, or a library that it needs is not
        return Torch(fault=_line(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            return Torch(
                devices=tuple(torch.cuda.get_device_name(number) for number in range(count)), note=_notes(caught)
            )
        except RuntimeError as error:
            return Torch(note=_line(error))


def _notes(caught: list[warnings.WarningMessage]) -> str:
    return "; ".join(_line(warning.message) for warning in caught if "CUDA" in str(warning.message))


def _line(error: Exception | str) -> str:
    """The first line of what something says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _core_limit() -> float | None:
    limits = [int(quota) / int(period) for quota, period in _limits("cpu.max")]
    return min(limits, default=None)


def _limits(
    name: str, *, root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")
) -> Iterator[list[str]]:
    """The words of a limit of this process's control group and of those around it, where there is one (cgroup v2)."""
    try:
        own = next(line[3:].strip("/\n") for line in mine.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = root / own
    for folder in (group, *group.parents):
        try:
            words = (folder / name).read_text().split()
        except OSError:
            continue
        if words and words[0] != "max":
            yield words
