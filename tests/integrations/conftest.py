"""What every framework trains on."""

from pathlib import Path

import pytest

from tests.integrations.runs import SAMPLES
from tests.speech import pack_speech


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("data"), SAMPLES, shard_samples=9, seconds=(0.05, 0.3))
