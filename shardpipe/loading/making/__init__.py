"""One batch: its samples decoded, transformed and padded, by any thread or process.

In: what a batch is to hold and the bytes of its samples. Out: tensors, in memory that is used again once nobody holds
it, on the device that was asked for.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.making.batch import Batch, Sample
    from shardpipe.loading.making.buffers import Arena, Empty, memory_for
    from shardpipe.loading.making.device import CudaCopier, cuda_device, pinned
    from shardpipe.loading.making.form import Channels, Form
    from shardpipe.loading.making.maker import Collate, Maker, Padded, Skipped, Transform, asking, finished, silence
    from shardpipe.loading.making.workers import Workers, check_picklable
else:
    # Most of them need torch.
    __getattr__, __dir__ = lazily(
        __name__,
        batch=["Batch", "Sample"],
        buffers=["Arena", "Empty", "memory_for"],
        device=["CudaCopier", "cuda_device", "pinned"],
        form=["Channels", "Form"],
        maker=["Collate", "Maker", "Padded", "Skipped", "Transform", "asking", "finished", "silence"],
        workers=["Workers", "check_picklable"],
    )

__all__ = [
    "Arena",
    "Batch",
    "Channels",
    "Collate",
    "CudaCopier",
    "Empty",
    "Form",
    "Maker",
    "Padded",
    "Sample",
    "Skipped",
    "Transform",
    "Workers",
    "asking",
    "check_picklable",
    "cuda_device",
    "finished",
    "memory_for",
    "pinned",
    "silence",
]
