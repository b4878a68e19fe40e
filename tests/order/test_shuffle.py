"""The order is what the design says, for every dataset: a bijection whose parts lie where they are promised."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shardpipe.errors import ConfigError
from shardpipe.order.bijection import SHARDS, WINDOW, hash_key, permute
from shardpipe.order.shuffle import Order, default_lanes

Samples = list[tuple[int, int]]

edges = [0, 1, *(2**k + d for k in range(1, 11) for d in (-1, 0, 1))]
counts_of_shards = st.one_of(
    st.lists(st.one_of(st.sampled_from([0, 0, 1, 2, 3]), st.integers(0, 60), st.sampled_from(edges)), max_size=12),
    # From many shards, so that those are permuted by the network too, to a single one.
    st.builds(lambda shards, samples: [samples] * shards, st.sampled_from(edges), st.integers(0, 3)),
    st.sampled_from(edges).map(lambda samples: [samples]),
)
parameters = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "window": st.one_of(st.sampled_from([1, 255, 256, 257, 512]), st.integers(1, 3000)),
        "lanes": st.one_of(st.sampled_from([1, 2, 8, 64]), st.integers(1, 100)),
        "shuffle": st.booleans(),
    }
)
epochs = st.integers(0, 2**40)


def samples_of(order: Order, epoch: int) -> Samples:
    shard, index = order.sample_at(np.arange(order.num_samples), epoch)
    return list(zip(shard.tolist(), index.tolist()))


def by_the_design(counts: list[int], epoch: int, *, seed: int, window: int, lanes: int, shuffle: bool) -> Samples:
    """The five steps of the design, one sample after another."""

    def permuted(some: list[Any], *purpose: int) -> list[Any]:
        if not shuffle:
            return some
        return [some[int(i)] for i in permute(np.arange(len(some)), len(some), hash_key(seed, epoch, *purpose))]

    axis = [(shard, index) for shard in permuted(list(range(len(counts))), SHARDS) for index in range(counts[shard])]
    streams, start = [], 0
    for lane in range(lanes):
        end = start + len(axis) // lanes + (lane < len(axis) % lanes)
        windows = [axis[first : min(first + window, end)] for first in range(start, end, window)]
        streams.append([sample for w, some in enumerate(windows) for sample in permuted(some, WINDOW, lane, w)])
        start = end
    return [streams[position % lanes][position // lanes] for position in range(len(axis))]


@given(counts=counts_of_shards, parameters=parameters, epoch=epochs)
def test_order_is_a_bijection_with_an_inverse(counts: list[int], parameters: dict[str, Any], epoch: int) -> None:
    order = Order(counts, **parameters)
    positions = np.arange(order.num_samples)
    shard, index = order.sample_at(positions, epoch)
    assert sorted(zip(shard.tolist(), index.tolist())) == [(s, i) for s, n in enumerate(counts) for i in range(n)]
    assert (order.position_of(shard, index, epoch) == positions).all()


@given(counts=counts_of_shards, parameters=parameters, epoch=epochs)
def test_order_is_what_the_design_says(counts: list[int], parameters: dict[str, Any], epoch: int) -> None:
    assert samples_of(Order(counts, **parameters), epoch) == by_the_design(counts, epoch, **parameters)


@given(data=st.data(), counts=counts_of_shards.filter(any), parameters=parameters, epoch=epochs)
def test_one_position_alone_is_as_in_a_batch(
    data: st.DataObject, counts: list[int], parameters: dict[str, Any], epoch: int
) -> None:
    order = Order(counts, **parameters)
    some = data.draw(st.lists(st.integers(0, order.num_samples - 1), max_size=20))
    shard, index = order.sample_at(some, epoch)
    for position, s, i in zip(some, shard, index):
        assert order.sample_at(position, epoch) == (s, i)
        assert order.position_of(s, i, epoch) == position


@given(counts=counts_of_shards, parameters=parameters, epoch=epochs)
def test_a_lane_is_a_slice_of_the_axis_and_a_window_holds_its_own_part(
    counts: list[int], parameters: dict[str, Any], epoch: int
) -> None:
    order = Order(counts, **parameters)
    rank = {int(s): r for r, s in enumerate(dict.fromkeys(shards_of_the_axis(order, epoch)))}
    places = [(rank[s], i) for s, i in samples_of(order, epoch)]
    axis = sorted(places)
    lanes, window = order.lanes, order.window
    lengths = [len(places[lane::lanes]) for lane in range(lanes)]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1
    for lane in range(lanes):
        start, stream = sum(lengths[:lane]), places[lane::lanes]
        for first in range(0, len(stream), window):
            some = stream[first : first + window]
            assert sorted(some) == axis[start + first : start + first + len(some)]


def shards_of_the_axis(order: Order, epoch: int) -> list[int]:
    """Shards as one lane without windows meets them."""
    one = Order(order.counts, seed=order.seed, window=1, lanes=1, shuffle=order.shuffle)
    return [shard for shard, _ in samples_of(one, epoch)]


@pytest.mark.parametrize("lanes", [1, 3, 64])
def test_without_shuffling_a_lane_is_the_packed_order(lanes: int) -> None:
    order = Order([5, 0, 7, 300], seed=0, window=8, lanes=lanes, shuffle=False)
    packed = [(s, i) for s, n in enumerate([5, 0, 7, 300]) for i in range(n)]
    found = samples_of(order, 3)
    assert [sample for lane in range(lanes) for sample in found[lane::lanes]] == packed


def test_shape_and_type() -> None:
    order = Order([10, 0, 90], seed=1, window=16, lanes=4)
    for positions in (7, [7], [], np.arange(12, dtype=np.int32).reshape(3, 4), np.arange(100)[::-3], np.uint8([3])):
        shard, index = order.sample_at(positions, 0)
        assert isinstance(shard, np.ndarray)
        assert shard.dtype == index.dtype == np.int64
        assert shard.shape == index.shape == np.shape(positions)
        back = order.position_of(shard, index, 0)
        assert isinstance(back, np.ndarray)
        assert back.dtype == np.int64
        assert (back == np.asarray(positions)).all()
    assert order.position_of(2, np.arange(90).reshape(9, 10), 0).shape == (9, 10)
    assert order.position_of([[0], [2]], [1, 2, 3], 0).shape == (2, 3)


def test_arguments_are_left_alone_and_not_kept() -> None:
    counts, positions = np.array([10, 20]), np.arange(30)
    order = Order(counts, seed=1, window=4, lanes=3)
    before = samples_of(order, 5)
    shard, index = order.sample_at(positions, 5)
    order.position_of(shard, index, 5)
    assert (positions == np.arange(30)).all()
    assert list(zip(shard.tolist(), index.tolist())) == before
    counts[:] = 0
    assert samples_of(order, 5) == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("window", 0),
        ("window", -3),
        ("window", 2**49),
        ("lanes", 0),
        ("lanes", -1),
        ("lanes", 2**17),
    ],
)
def test_a_setting_outside_its_rule_is_named(setting: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value}") as error:
        Order([10], **{"seed": 0, "window": 8, "lanes": 1, setting: value})
    assert (error.value.name, error.value.value) == (setting, value)


def test_places_that_do_not_exist() -> None:
    order = Order([3, 0, 4], seed=0, window=8, lanes=2)
    for position in (-1, 7, [0, 7], 2**62):
        with pytest.raises(ValueError, match=r"position must be in \[0, 7\)"):
            order.sample_at(position, 0)
    for shard in (-1, 3):
        with pytest.raises(ValueError, match=r"shard must be in \[0, 3\)"):
            order.position_of(shard, 0, 0)
    for shard, index in ((0, 3), (0, -1), (1, 0)):
        with pytest.raises(ValueError, match="index lies outside its shard"):
            order.position_of(shard, index, 0)
    with pytest.raises(ValueError, match="position"):
        Order([], seed=0, window=8, lanes=1).sample_at(0, 0)
    with pytest.raises(ValueError, match="negative"):
        Order([3, -1], seed=0, window=8, lanes=1)


@given(shards=st.integers(0, 1200), samples=st.integers(0, 300), window=st.one_of(st.integers(1, 300), st.just(8192)))
def test_default_lanes_are_the_most_that_leave_each_a_window_and_8_shards(
    shards: int, samples: int, window: int
) -> None:
    counts = [samples] * shards
    good = [c for c in (2, 4, 8, 16, 32, 64) if shards * samples // c >= window and shards // c >= 8]
    assert default_lanes(counts, window) == max(good, default=1)


def test_default_lanes_of_known_datasets() -> None:
    assert default_lanes([], 8192) == 1
    assert default_lanes([10**6], 8192) == 1  # one shard
    assert default_lanes([1000] * 524, 8192) == 32  # shards for 64 lanes, samples for 63
    assert default_lanes([1024] * 512, 8192) == 64
    assert default_lanes([10**6] * 511, 8192) == 32
    assert default_lanes([10**6] * 10**5, 8192) == 64  # never more


def test_a_million_shards_and_a_million_million_samples() -> None:
    counts = np.random.default_rng(0).integers(0, 2 * 10**6, 10**6)
    order = Order(counts, seed=1, window=8192, lanes=64)
    assert order.num_samples > 0.99e12
    positions = np.concatenate(
        [np.arange(1000), order.num_samples - 1 - np.arange(1000), np.arange(10**3) * 10**9 % 10**12]
    )
    shard, index = order.sample_at(positions, 2)
    assert ((index >= 0) & (index < counts[shard])).all()
    assert (order.position_of(shard, index, 2) == positions).all()


@given(counts=st.permutations([10**6, 10**4, *[1] * 40, *[0] * 40, *[30] * 5]), seed=st.integers(0, 100))
def test_shards_of_very_unequal_size(counts: list[int], seed: int) -> None:
    order = Order(counts, seed=seed, window=8192, lanes=2)
    small = [(s, i) for s, samples in enumerate(counts) for i in {0, samples // 2, samples - 1} if 0 <= i < samples]
    positions = order.position_of(*zip(*small), 1)
    shard, index = order.sample_at(positions, 1)
    assert list(zip(shard.tolist(), index.tolist())) == small


def test_threads_may_ask_for_different_epochs_at_once() -> None:
    order = Order([3, 1, 0, 9] * 50, seed=4, window=50, lanes=8)
    positions = np.arange(0, order.num_samples, 60)
    expected = [Order(order.counts, seed=4, window=50, lanes=8).sample_at(positions, epoch) for epoch in range(4)]
    together = threading.Barrier(4)

    def ask(thread: int) -> None:
        together.wait()
        for turn in range(300):
            epoch = (thread + turn) % 4
            shard, index = order.sample_at(positions, epoch)
            assert (shard == expected[epoch][0]).all()
            assert (index == expected[epoch][1]).all()
            assert (order.position_of(shard, index, epoch) == positions).all()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
    finally:
        sys.setswitchinterval(interval)


# What a training run sees of the order's randomness; test_bijection.py looks at the bijections themselves.


def ranks_in_the_axis(
    seed: int, epoch: int, *, shards: int = 1000, samples: int = 20, window: int = 20_000
) -> np.ndarray:
    order = Order([samples] * shards, seed=seed, window=window, lanes=1)
    shard, index = order.sample_at(np.arange(order.num_samples), epoch)
    return shard * samples + index


@pytest.mark.parametrize("window", [20_000, 512, 100])
@pytest.mark.parametrize(("one", "other"), [((5, 1), (6, 0)), ((5, 0), (5, 1)), ((5, 0), (6, 0)), ((0, 0), (0, 1))])
def test_epochs_and_seeds_give_unrelated_orders(window: int, one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = (ranks_in_the_axis(seed, epoch, window=window) for seed, epoch in (one, other))
    # Samples that keep their position are Poisson(1) in number if the orders are unrelated.
    assert (first == second).sum() <= 7
    # A window holds whole shards, so shards are the independent draws: rho has a deviation of 1/sqrt(1000) or less.
    assert abs(stats.spearmanr(first, second).statistic) < 4 / np.sqrt(1000)


def test_the_shards_are_in_another_order_in_every_epoch() -> None:
    met = Counter(ranks_in_the_axis(7, epoch, shards=6, samples=2, window=1)[0] // 2 for epoch in range(6000))
    assert sorted(met) == list(range(6))
    assert stats.chisquare(list(met.values())).pvalue > 1e-4


def test_windows_and_lanes_are_permuted_each_in_its_own_way() -> None:
    order = Order([64 * 16], seed=3, window=64, lanes=4)
    _, index = order.sample_at(np.arange(order.num_samples), 0)
    inside = {tuple(index[lane::4][w * 64 : (w + 1) * 64] % 64) for lane in range(4) for w in range(4)}
    assert len(inside) == 16


# Golden vectors. A saved run is a count into this order: if a value below changes, every checkpoint in the world goes
# on with other samples than it stopped at, silently. They may change only together with ALGORITHM, which refuses such a
# resume.

COUNTS = [3, 0, 5, 1, 4, 2]
SMALL = {"counts": COUNTS, "seed": 7, "window": 4, "lanes": 2}
LARGE = {"counts": [1000 + 7 * (i % 13) for i in range(600)], "seed": 2026, "window": 8192, "lanes": 64}
HUGE = {"counts": [10**9] * 1000, "seed": 2**62 + 1, "window": 5000, "lanes": 3}
# fmt: off
GOLDEN: list[tuple[dict[str, Any], int, list[int], Samples]] = [
    (SMALL, 0, [*range(15)], [
        (0, 1), (2, 4), (0, 2), (2, 2), (0, 0), (4, 0), (3, 0), (2, 3), (2, 0), (4, 2), (5, 0), (4, 3), (2, 1), (4, 1),
        (5, 1)]),
    (SMALL, 1, [*range(15)], [
        (2, 0), (4, 0), (0, 2), (4, 3), (0, 0), (4, 2), (0, 1), (4, 1), (2, 3), (3, 0), (2, 2), (5, 1), (2, 1), (5, 0),
        (2, 4)]),
    # 625,123 samples: lanes of 9,768 and 9,767, whose last windows are of two sizes.
    (LARGE, 3, [0, 1, 63, 64, 312561, 524287, 524288, 625121, 625122], [
        (318, 129), (184, 672), (71, 83), (86, 950), (256, 789), (572, 723), (68, 747), (348, 141), (63, 912)]),
    (HUGE, 10**6, [0, 5 * 10**11, 10**12 - 1], [(443, 2241), (360, 333332015), (489, 333332766)]),
]
# fmt: on


@pytest.mark.parametrize(("settings", "epoch", "positions", "samples"), GOLDEN)
def test_golden_order(settings: dict[str, Any], epoch: int, positions: list[int], samples: Samples) -> None:
    shard, index = Order(**settings).sample_at(positions, epoch)
    assert list(zip(shard.tolist(), index.tolist())) == samples


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 12),
    lanes=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_a_stretch_is_what_its_window_draws_from(counts: list[int], window: int, lanes: int, epoch: int) -> None:
    order = Order(counts, seed=3, window=window, lanes=lanes)
    positions = np.arange(order.num_samples)
    shards, places = order.sample_at(positions, epoch)
    drawn: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for p, shard, place in zip(positions.tolist(), shards.tolist(), places.tolist()):
        drawn.setdefault((p % lanes, p // lanes // window), set()).add((shard, place))
    for lane in range(lanes):
        for k in range(order.num_samples // lanes // window + 3):
            spans = order.stretch(lane, k, epoch)
            covered = [(shard, place) for shard, first, stop in spans for place in range(first, stop)]
            assert len(covered) == len(set(covered))
            assert set(covered) == drawn.get((lane, k), set())
