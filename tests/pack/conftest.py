"""What tests of packing need beneath them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import places


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """600 KiB."""
    with places.small_disk(tmp_path / "disk", "600k") as disk:
        yield disk
