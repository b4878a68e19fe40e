"""torchdata's StatefulDataLoader on loose files."""

from __future__ import annotations

from typing import Any

from common import Job, Resumed, pad_tensors
from peer_torch import Files
from torchdata.stateful_dataloader import StatefulDataLoader

PACKAGE = "torchdata"


def resume(job: Job, state: Any) -> Resumed:
    loader = StatefulDataLoader(
        Files(job), batch_size=job.batch_size, shuffle=True, collate_fn=pad_tensors, num_workers=job.count
    )
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict
