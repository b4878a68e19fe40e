"""The arena: no two living arrays share a byte, and what is let go is lent again."""

from __future__ import annotations

import gc
import multiprocessing
import random
import threading

import numpy as np
import pytest
import torch

from shardpipe.loading.making.buffers import Arena, Room, SharedBytes
from tests.forking import ended, forked, needs_fork

MIB = 1 << 20


def room(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_arrays_are_of_their_shape_and_writable(dtype: str) -> None:
    array = Arena(MIB).empty((3, 1000), dtype)
    assert (array.shape, array.dtype.name, array.flags.c_contiguous) == ((3, 1000), dtype, True)
    array[:] = 7
    assert array.sum() == 21000


def test_memory_comes_again_once_nobody_holds_it() -> None:
    arena = Arena(MIB)
    first = arena.empty((4, 1000), "float32")
    start = room(first)
    view = torch.from_numpy(first)[1:3]  # who holds a part holds the whole
    del first
    other = arena.empty((4, 1000), "float32")
    assert room(other) != start
    view[:] = 5
    del other, view
    assert room(arena.empty((4, 1000), "float32")) == start


def test_the_lowest_place_is_taken_and_neighbours_are_joined() -> None:
    arena = Arena(MIB)
    arrays = [arena.empty((MIB // 4,), "uint8") for _ in range(4)]
    starts = [room(array) for array in arrays]
    assert starts == sorted(starts)
    del arrays[1:3]
    assert room(arena.empty((MIB // 2,), "uint8")) == starts[1], "two free neighbours are one room"
    assert room(arena.empty((MIB // 8,), "uint8")) == starts[1]


def test_a_full_arena_lends_from_elsewhere() -> None:
    arena = Arena(MIB)
    kept = [arena.empty((MIB // 2,), "uint8") for _ in range(5)]
    for i, array in enumerate(kept):
        array[:] = i
    assert [set(array.tolist()) for array in kept] == [{i} for i in range(5)]
    assert arena.empty((4 * MIB,), "uint8").shape == (4 * MIB,)


def test_no_two_threads_are_lent_the_same_bytes() -> None:
    arena = Arena(MIB)
    start = room(arena.empty((1,), "uint8"))
    wrong: list[int] = []

    def use(seed: int) -> None:
        rng = random.Random(seed)
        held: list[np.ndarray] = []
        for _ in range(400):
            array = arena.empty((rng.randrange(1, 100000),), "uint8")
            array[:] = seed
            held.append(array)
            if len(held) > 3:
                checked = held.pop(rng.randrange(4))
                if (checked != seed).any():
                    wrong.append(seed)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert room(arena.empty((MIB,), "uint8")) == start, "all of it is free again, and one piece"


def fill(shared: SharedBytes, start: int, size: int) -> None:
    Room(shared, start, size).empty((2, 500), "uint8")[:] = 3


def test_a_shared_arena_is_the_same_in_another_process() -> None:
    arena = Arena(MIB, shared=True)
    kept, array = arena.empty((1000,), "uint8"), arena.empty((2, 500), "uint8")
    kept[:] = array[:] = 1
    start = arena.start(array)
    assert start is not None
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(arena.shared, start, array.nbytes))
    process.start()
    process.join()
    assert set(array.flat) == {3}
    assert set(kept.tolist()) == {1}


def test_what_a_shared_arena_lends_from_elsewhere_has_no_place_in_it() -> None:
    arena = Arena(MIB, shared=True)
    assert arena.start(arena.empty((MIB,), "uint8")) == 0
    held = arena.empty((MIB,), "uint8")
    assert arena.start(held) == 0
    assert arena.start(arena.empty((1,), "uint8")) is None


def test_what_does_not_fit_its_place_lies_elsewhere() -> None:
    shared = SharedBytes(MIB)
    room = Room(shared, 4096, 100)
    assert room.empty((101,), "uint8").shape == (101,)
    assert room.array is None
    room.empty((10, 5), "int16")[:] = 7
    assert set(np.frombuffer(shared.memory, "int16", 50, 4096)) == {7}
    assert Room(shared, None, 100).empty((1,), "uint8").shape == (1,)


@needs_fork
def test_what_a_forked_process_writes_stays_its_own() -> None:
    array = Arena(MIB).empty((1000,), "uint8")
    array[:] = 1
    assert ended(forked(lambda: array.fill(2))) == 0
    assert set(array.tolist()) == {1}


def test_more_than_any_machine_has() -> None:
    assert Arena(1 << 60).empty((10,), "float32").shape == (10,)
