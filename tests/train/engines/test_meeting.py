"""Processes that start again on a store which their predecessors have used do not take those for each other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from shardpipe.train.engines.meeting import _follow, _lead


def met(store: Any, size: int, *, late: int | None = None) -> list[str]:
    """The names that processes come to, one of which may begin half a second after the others."""

    def come(rank: int) -> str:
        time.sleep(0.5 * (rank == late))
        return _lead(store, size) if rank == 0 else _follow(store, rank)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(come, range(size)))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_every_start_meets_under_a_name_of_its_own(late: int) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    first, again, fewer = met(store, 3), met(store, 3, late=late), met(store, 2, late=late)
    assert [len(set(names)) for names in (first, again, fewer)] == [1, 1, 1]
    assert len({first[0], again[0], fewer[0]}) == 3


def test_who_was_killed_while_they_met_is_not_waited_for_again() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    store.set("shardpipe", "of a start that did not come about")
    store.set("of a start that did not come about/1", "somebody")
    assert len(set(met(store, 2, late=0))) == 1
