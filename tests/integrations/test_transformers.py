"""Under transformers' Trainer: what comes after a checkpoint is what an undisturbed run is given."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.runs import BY_SECONDS, SAMPLES, STATIC, Framework, check_resumed, run, trained

VERSION = tuple(int(part) for part in version("transformers").split(".")[:2])
CONFIGS: dict[str, dict[str, Any]] = {
    "accumulation": {"num_train_epochs": 3, "gradient_accumulation_steps": 4, "loader": STATIC},
    "every epoch": {"num_train_epochs": 3, "save_strategy": "epoch", "eval_strategy": "epoch", "loader": STATIC},
    "steps": {"max_steps": 9, "gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine", "loader": STATIC},
    "half an epoch": {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2, "loader": STATIC},
    "by seconds": {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "loader": BY_SECONDS},
    "sub-epochs": {"num_train_epochs": 5, "loader": {**BY_SECONDS, "sub_epochs": 2}},
}


def place(checkpoint: Path) -> int:
    saved = json.loads((checkpoint / "trainer_state.json").read_text())
    count: int = saved["stateful_callbacks"]["ShardPlace"]["attributes"]["place"]["loader"]["consumed_samples"]
    return count


TRANSFORMERS = Framework("under_transformers.py", lambda folder: folder.glob("checkpoint-*"), place)


def counts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "counts.json").read_text())
    return found


def test_resumed_wherever_it_was_saved(data: Path, tmp_path: Path) -> None:
    for name, begun, saved, resumed in TRANSFORMERS.check_everywhere(data, tmp_path, CONFIGS, 6):
        whole, wanted, found = trained(begun), counts(begun), counts(resumed)
        assert CONFIGS[name].get("num_train_epochs") != 3 or len(whole) == 3 * SAMPLES
        assert wanted.pop("samples") == pytest.approx(len(whole), abs=1)
        assert found.pop("samples") == pytest.approx(len(whole) - place(saved), abs=1)
        assert found == wanted, resumed


@pytest.mark.skipif(VERSION < (5, 18), reason="before, Trainer itself cannot resume on several processes without GPUs")
def test_on_other_numbers_of_processes(data: Path, tmp_path: Path) -> None:
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "loader": STATIC}
    for begun, resumed in TRANSFORMERS.check_other_worlds(data, tmp_path, options, number=4):
        assert counts(resumed)["tokens"] == counts(begun)["tokens"]
        assert counts(resumed)["epoch"] == 2


def test_stopped_within_an_accumulation(data: Path, tmp_path: Path) -> None:
    options = {"data": str(data), "num_train_epochs": 2, "gradient_accumulation_steps": 4, "loader": STATIC}
    begun, stopped, resumed = (tmp_path / name for name in ("begun", "stopped", "resumed"))
    run(TRANSFORMERS.script, [{"out": str(begun), **options}, {"out": str(stopped), "stop": 2, **options}])
    assert len(trained(stopped)) == 27, "two steps and a batch"
    checkpoint = stopped / "checkpoint-2"
    assert place(checkpoint) == 24
    run(TRANSFORMERS.script, [{"out": str(resumed), "resume": str(checkpoint), **options}])
    check_resumed(trained(begun), begun, resumed, 24)
    assert counts(resumed)["tokens"] == counts(begun)["tokens"]


def test_evaluations_count_every_sample_once(data: Path, tmp_path: Path) -> None:
    """Ranks' last batches differ in size, and repeats fill the last step."""
    options = {"data": str(data), "max_steps": 2, "loader": STATIC, "measure": True, "per_device_eval_batch_size": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    run(TRANSFORMERS.script, [{"out": str(one), **options}])
    run(TRANSFORMERS.script, [{"out": str(two), **options, "learning_rate": 0.0}], processes=2)
    assert counts(one)["measured"] == counts(two)["measured"] == [SAMPLES]
