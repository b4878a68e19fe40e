"""Under Accelerate: what comes after a saved state is what an undisturbed run is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.runs import Framework
from tests.speech import pack_speech

SAMPLES = 40
STATIC = {"batch_size": 3}
BY_SECONDS = {"batch_seconds": 1.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "accumulation": {"epochs": 2, "accumulate": 4, "loader": STATIC},
    "by seconds": {"epochs": 3, "accumulate": 2, "loader": BY_SECONDS},
    "paused": {"epochs": 2, "accumulate": 4, "pauses": 6, "loader": STATIC},
    "sub-epochs": {"epochs": 2, "loader": {**STATIC, "sub_epochs": 3}},
}


def place(folder: Path) -> int:
    count: int = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)["loader"]["consumed_samples"]
    return count


def saved(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.is_dir())


ACCELERATE = Framework("under_accelerate.py", saved, place)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("accelerate"), SAMPLES, shard_samples=9, seconds=(0.05, 0.3))


def test_resumed_wherever_it_was_saved(data: Path, tmp_path: Path) -> None:
    ACCELERATE.check_everywhere(data, tmp_path, CONFIGS, 9)


def test_on_other_numbers_of_processes(data: Path, tmp_path: Path) -> None:
    ACCELERATE.check_other_worlds(data, tmp_path, {"epochs": 2, "accumulate": 2, "loader": STATIC}, number=4)
