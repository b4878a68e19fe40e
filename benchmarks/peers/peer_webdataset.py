"""webdataset on shardpipe's own tars, which are what its own writer makes."""

from __future__ import annotations

import webdataset as wds
from common import SHUFFLE_BUFFER, Epoch, Job, pad_tensors

PACKAGE = "webdataset"


def open_epochs(job: Job) -> Epoch:
    tars = sorted(str(path) for path in job.folder.glob("*.tar"))
    samples = (
        wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=wds.single_node_only)
        .shuffle(SHUFFLE_BUFFER)
        .to_tuple(job.format)
        .map(lambda sample: job.decoded(sample[0]))
        .batched(job.batch_size, collation_fn=pad_tensors, partial=True)
    )
    loader = wds.WebLoader(samples, batch_size=None, num_workers=job.count, persistent_workers=job.count > 0)
    return lambda: iter(loader)
