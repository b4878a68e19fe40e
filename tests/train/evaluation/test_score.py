"""Word and character error rates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardpipe.train.evaluation.score import ErrorCounts, edit_distance


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric_within_its_bounds(x: str, y: str, z: str) -> None:
    d = edit_distance(x, y)
    assert (d == 0) == (x == y)
    assert d == edit_distance(y, x)
    assert abs(len(x) - len(y)) <= d <= max(len(x), len(y))
    assert d <= edit_distance(x, z) + edit_distance(z, y)
    if x and y:
        cases = (edit_distance(x[1:], y) + 1, edit_distance(x, y[1:]) + 1, edit_distance(x[1:], y[1:]) + (x[0] != y[0]))
        assert d == min(cases)


def test_error_counts_are_of_words_and_of_characters_with_single_spaces() -> None:
    counts = ErrorCounts()
    counts.add("the  cat sat", "the cat sad on")
    counts.add("", "")
    assert (counts.word_errors, counts.words) == (2, 3)
    assert (counts.char_errors, counts.chars) == (4, 11)
