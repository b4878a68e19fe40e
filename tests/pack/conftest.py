"""What tests of packing need beneath them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """600 KiB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk to fill: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
