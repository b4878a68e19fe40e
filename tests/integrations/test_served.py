"""Under every framework, batches that servers make train to the weights of those that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.runs import BY_SECONDS, run, trained
from tests.serve.serving import running

JOBS: dict[str, dict[str, Any]] = {
    "under_lightning.py": {"max_epochs": 2, "accumulate_grad_batches": 2},
    "under_transformers.py": {"num_train_epochs": 2, "gradient_accumulation_steps": 2},
    "under_accelerate.py": {"epochs": 2, "accumulate": 2},
}


@pytest.mark.parametrize("script", JOBS)
def test_the_same_weights(script: str, data: Path, tmp_path: Path) -> None:
    with running(data, "--name", "one") as one, running(data, "--name", "one") as other:
        servers = [f"{server.url}/one" for server in (one, other)]
        ways = {"here": {}, "served": {"servers": servers}, "both": {"servers": servers, "local": True}}
        jobs = [
            {"data": str(data), "out": str(tmp_path / name), "loader": {**BY_SECONDS, **way}, **JOBS[script]}
            for name, way in ways.items()
        ]
        run(script, jobs)
    wanted = torch.load(tmp_path / "here" / "weights.pt", weights_only=True)
    for name in ways:
        assert trained(tmp_path / name) == trained(tmp_path / "here")
        got = torch.load(tmp_path / name / "weights.pt", weights_only=True)
        assert all(torch.equal(wanted[part], got[part]) for part in wanted), name
