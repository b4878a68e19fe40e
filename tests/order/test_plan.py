"""The plan covers an epoch exactly once, within the budget, from any count, for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, field, replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import ConfigError
from shardpipe.order.batching import Batching
from shardpipe.order.plan import Block, Plan, PlannedBatch, steps
from shardpipe.order.shuffle import Order

Flat = list[tuple[list[int], int]]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An order and the lengths of its positions."""

    lengths: list[float]
    lanes: int = 1
    window: int = 8
    shuffle: bool = True
    seed: int = 0

    def plan(self, batching: Batching) -> Plan:
        lengths = np.array(self.lengths, np.float64)
        order = Order([len(lengths)], seed=self.seed, window=self.window, lanes=self.lanes, shuffle=self.shuffle)
        return Plan(order, batching, seconds=lambda epoch, positions: lengths[positions])

    def kept(self, batching: Batching) -> list[int]:
        low = batching.min_seconds or 0.0
        high = math.inf if batching.max_seconds is None else batching.max_seconds
        return [position for position, length in enumerate(self.lengths) if low <= length <= high]


def flat(batches: Iterator[PlannedBatch]) -> Flat:
    return [(batch.positions.tolist(), batch.count) for batch in batches]


def positions_of(batches: Flat) -> list[int]:
    return [position for positions, _ in batches for position in positions]


def blocks(plan: Plan, epoch: int = 0) -> list[Block]:
    found, end, k = [], plan.count_at(plan.batching.origin), 0
    while end < plan.order.num_samples:
        found.append(plan.block(epoch, k))
        end, k = found[-1].end, k + 1
    return found


some_lengths = st.one_of(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 6.0, 30.0]), max_size=100),
    st.lists(st.floats(0, 30), max_size=60),
    # All equal, or all but one giant.
    st.builds(
        lambda n, length, giant: [length] * n + [30.0] * giant,
        st.integers(0, 150),
        st.sampled_from([0.0, 0.1, 3.0]),
        st.integers(0, 1),
    ),
)
epochs_of = st.builds(
    Epoch,
    lengths=some_lengths,
    lanes=st.one_of(st.integers(1, 5), st.integers(1, 70)),
    window=st.one_of(st.integers(1, 12), st.integers(1, 400)),
    shuffle=st.booleans(),
    seed=st.integers(0, 100),
)
by_size = st.builds(Batching, batch_size=st.one_of(st.integers(1, 9), st.integers(1, 6000)))
# No sample is longer than the least of them.
by_seconds = st.builds(
    Batching, batch_seconds=st.one_of(st.sampled_from([30.0, 30.3, 60.0, 300.0]), st.floats(30, 1e6))
)
batchings = st.one_of(by_size, by_seconds)
limits = st.sampled_from(
    [
        {"min_seconds": 0.15},
        {"max_seconds": 5.0},
        {"min_seconds": 0.2, "max_seconds": 6.0},
        {"max_seconds": 0.0},
        {"min_seconds": 100.0},
        {"min_seconds": 0.0},
    ]
)
excluding = st.builds(lambda batching, limits: replace(batching, **limits), batchings, limits)


@given(epoch=epochs_of, batching=batchings)
def test_every_position_comes_once_and_the_counts_add_up(epoch: Epoch, batching: Batching) -> None:
    batches = flat(epoch.plan(batching).batches(0, 0))
    assert sorted(positions_of(batches)) == list(range(len(epoch.lengths)))
    assert all(positions for positions, _ in batches)
    assert [count for _, count in batches] == np.cumsum([len(positions) for positions, _ in batches]).tolist()


