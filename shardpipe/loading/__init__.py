"""Index, order and plan become tensors.

In: a dataset, an order, a count of consumed samples. Out: the batches from there on, in order, read, decoded and padded
by threads or processes ahead of the loop; and answers about a run that need no run. The path of a batch:

    sequence    index + order + plan: the run's sequence of batches, from any count
    work        one batch to make: its samples, where their bytes lie, its place in the run
    read        byte ranges -> payloads, checked; prefetch brings whole windows into the cache ahead of that
    making      payloads -> samples -> a padded batch, in threads or processes, on a device
    served      the same batches, made by servers; wire: what is said to them
    feeding     all of that ahead of a loop, within bounds, by threads, processes or servers
    loader      ShardLoader: a `for`; cursor: the count; ranks: which process it is; callers: who must not iterate
    explain     what a run was or will be given, what its plan costs: from sequence alone
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.callers import NoDataLoader, check_caller
    from shardpipe.loading.explain import Turn, given_at, plan_cost, step_of, visits
    from shardpipe.loading.loader import ShardLoader
    from shardpipe.loading.making import Batch, Form, Maker, Padded, Sample, Skipped, asking
    from shardpipe.loading.read import Payload, Reader, SampleRow, coalesce, rows_of
    from shardpipe.loading.sequence import BatchSequence
    from shardpipe.loading.served import (
        Onlooker,
        Seen,
        ServedMaker,
        Service,
        ServiceCounts,
        is_loopback,
        is_served,
        read_tokens,
    )
    from shardpipe.loading.wire import (
        FORMAT,
        NAME,
        About,
        AboutCollate,
        AboutDataset,
        BatchRequest,
        PlaceFields,
        Refusal,
        Wanted,
        content_digest,
        digest_of,
        packed,
    )
    from shardpipe.loading.work import Place, Work
else:
    # They need pyarrow, and most of them torch.
    __getattr__, __dir__ = lazily(
        __name__,
        callers=["NoDataLoader", "check_caller"],
        explain=["Turn", "given_at", "plan_cost", "step_of", "visits"],
        loader=["ShardLoader"],
        making=["Batch", "Form", "Maker", "Padded", "Sample", "Skipped", "asking"],
        read=["Payload", "Reader", "SampleRow", "coalesce", "rows_of"],
        sequence=["BatchSequence"],
        served=[
            "Onlooker",
            "Seen",
            "ServedMaker",
            "Service",
            "ServiceCounts",
            "is_loopback",
            "is_served",
            "read_tokens",
        ],
        wire=[
            "FORMAT",
            "NAME",
            "About",
            "AboutCollate",
            "AboutDataset",
            "BatchRequest",
            "PlaceFields",
            "Refusal",
            "Wanted",
            "content_digest",
            "digest_of",
            "packed",
        ],
        work=["Place", "Work"],
    )

__all__ = [
    "FORMAT",
    "NAME",
    "About",
    "AboutCollate",
    "AboutDataset",
    "Batch",
    "BatchRequest",
    "BatchSequence",
    "Form",
    "Maker",
    "NoDataLoader",
    "Onlooker",
    "Padded",
    "Payload",
    "Place",
    "PlaceFields",
    "Reader",
    "Refusal",
    "Sample",
    "SampleRow",
    "Seen",
    "ServedMaker",
    "Service",
    "ServiceCounts",
    "ShardLoader",
    "Skipped",
    "Turn",
    "Wanted",
    "Work",
    "asking",
    "check_caller",
    "coalesce",
    "content_digest",
    "digest_of",
    "given_at",
    "is_loopback",
    "is_served",
    "packed",
    "plan_cost",
    "read_tokens",
    "rows_of",
    "step_of",
    "visits",
]
