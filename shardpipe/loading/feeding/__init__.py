"""What goes on ahead of a loop: batches are planned, read and made, within bounds of number and bytes.

In: a sequence of batches, and how they are to be made. Out: the batches, in order, whoever made them.

    setup       a loader's parameters that say how, checked
    feed        all of that ahead of a loop, by a pipeline, which does work ahead and gives it back in order
    pace        threads or processes, by what the loop waits for; sharing: this process or servers
    prefetch    whole windows into the cache, ahead of the reads
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.feeding.setup import Setup
else:
    # It needs torch.
    __getattr__, __dir__ = lazily(__name__, setup=["Setup"])

__all__ = ["Setup"]