@given(epoch=epochs_of, size=st.one_of(st.integers(1, 9), st.integers(1, 6000)))
def test_batches_by_size_are_what_the_design_says(epoch: Epoch, size: int) -> None:
    n, lanes = len(epoch.lengths), epoch.lanes
    streams = [list(range(lane, n, lanes)) for lane in range(lanes)]
    rungs = [[stream[first : first + size] for stream in streams] for first in range(0, -(-n // lanes), size)]
    batches = flat(epoch.plan(Batching(batch_size=size)).batches(0, 0))
    assert [positions for positions, _ in batches] == [batch for rung in rungs for batch in rung if batch]
    # At a rung's end, whatever the size, it is the order's first positions that are consumed.
    for j, _ in enumerate(rungs):
        consumed = positions_of([batch for rung in rungs[: j + 1] for batch in [(p, 0) for p in rung]])
        assert sorted(consumed) == list(range(min(n, (j + 1) * size * lanes)))


@given(epoch=epochs_of, batching=st.one_of(by_seconds, st.builds(replace, by_seconds, max_seconds=st.just(5.0))))
def test_batches_by_seconds_are_what_the_design_says(epoch: Epoch, batching: Batching) -> None:
    plan, lengths = epoch.plan(batching), np.array(epoch.lengths)
    budget, span = batching.batch_seconds, epoch.window * epoch.lanes
    assert budget is not None
    kept = set(epoch.kept(batching))
    for k, block in enumerate(blocks(plan)):
        assert (block.start, block.end) == (k * span, min((k + 1) * span, len(lengths)))
        batches = [block.positions[low:high] for low, high in pairwise(block.bounds)]
        owners = [int(batch[0]) % epoch.lanes for batch in batches]
        by_lane: list[list[np.ndarray]] = [[] for _ in range(epoch.lanes)]
        for owner, batch in zip(owners, batches):
            assert (batch % epoch.lanes == owner).all()
            assert len(batch) * lengths[batch].max() <= budget
            by_lane[owner].append(batch)
        sizes = [sum(len(batch) for batch in some) for some in by_lane]
        assert sizes == [
            len(kept & set(range(block.start + (lane - block.start) % epoch.lanes, block.end, epoch.lanes)))
            for lane in range(epoch.lanes)
        ]
        # Equally many of every lane, unless a lane has fewer samples than that.
        most = max(map(len, by_lane))
        assert [len(some) for some in by_lane] == [min(size, most) for size in sizes]
        # Rungs with a batch of every lane first, lanes in turn; then those that lack one, lanes still upwards.
        common = min(map(len, by_lane))
        assert owners[: common * epoch.lanes] == list(range(epoch.lanes)) * common
        for some in by_lane:
            cut = sorted(some, key=lambda batch: (-lengths[batch].max(), -lengths[batch].min()))
            assert all(lengths[one].min() >= lengths[other].max() for one, other in pairwise(cut))


@given(epoch=epochs_of, batching=excluding)
def test_excluded_samples_are_reported_once_and_consumed(epoch: Epoch, batching: Batching) -> None:
    plan, n, kept = epoch.plan(batching), len(epoch.lengths), epoch.kept(batching)
    found = blocks(plan)
    excluded = [int(position) for block in found for position in block.excluded]
    assert sorted(excluded) == sorted(set(range(n)) - set(kept))
    for block in found:
        assert sorted([*block.positions, *block.excluded]) == list(range(block.start, block.end))
        assert len(block.counts) == len(block.bounds)
        assert block.start <= block.counts[0]
        assert block.counts[-1] == block.end
        assert (np.diff(block.counts) >= np.diff(block.bounds)).all()
    batches = flat(plan.batches(0, 0))
    assert sorted(positions_of(batches)) == kept
    counts = [count for _, count in batches]
    assert counts == sorted(set(counts))
    assert counts[-1:] == [n][: len(kept)]


def test_excluded_samples_are_consumed_with_their_batch_or_window() -> None:
    lengths = [1.0, 9.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 9.0, 1.0]
    epoch = Epoch(lengths=lengths, lanes=1, window=6, shuffle=False)
    by_size = epoch.plan(Batching(batch_size=2, max_seconds=5.0))
    # Positions 4 to 7 are two batches of nothing, and go with the one before them.
    assert flat(by_size.batches(0, 0)) == [([0], 2), ([2, 3], 8), ([8, 9], 10), ([11], 12)]
    by_seconds = epoch.plan(Batching(batch_seconds=10.0, max_seconds=5.0))
    assert flat(by_seconds.batches(0, 0)) == [([0, 2, 3], 6), ([8, 9, 11], 12)]
    assert [block.excluded.tolist() for block in blocks(by_seconds)] == [[1, 4, 5], [6, 7, 10]]


@pytest.mark.parametrize("batching", [Batching(batch_size=64), Batching(batch_seconds=64.0)])
@pytest.mark.parametrize("excluded", [slice(4200, None), slice(0, 4200), slice(50, 9000), slice(0, 10_000)])
def test_whole_blocks_of_excluded_samples(batching: Batching, excluded: slice) -> None:
    """The last batch takes the count to the end of the epoch, so that nothing is left over."""
    lengths = np.full(10_000, 1.0)
    lengths[excluded] = 9.0
    epoch = Epoch(lengths=lengths.tolist(), lanes=2, window=40)
    batches = flat(epoch.plan(replace(batching, max_seconds=5.0)).batches(0, 0))
    assert sorted(positions_of(batches)) == np.flatnonzero(lengths < 5).tolist()
    assert [count for _, count in batches][-1:] == ([10_000] if batches else [])


@given(epoch=epochs_of, batching=st.one_of(batchings, excluding))
def test_stopped_at_any_batch_the_rest_is_the_same(epoch: Epoch, batching: Batching) -> None:
    plan = epoch.plan(batching)
    whole = flat(plan.batches(0, 0))
    for i, (_, count) in enumerate(whole):
        assert flat(plan.batches(0, count)) == whole[i + 1 :]


@given(epoch=epochs_of.filter(lambda epoch: len(epoch.lengths) <= 60), batching=batchings)
def test_stopped_at_any_sample_the_rest_of_its_batch_comes_first(epoch: Epoch, batching: Batching) -> None:
    plan, n = epoch.plan(batching), len(epoch.lengths)
    whole = flat(plan.batches(0, 0))
    for consumed in range(n + 1):
        i = sum(count <= consumed for _, count in whole)
        rest = whole[i:]
        if rest:
            positions, count = rest[0]
            rest[0] = (positions[consumed - (count - len(positions)) :], count)
        assert flat(plan.batches(0, consumed)) == rest


@given(epoch=epochs_of.filter(lambda epoch: len(epoch.lengths) <= 60), batching=excluding)
def test_stopped_at_any_sample_with_excluded_ones_the_rest_is_a_suffix(epoch: Epoch, batching: Batching) -> None:
    plan = epoch.plan(batching)
    whole = positions_of(flat(plan.batches(0, 0)))
    before = len(whole)
    for consumed in range(len(epoch.lengths) + 1):
        rest = positions_of(flat(plan.batches(0, consumed)))
        assert rest == whole[len(whole) - len(rest) :]
        assert before - 1 <= len(rest) <= before  # never two samples for one count
        before = len(rest)
    assert not before


@given(
    data=st.data(),
    epoch=epochs_of.filter(lambda epoch: 0 < len(epoch.lengths) <= 60),
    some=st.lists(batchings, min_size=2, max_size=4),
    limits=st.one_of(st.just({}), limits),
)
def test_another_batching_takes_over_at_the_boundary(
    data: st.DataObject, epoch: Epoch, some: list[Batching], limits: dict[str, float]
) -> None:
    """A chain of batchings, each stopped at any count and then finishing its rung or super-window."""
    n, some = len(epoch.lengths), [replace(batching, **limits) for batching in some]
    delivered: list[int] = []
    consumed, batching = 0, some[0]
    for following in [*some[1:], None]:
        plan = epoch.plan(batching)
        left = n if following is None else data.draw(st.integers(consumed, n))
        offset = plan.next_boundary(left)
        boundary = n if following is None else plan.count_at(offset)
        assert left <= boundary <= n
        # What is delivered up to `left` is what a resume there no longer delivers.
        until, rest = (positions_of(flat(plan.batches(0, count, boundary))) for count in (consumed, left))
        assert rest == until[len(until) - len(rest) :]
        delivered += until
        consumed = boundary
        if following is not None:
            batching = replace(following, origin=offset)
    assert sorted(delivered) == epoch.kept(batching)


def test_a_boundary_is_the_end_of_the_rung_or_the_super_window() -> None:
    epoch = Epoch(lengths=[1.0] * 1000, lanes=4, window=50)
    by_size, by_seconds = epoch.plan(Batching(batch_size=6)), epoch.plan(Batching(batch_seconds=30.0))
    assert [by_size.next_boundary(count) for count in (0, 1, 24, 25, 990, 1000)] == [0, 6, 6, 12, 252, 252]
    assert [by_seconds.next_boundary(count) for count in (0, 1, 200, 201, 1000)] == [0, 50, 50, 100, 250]
    assert by_size.count_at(252) == by_seconds.count_at(250) == 1000
    later = epoch.plan(Batching(batch_size=6, origin=50))
    assert [later.next_boundary(count) for count in (200, 201, 224, 225)] == [50, 56, 56, 62]
    later = epoch.plan(Batching(batch_seconds=30.0, origin=56))
    assert [later.next_boundary(count) for count in (224, 225, 400, 401)] == [56, 100, 100, 150]


def test_a_rung_of_nothing_but_excluded_samples_ends_before_the_next() -> None:
    """A resume inside it does not reach over the boundary, where another batching takes over."""
    plan = Epoch(lengths=[1.0, 1.0, 5.0, 5.0, 5.0, 5.0], shuffle=False).plan(Batching(batch_size=2, min_seconds=2.0))
    assert plan.next_boundary(1) == 2
    assert flat(plan.batches(0, 1, 2)) == []
    assert flat(plan.batches(0, 1)) == flat(plan.batches(0, 0)) == [([2, 3], 4), ([4, 5], 6)]


def test_a_batching_with_an_origin_plans_the_rest_of_the_window() -> None:
    plan = Epoch(lengths=[1.0] * 100, lanes=2, window=20).plan(Batching(batch_seconds=5.0, origin=13))
    first = plan.block(0, 0)
    assert (first.start, first.end) == (26, 40)
    assert sorted(first.positions) == list(range(26, 40))
    assert (plan.block(0, 1).start, plan.block(0, 1).end) == (40, 80)


@given(epoch=epochs_of, batching=st.one_of(batchings, excluding), size=st.integers(1, 9))
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_any_number_of_ranks_takes_the_same_sequence(
    world_size: int, epoch: Epoch, batching: Batching, size: int
) -> None:
    whole = list(epoch.plan(batching).batches(0, 0))
    dealt = list(steps(iter(whole), size))
    assert [*map(id, (batch for step in dealt for batch in step.batches))] == [*map(id, whole)]
    assert all(len(step.batches) == size for step in dealt[:-1])
    assert [step.begin for step in dealt] == [0, *(step.count for step in dealt)][:-1]
    for step in dealt:
        taken = [step.of_rank(rank, world_size) for rank in range(world_size)]
        assert {len(shares) for shares in taken} == {step.times(world_size)} == {-(-len(step.batches) // world_size)}
        in_turn = [share for together in zip(*taken) for share in together]
        assert [id(share.batch) for share in in_turn if share.real] == [*map(id, step.batches)]
        assert [share.real for share in in_turn] == sorted([share.real for share in in_turn], reverse=True)
        for shares in taken:
            assert [share.last for share in shares] == [False] * (len(shares) - 1) + [True]
            assert {id(share.batch) for share in shares} <= {*map(id, step.batches)}
            # Whoever has a batch of its own repeats that, which lies in its lane.
            assert all(share.real or not shares[0].real or share.batch is shares[0].batch for share in shares)


@given(
    epoch=epochs_of,
    batching=st.one_of(batchings, excluding),
    worlds=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=6),
)
def test_a_run_may_go_on_with_any_other_number_of_ranks(
    epoch: Epoch, batching: Batching, worlds: list[tuple[int, int]]
) -> None:
    plan = epoch.plan(batching)
    taken, consumed = [], 0
    for world_size, number in [*worlds, (1, 10**6)]:
        for step in islice(steps(plan.batches(0, consumed), world_size), number):
            taken += [batch.positions.tolist() for batch in step.batches]
            consumed = step.count
    assert taken == [positions for positions, _ in flat(plan.batches(0, 0))]


@dataclass(frozen=True)
class Asked:
    """Lengths from a formula, and a record of whose were asked for."""

    positions: list[np.ndarray] = field(default_factory=list)

    def __call__(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        self.positions.append(positions)
        return 1.0 + (positions * 2654435761 + epoch) % 97 / 4

    def all(self) -> list[int]:
        return np.sort(np.concatenate(self.positions)).tolist()


@pytest.mark.parametrize("place", [0, 1, 123_456_789_012, 10**12 - 1])
def test_planning_asks_for_the_lengths_of_one_super_window(place: int) -> None:
    asked = Asked()
    order = Order([10**12], seed=0, window=512, lanes=8)
    plan = Plan(order, Batching(batch_seconds=100.0), seconds=asked)
    found = next(plan.batches(3, place))
    start = place // 4096 * 4096
    assert start <= found.positions.min() <= found.positions.max() < start + 4096
    assert place < found.count <= start + 4096
    # With one batch held back, the next super-window may be planned too when the place is in the last batch.
    assert len(asked.positions) <= 2
    assert asked.positions[0].min() == start
    assert len(asked.positions[0]) == min(4096, 10**12 - start)


@pytest.mark.parametrize("place", [0, 123_456_789_012, 10**12 - 10**5])
@pytest.mark.parametrize("size", [1, 16, 10_000])
def test_planning_by_size_asks_for_lengths_only_to_exclude(place: int, size: int) -> None:
    asked = Asked()
    order = Order([10**12], seed=0, window=512, lanes=8)
    batch = next(Plan(order, Batching(batch_size=size), seconds=asked).batches(3, place))
    assert place < batch.count <= place + size
    assert not asked.positions
    batch = next(Plan(order, Batching(batch_size=size, max_seconds=20.0), seconds=asked).batches(3, place))
    assert place < batch.count
    assert 0 < len(asked.all()) <= 2 * max(4096, size * 8)


def test_a_sample_longer_than_the_budget_is_named() -> None:
    lengths = np.array([3.0, 4.0, 50.5, 5.0])
    order = Order([4], seed=0, window=8, lanes=1)

    def plan(batching: Batching) -> Plan:
        return Plan(
            order, batching, seconds=lambda epoch, p: lengths[p], name=lambda epoch, p: f"sample {p} of {epoch}"
        )

    with pytest.raises(
        ConfigError, match=r"batch_seconds is 30\.0, but .*sample 2 of 7.* 50\.50 s.*max_seconds"
    ) as error:
        list(plan(Batching(batch_seconds=30.0)).batches(7, 0))
    assert error.value.name == "batch_seconds"
    batches = plan(Batching(batch_seconds=30.0, max_seconds=30.0)).batches(7, 0)
    assert sorted(positions_of(flat(batches))) == [0, 1, 3]
    with pytest.raises(ConfigError, match="at position 2 of epoch 0"):
        next(Epoch(lengths=lengths.tolist()).plan(Batching(batch_seconds=30.0)).batches(0, 0))


def test_rungs_are_permuted_anew_in_every_window_and_epoch() -> None:
    lengths = [0.1 * i for i in range(200)] * 3
    shuffled = Epoch(lengths=lengths, window=200).plan(Batching(batch_seconds=40.0))

    def costs(plan: Plan, epoch: int, k: int) -> list[float]:
        block = plan.block(epoch, k)
        return [
            max(lengths[position] for position in block.positions[low:high]) for low, high in pairwise(block.bounds)
        ]

    orders = [costs(shuffled, epoch, k) for epoch in range(3) for k in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    straight = Epoch(lengths=lengths, window=200, shuffle=False).plan(Batching(batch_seconds=40.0))
    longest_first = costs(straight, 0, 0)
    assert longest_first == sorted(longest_first, reverse=True)
    assert all(sorted(order, reverse=True) == longest_first for order in orders)


def test_without_shuffling_every_epoch_is_the_same() -> None:
    plan = Epoch(lengths=[0.1 * i for i in range(100)], lanes=3, window=20, shuffle=False).plan(
        Batching(batch_seconds=30.0)
    )
    assert flat(plan.batches(0, 0)) == flat(plan.batches(9, 0))


def test_rungs_that_lack_a_batch_come_last() -> None:
    """Lane 1 keeps 2 samples, the others 10 that need a batch each."""
    lengths = [30.0 if position % 3 != 1 or position < 6 else 90.0 for position in range(30)]
    for seed in range(20):
        plan = Epoch(lengths=lengths, lanes=3, window=10, seed=seed).plan(
            Batching(batch_seconds=30.0, max_seconds=60.0)
        )
        owners = [positions[0] % 3 for positions, _ in flat(plan.batches(0, 0))]
        assert owners == [0, 1, 2] * 2 + [0, 2] * 8


@pytest.mark.parametrize("batching", [Batching(batch_size=4), Batching(batch_seconds=30.0)])
def test_no_sample_and_one(batching: Batching) -> None:
    assert flat(Epoch(lengths=[], lanes=3).plan(batching).batches(0, 0)) == []
    assert Epoch(lengths=[], lanes=3).plan(batching).next_boundary(0) == 0
    one = Epoch(lengths=[2.0], lanes=3).plan(batching)
    assert flat(one.batches(0, 0)) == [([0], 1)]
    assert flat(one.batches(0, 1)) == []
    assert one.count_at(one.next_boundary(1)) == 1


def test_batches_larger_than_a_lane_are_all_of_it() -> None:
    epoch = Epoch(lengths=[2.0] * 11, lanes=3)
    for origin in (0, 2):
        huge, exact = (epoch.plan(Batching(batch_size=size, origin=origin)) for size in (2**80, 4))
        assert flat(huge.batches(0, origin * 3)) == flat(exact.batches(0, origin * 3))
        assert [huge.count_at(huge.next_boundary(count)) for count in (origin * 3, origin * 3 + 1)] == [origin * 3, 11]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "exactly one of them"),
        ({"batch_size": 4, "batch_seconds": 30.0}, "exactly one of them"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_seconds": 0.0}, r"batch_seconds is 0\.0"),
        ({"batch_seconds": math.inf}, "batch_seconds is inf"),
        ({"batch_seconds": math.nan}, "batch_seconds is nan"),
        ({"batch_size": 4, "min_seconds": -1.0}, r"min_seconds is -1\.0"),
        ({"batch_size": 4, "min_seconds": math.nan}, "min_seconds is nan"),
        ({"batch_size": 4, "max_seconds": math.inf}, "max_seconds is inf"),
        ({"batch_size": 4, "min_seconds": 3.0, "max_seconds": 2.0}, r"max_seconds is 2\.0"),
    ],
)
def test_a_batching_outside_its_rule_is_named(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Batching(**settings)


def test_a_batching_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Batching(batch_size=4).batch_size = 5  # type: ignore[misc]


# Golden vectors: a saved count means a place in this sequence, so it may change only together with ALGORITHM in
# shardpipe/bijection.py, which refuses to resume. Lengths are sixteenths of a second, which floats add exactly.

GOLDEN: Flat = [
    ([16, 8], 2),
    ([5, 27], 4),
    ([12, 4, 26, 18], 8),
    ([1, 23, 15, 7], 12),
    ([10, 2, 24], 15),
    ([29, 21, 13], 18),
    ([0, 22, 14, 6, 28, 20], 24),
    ([11, 3, 25, 17, 9, 31], 32),
    ([46, 38], 34),
    ([57, 49], 36),
    ([42, 34, 56, 48], 40),
    ([53, 45, 37, 59], 44),
    ([52, 44, 36, 58, 50], 49),
    ([41, 33, 55, 47, 39], 54),
    ([40, 32, 54], 57),
    ([51, 43, 35], 60),
]


def test_golden_plan() -> None:
    lengths = [(16 + position * 37 % 101) / 16 for position in range(60)]
    plan = Epoch(lengths=lengths, lanes=2, window=16, seed=7).plan(Batching(batch_seconds=20.0, max_seconds=7.0))
    assert flat(plan.batches(3, 0)) == GOLDEN
