"""Under Lightning: wherever a checkpoint was saved, what comes after it is what an undisturbed run is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.runs import BY_SECONDS, SAMPLES, STATIC, Framework, check_resumed, run, trained

CONFIGS: dict[str, dict[str, Any]] = {
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 4, "val_check_interval": 5, "loader": STATIC},
    "steps": {"max_epochs": 2, "max_steps": 7, "accumulate_grad_batches": 3, "valid": False, "loader": STATIC},
    "limits": {"limit_train_batches": 5, "max_epochs": 7, "limit_val_batches": 2, "loader": STATIC},
    "share": {"limit_train_batches": 0.4, "max_epochs": 6, "accumulate_grad_batches": 2, "loader": BY_SECONDS},
    "by seconds": {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 0.5, "loader": BY_SECONDS},
    "sub-epochs": {"max_epochs": 5, "val_check_interval": 7, "check_val_every_n_epoch": None},
}
CONFIGS["sub-epochs"]["loader"] = {**BY_SECONDS, "sub_epochs": 2}


def place(checkpoint: Path) -> int:
    count: int = torch.load(checkpoint, weights_only=True)["ShardData"]["loader"]["consumed_samples"]
    return count


LIGHTNING = Framework("under_lightning.py", lambda folder: folder.glob("*.ckpt"), place)


def test_resumed_wherever_it_was_saved(data: Path, tmp_path: Path) -> None:
    for name, begun, _, resumed in LIGHTNING.check_everywhere(data, tmp_path, CONFIGS, 9):
        for out in (begun, resumed):
            validations = {line for path in out.glob("validated-*.txt") for line in path.read_text().splitlines()}
            assert validations <= {"12 12" if name == "limits" else f"{2 * SAMPLES} {2 * SAMPLES}"}, "whole, each time"
            assert validations or out == resumed or name == "steps"


def test_on_other_numbers_of_processes(data: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3, "loader": STATIC}
    LIGHTNING.check_other_worlds(data, tmp_path, options, number=4)


@pytest.mark.parametrize("how", ["error", "signal"])
def test_stopped_by_what_lightning_saves_at(data: Path, tmp_path: Path, how: str) -> None:
    options = {"data": str(data), "max_epochs": 2, "accumulate_grad_batches": 4, "loader": STATIC}
    begun, stopped, resumed = (tmp_path / name for name in ("begun", "stopped", "resumed"))
    run(LIGHTNING.script, [{"out": str(begun), **options}])
    run(LIGHTNING.script, [{"out": str(stopped), "stop": (6, how), **options}], fails=how == "error")
    assert not (stopped / "weights.pt").exists()
    checkpoint = stopped / "stopped.ckpt"
    assert place(checkpoint) == 12, "after the first step; an accumulation was cut short"
    run(LIGHTNING.script, [{"out": str(resumed), "resume": str(checkpoint), **options}])
    check_resumed(trained(begun), begun, resumed, 12)
