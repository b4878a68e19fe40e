"""Which shards each node of a run reads in an epoch: a simulation on the order alone, no data needed."""

from __future__ import annotations

import numpy as np

from shardpipe.order import Batching, Order, Plan, default_lanes

__all__ = ["shards_a_node"]


def shards_a_node(counts: np.ndarray, nodes: int, *, ranks: int, batch_size: int, window: int, lanes: int = 0) -> float:
    """Distinct shards that a node of `ranks` ranks reads in epoch 0, on average over the nodes."""
    order = Order(counts, seed=0, window=window, lanes=lanes or default_lanes(counts, window))
    plan = Plan(order, Batching(batch_size=batch_size), seconds=lambda _, positions: np.zeros(len(positions)))
    touched = np.zeros((nodes, len(counts)), np.bool_)
    begun = count = k = 0
    while count < order.num_samples:
        block = plan.block(0, k)
        sizes = np.diff(block.bounds)
        rank = (begun + np.arange(len(sizes))) % (nodes * ranks)
        touched[np.repeat(rank // ranks, sizes), order.sample_at(block.positions, 0)[0]] = True
        begun, count, k = begun + len(sizes), block.end, k + 1
    return float(touched.sum(axis=1).mean())
