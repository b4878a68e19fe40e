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
    "by hand": {"max_epochs": 2, "kind": "by hand", "loader": STATIC},
    "cut short": {"max_epochs": 3, "kind": "cut short", "loader": STATIC},
    "scheduled": {"max_epochs": 2, "scheduled": {"0": 3, "1": 2}, "loader": STATIC},
    "short epochs": {"max_epochs": 3, "limit_train_batches": 5, "val_check_interval": 5, "loader": STATIC},
    "sub-epochs": {"max_epochs": 5, "val_check_interval": 7, "check_val_every_n_epoch": None},
}
CONFIGS["sub-epochs"]["loader"] = {**BY_SECONDS, "sub_epochs": 2}


def place(checkpoint: Path) -> int:
    count: int = torch.load(checkpoint, weights_only=True)["ShardData"]["loader"]["consumed_samples"]
    return count


LIGHTNING = Framework("under_lightning.py", lambda folder: folder.glob("*.ckpt"), place)


def validations(out: Path) -> list[list[int]]:
    """[steps, samples, different ones among them] of each."""
    files = sorted(out.glob("validated-*.txt"))
    return [[int(number) for number in line.split()] for path in files for line in path.read_text().splitlines()]


def test_resumed_wherever_it_was_saved(data: Path, tmp_path: Path) -> None:
    for name, begun, saved, resumed in LIGHTNING.check_everywhere(data, tmp_path, CONFIGS, 9):
        done, after = validations(begun), validations(resumed)
        whole = 12 if name == "limits" else 2 * SAMPLES
        assert all(counts == [whole, whole] for _, *counts in done + after), "whole, each time"
        assert done or name == "steps"
        if saved.name.startswith("step-"):
            # At a step's end: what is due there comes after it.
            assert after == [each for each in done if each[0] >= int(saved.stem.rpartition("=")[2])], resumed


def test_on_other_numbers_of_processes(data: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3, "loader": STATIC}
    LIGHTNING.check_other_worlds(data, tmp_path, options, number=4)


@pytest.mark.parametrize("how", ["error", pytest.param("signal", marks=pytest.mark.soak)])
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
