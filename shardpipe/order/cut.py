"""Cutting windows of utterances into batches of nearly equal cost, the same number for every lane."""

from __future__ import annotations

from heapq import heapify, heappush, heapreplace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["cut"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Halvings of the interval that holds a row's smallest budget: 2**-12 of it is far below one utterance.
_BISECTIONS = 12


def cut(lengths: Floats, sizes: Ints, budget: float) -> Ints:
    """Cut every row, sorted upwards, into the same number m of batches: batch s is row[cuts[s + 1]:cuts[s]].

    m is what the neediest row needs to keep every batch's padded length (samples times the longest) within the
    budget. Every row then gets the smallest budget that m batches can keep, which spreads its samples evenly. Batch 0
    holds the longest. A row of fewer than m samples ends in empty batches.
    """
    rows = len(sizes)
    neediest = int(_greedy(lengths, sizes, np.full(rows, budget))[1].max(initial=0))
    if neediest == 0:
        return np.zeros((rows, 1), np.int64)
    high = np.full(rows, budget)
    longest = np.where(sizes > 0, lengths[np.arange(rows), np.maximum(sizes - 1, 0)], 0.0)
    # A cumulative sum adds in one order everywhere; `sum` does not, and cuts must not depend on the machine.
    total = np.cumsum(np.where(np.arange(lengths.shape[1]) < sizes[:, None], lengths, 0.0), axis=1)[:, -1]
    low = np.minimum(np.maximum(longest, total / neediest), budget)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = _greedy(lengths, sizes, middle)[1] <= neediest
        high = np.where(fits, middle, high)
        low = np.where(fits, low, middle)
    ends, used = _greedy(lengths, sizes, high)
    cuts = np.zeros((rows, neediest + 1), np.int64)
    for row in range(rows):
        cuts[row] = _exactly(ends[row, : used[row] + 1], neediest)
    return cuts


def _greedy(lengths: Floats, sizes: Ints, budgets: Floats) -> tuple[Ints, Ints]:
    """Batches of every row from its longest sample down, each as full as the budget allows: (ends [rows, m + 1], m)."""
    rows = np.arange(len(sizes))
    end = sizes.astype(np.int64)
    ends = [end]
    while end.any():
        longest = np.where(end > 0, lengths[rows, np.maximum(end - 1, 0)], 1.0)
        # Samples of no length fit in any number, and a quotient may not overflow.
        longest = np.maximum(longest, budgets * 2.0**-60)
        fit = np.floor(np.minimum(budgets / longest, sizes))
        # The rounded quotient can be one off; the product is what is promised.
        fit -= fit * longest > budgets
        fit += (fit + 1) * longest <= budgets
        end = np.maximum(end - np.maximum(fit.astype(np.int64), 1), 0)
        ends.append(end)
    table = np.stack(ends, axis=1)
    return table, (np.diff(table, axis=1) < 0).sum(axis=1)


def _exactly(ends: Ints, number: int) -> Ints:
    """Halve the first batch of most samples until there are `number`, as far as there are samples."""
    batches = [(int(low - high), -int(high)) for high, low in pairwise(ends)]
    heapify(batches)
    while len(batches) < number and batches and batches[0][0] < -1:
        size, high = batches[0]
        half = size // -2
        heapreplace(batches, (-half, high))
        heappush(batches, (size + half, high + half))
    starts = sorted(high for _, high in batches)
    return np.array([-high for high in starts] + [0] * (number + 1 - len(starts)), np.int64)
