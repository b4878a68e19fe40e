"""Windows are cut within the budget, into as few batches as the neediest row needs, and evenly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardpipe.order.cut import cut

Rows = list[list[float]]

seconds = st.one_of(
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 30.0, 1e-300, 5e-324]),
    st.floats(0, 30),
    st.integers(0, 480).map(lambda n: n / 16),
)
rows_of_lengths = st.one_of(
    st.lists(st.lists(seconds, max_size=40), min_size=1, max_size=6),
    # All samples equal.
    st.builds(
        lambda length, sizes: [[length] * size for size in sizes],
        seconds,
        st.lists(st.integers(0, 40), min_size=1, max_size=6),
    ),
)
# As a share of the longest sample: it must hold that one at least, and may hold everything.
budgets = st.one_of(st.sampled_from([1.0, 2.0, 3.0, 1e6]), st.floats(1, 50))


def cut_rows(rows: Rows, budget: float) -> list[Rows]:
    """The batches of every row, as lists of lengths."""
    width = max(map(len, rows))
    lengths = np.full((len(rows), width), np.inf)
    for row, some in enumerate(rows):
        lengths[row, : len(some)] = sorted(some)
    cuts = cut(lengths, np.array([len(row) for row in rows]), budget)
    assert cuts.dtype == np.int64
    assert (cuts[:, 0] == [len(row) for row in rows]).all()
    assert (cuts[:, -1] == 0).all()
    return [
        [lengths[row, low:high].tolist() for high, low in zip(cuts[row], cuts[row, 1:])] for row in range(len(rows))
    ]


def fewest(lengths: list[float], budget: float) -> int:
    """The least number of batches, found by taking from the longest down as much as the budget holds."""
    rest, number = sorted(lengths), 0
    while rest:
        size = max(size for size in range(1, len(rest) + 1) if size == 1 or size * rest[-1] <= budget)
        rest, number = rest[:-size], number + 1
    return number


@given(rows=rows_of_lengths, share=budgets)
@example(rows=[[0.1] * 20, [0.1] * 19], share=3.0)  # 3 * 0.1 > 0.3
@example(rows=[[0.0] * 20, [0.0] * 5 + [30.0]], share=1.0)
@example(rows=[[30.0] * 20, [1.0] * 20, []], share=1.0)
def test_rows_are_cut_into_equally_many_batches_within_the_budget(rows: Rows, share: float) -> None:
    budget = max(0.001, share * max([length for row in rows for length in row], default=0.0))
    batches = cut_rows(rows, budget)
    number = max(fewest(row, budget) for row in rows)
    for row, some in zip(rows, batches):
        assert len(some) == number
        assert sorted(length for batch in some for length in batch) == sorted(row)
        assert all(len(batch) * max(batch) <= budget for batch in some if batch)
        # The longest first, and empty ones only behind as many batches as there are samples.
        assert [bool(batch) for batch in some] == [i < len(row) for i in range(number)]
        full = [batch for batch in some if batch]
        assert all(min(batch) >= max(following) for batch, following in pairwise(full))


def test_a_row_that_needs_fewer_batches_is_spread_evenly() -> None:
    needy, easy = cut_rows([[30.0] * 20, [1.0] * 100], 60.0)
    assert [len(batch) for batch in needy] == [2] * 10
    assert [len(batch) for batch in easy] == [10] * 10


def test_batches_beyond_what_equal_lengths_need_come_from_halving_the_largest() -> None:
    _, easy = cut_rows([[30.0] * 6, [1.0] * 8], 30.0)
    assert [len(batch) for batch in easy] == [1, 1, 1, 1, 2, 2]


def test_nothing_to_cut() -> None:
    assert cut(np.empty((3, 0)), np.zeros(3, np.int64), 30.0).tolist() == [[0], [0], [0]]


def test_batches_cost_nearly_the_same_on_every_row() -> None:
    """The purpose: at the padded cost of a step, the slowest row is hardly above the mean."""
    rng = np.random.default_rng(0)
    rows = np.clip(np.exp(rng.normal(np.log(6), 0.6, (8, 8192))), 0.5, 30).tolist()
    costs = np.array([[len(batch) * max(batch) for batch in some] for some in cut_rows(rows, 300.0)])
    assert costs.max() <= 300.0
    assert costs.max(axis=0).sum() / costs.mean(axis=0).sum() < 1.03
    assert sum(map(sum, rows)) / costs.sum() > 0.98


@pytest.mark.parametrize("number", [5000, 8192])
def test_a_row_of_giants_beside_rows_of_short_samples(number: int) -> None:
    needy, easy = cut_rows([[30.0] * number + [1.0] * (8192 - number), [1.0] * 8192], 30.0)
    assert len(needy) == len(easy)
    assert max(map(len, easy)) <= 2
