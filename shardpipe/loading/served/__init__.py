"""The data service as its clients have it: the same batches, made elsewhere.

In: what a batch is to hold. Out: the batch, from whichever replica makes it. A batch is a function of its list of
samples, so replicas hold no state: one that is lost costs another request.

    addresses   URLs -> servers -> replicas, by DNS
    access      the token, and the certificates that are trusted
    connection  HTTP/1.1 over a socket, a body straight into a batch's memory
    replicas    which to ask, which to leave alone; watch: the thread that looks after them
    exchange    a question, and as many replicas as it takes; asking: again, as long as is patient
    index       the index through the service; making: batches, as a Maker has them
    opening     all of that for a loader; looking: what servers say to who asks no batch of them
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.served.access import read_tokens
    from shardpipe.loading.served.addresses import is_loopback, is_served
    from shardpipe.loading.served.looking import Onlooker, Seen
    from shardpipe.loading.served.making import ServedMaker
    from shardpipe.loading.served.opening import Digests, Service, ServiceCounts
else:
    # Most of them need torch.
    __getattr__, __dir__ = lazily(
        __name__,
        access=["read_tokens"],
        addresses=["is_loopback", "is_served"],
        looking=["Onlooker", "Seen"],
        making=["ServedMaker"],
        opening=["Digests", "Service", "ServiceCounts"],
    )

__all__ = [
    "Digests",
    "Onlooker",
    "Seen",
    "ServedMaker",
    "Service",
    "ServiceCounts",
    "is_loopback",
    "is_served",
    "read_tokens",
]
