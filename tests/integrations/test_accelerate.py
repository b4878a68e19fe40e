"""Under Accelerate: what comes after a saved state is what an undisturbed run is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tests.integrations.runs import BY_SECONDS, STATIC, Framework

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


def test_resumed_wherever_it_was_saved(data: Path, tmp_path: Path) -> None:
    ACCELERATE.check_everywhere(data, tmp_path, CONFIGS, 9)


def test_on_other_numbers_of_processes(data: Path, tmp_path: Path) -> None:
    ACCELERATE.check_other_worlds(data, tmp_path, {"epochs": 2, "accumulate": 2, "loader": STATIC}, number=4)
