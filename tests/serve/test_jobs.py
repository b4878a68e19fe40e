"""What a server holds of its answers, and for how long."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from shardpipe.serve.config import DatasetConfig
from shardpipe.serve.datasets import OpenDataset
from shardpipe.serve.jobs import Jobs
from shardpipe.serve.metrics import Metrics
from shardpipe.serve.room import Answer
from tests.serve.serving import batch_request
from tests.speech import pack_speech


def test_an_answer_that_nobody_holds_is_gone_at_once(tmp_path: Path) -> None:
    """Not only when Python next looks for circles: until then it would take memory beyond all bounds."""
    data = pack_speech(tmp_path, 3)
    dataset = OpenDataset("speech", DatasetConfig(data=str(data)), None)
    jobs = Jobs({"speech": dataset}, Metrics(["speech"]), threads=1, memory=1 << 30, keep=0)
    request = batch_request(dataset.index.fingerprint, (0, 0, 1))

    async def ask() -> weakref.ref[Answer]:
        async with jobs.answer(request.body()) as answer:
            return weakref.ref(answer)

    async def asked() -> Answer | None:
        held = await ask()
        await asyncio.sleep(0.1)  # the thread lets go of it too
        return held()

    gc.disable()
    try:
        assert asyncio.run(asked()) is None
    finally:
        gc.enable()
        jobs.close()
