"""Index, order and plan become tensors.

In: a dataset, an order, a count of consumed samples. Out: the batches from there on, in order, read, decoded and padded
by threads or processes ahead of the loop; and answers about a run that need no run. The path of a batch:

    sequence    index + order + plan: the run's sequence of batches, from any count
    work        one batch to make: its samples and where their bytes lie
    read        byte ranges -> payloads, checked; prefetch brings whole windows into the cache ahead of that
    pipeline    plan, read and make ahead, within bounds, in threads; workers: in processes
    batch       payloads -> samples -> a padded batch, in memory from buffers, on a device
    loader      ShardLoader: all of it as one `for`
    explain     what a run was or will be given, what its plan costs: from sequence alone
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.batch import Batch, Sample
    from shardpipe.loading.explain import Turn, given_at, plan_cost, step_of, visits
    from shardpipe.loading.loader import ShardLoader
    from shardpipe.loading.sequence import BatchSequence
else:
    # They need pyarrow, and most of them torch.
    __getattr__, __dir__ = lazily(
        __name__,
        batch=["Batch", "Sample"],
        explain=["Turn", "given_at", "plan_cost", "step_of", "visits"],
        loader=["ShardLoader"],
        sequence=["BatchSequence"],
    )

__all__ = ["Batch", "BatchSequence", "Sample", "ShardLoader", "Turn", "given_at", "plan_cost", "step_of", "visits"]
