"""Index, order and plan become tensors.

In: a dataset, an order, a count of consumed samples. Out: the batches from there on, in order, read, decoded and padded
by threads or processes ahead of the loop; and answers about a run that need no run. The path of a batch:

    sequence    index + order + plan: the run's sequence of batches, from any count
    work        one batch to make: its samples, where their bytes lie, its place in the run
    read        byte ranges -> payloads, checked; prefetch brings whole windows into the cache ahead of that
    making      payloads -> samples -> a padded batch, in threads or processes, on a device
    feed        all of that ahead of a loop, within bounds, by a pipeline; pace: by threads or by processes
    loader      ShardLoader: a `for`; cursor: the count; ranks: which process it is; callers: who must not iterate
    explain     what a run was or will be given, what its plan costs: from sequence alone
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.callers import NoDataLoader, check_caller
    from shardpipe.loading.explain import Turn, given_at, plan_cost, step_of, visits
    from shardpipe.loading.loader import ShardLoader
    from shardpipe.loading.making import Batch, Form, Sample
    from shardpipe.loading.read import Payload, Reader, SampleRow, coalesce, rows_of
    from shardpipe.loading.sequence import BatchSequence
    from shardpipe.loading.work import Place
else:
    # They need pyarrow, and most of them torch.
    __getattr__, __dir__ = lazily(
        __name__,
        callers=["NoDataLoader", "check_caller"],
        explain=["Turn", "given_at", "plan_cost", "step_of", "visits"],
        loader=["ShardLoader"],
        making=["Batch", "Form", "Sample"],
        read=["Payload", "Reader", "SampleRow", "coalesce", "rows_of"],
        sequence=["BatchSequence"],
        work=["Place"],
    )

__all__ = [
    "Batch",
    "BatchSequence",
    "Form",
    "NoDataLoader",
    "Payload",
    "Place",
    "Reader",
    "Sample",
    "SampleRow",
    "ShardLoader",
    "Turn",
    "check_caller",
    "coalesce",
    "given_at",
    "plan_cost",
    "rows_of",
    "step_of",
    "visits",
]
