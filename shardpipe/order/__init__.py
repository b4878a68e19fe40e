"""Which sample comes when, and which samples form a batch: pure functions of seed, epoch and position.

In: how many samples each shard has, how long they are, a seed, a count of consumed samples. Out: positions, samples
and batches from that count on, at the same cost for any count. Knows numpy and nothing else: no file, no clock, no
state. What it returns is part of every checkpoint's meaning, and pinned by golden vectors.
"""

from shardpipe.order.batching import Batching, Floats
from shardpipe.order.bijection import ALGORITHM, AUGMENT, BATCH, STEP, hash_key
from shardpipe.order.plan import Plan, PlannedBatch, Share, Step, steps
from shardpipe.order.shuffle import COUNT_MAX, DEFAULT_WINDOW, Ints, Order, by_shard, default_lanes

__all__ = [
    "ALGORITHM",
    "AUGMENT",
    "BATCH",
    "COUNT_MAX",
    "DEFAULT_WINDOW",
    "STEP",
    "Batching",
    "Floats",
    "Ints",
    "Order",
    "Plan",
    "PlannedBatch",
    "Share",
    "Step",
    "by_shard",
    "default_lanes",
    "hash_key",
    "steps",
]
