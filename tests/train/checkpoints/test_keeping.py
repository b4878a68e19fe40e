"""Which checkpoints are kept, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.train.amount import Amount
from shardpipe.train.checkpoints import Checkpoint, Identity, Keep, Progress, best_of, kept, sets_in


def at(count: int, loss: float | None = None, *, steps: int = 0, **figures: float | None) -> Checkpoint:
    evaluated = loss is not None or bool(figures)
    return Checkpoint(
        consumed_samples=count,
        progress=Progress(steps=steps),
        identity=Identity(model="tiny", units=(), sample_rate=16000),
        loader={"consumed_samples": count},
        valid={f"valid/{name}": figure for name, figure in {"loss": loss, **figures}.items()} if evaluated else None,
    )


def among(*checkpoints: Checkpoint) -> dict[int, Checkpoint]:
    return {checkpoint.consumed_samples: checkpoint for checkpoint in checkpoints}


def test_the_newest() -> None:
    assert kept(among(*map(at, (4, 8, 12))), Keep(newest=2)) == {8: ["newest"], 12: ["newest"]}
    assert kept({}, Keep()) == {}


def test_the_first_at_or_after_each_multiple() -> None:
    found = among(*map(at, (4, 10, 14, 19, 31, 38)))
    keep = Keep(newest=1, every=Amount(count=10, unit="samples"))
    assert kept(found, keep) == {10: ["first from 10 samples on"], 31: ["first from 30 samples on"], 38: ["newest"]}
    by_steps = among(at(4, steps=1), at(8, steps=2), at(12, steps=3), at(16, steps=4))
    keep = Keep(newest=1, every=Amount(count=2, unit="steps"))
    assert kept(by_steps, keep) == {8: ["first from 2 steps on"], 16: ["newest", "first from 4 steps on"]}


def test_the_best() -> None:
    found = among(at(4, 3.0, cer=0.5), at(8, 1.0, cer=None), at(12, 1.0, cer=0.2), at(16), at(20, 2.0, cer=0.1))
    assert best_of(found, 3, "valid/loss") == [8, 12, 20]
    assert best_of(found, 9, "valid/cer") == [20, 12, 4]
    assert best_of(found, 1, "valid/wer") == []
    keep = Keep(newest=1, best=2, by="valid/cer")
    assert kept(found, keep) == {20: ["newest", "no. 1 by cer"], 12: ["no. 2 by cer"]}


def test_those_by_another_figure_stay_until_there_are_enough_by_this_one() -> None:
    found = among(at(4, 3.0), at(8, 1.0), at(12), at(16))
    found |= {20: replace(at(20), valid={"dev/loss": 2.0}), 24: replace(at(24), valid={"dev/loss": 1.0})}
    keep = Keep(newest=1, best=2, by="dev/loss", sets=("dev",))
    assert kept(found, keep) == {24: ["newest", "no. 1 by dev/loss"], 20: ["no. 2 by dev/loss"]}
    del found[24]
    known = ["evaluated before there was dev/loss"]
    assert kept(found, keep) == {4: known, 8: known, 20: ["newest", "no. 1 by dev/loss"]}
    assert kept(found, replace(keep, best=0)) == {20: ["newest"]}


def test_sets_are_in_the_order_of_the_newest_that_was_evaluated_on_all() -> None:
    found = {count: at(count) for count in (4, 8, 12)}
    found[4] = replace(found[4], valid={"b/cer": 1.0, "a/cer": 1.0})
    found[8] = replace(found[8], valid={"a/cer": 0.5, "b/cer": 0.7})
    found[12] = replace(found[12], valid={"b/cer": 0.1, "c/cer": 0.1})
    assert sets_in({4: found[4], 8: found[8]}) == ["a", "b"]
    assert sets_in(found) == ["b", "c", "a"]
    assert sets_in({}) == []


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, unique=True).map(sorted),
    every=st.none() | st.integers(1, 50),
    newest=st.integers(1, 4),
    best=st.integers(0, 3),
    losses=st.randoms(use_true_random=False),
)
def test_what_was_let_go_would_not_be_kept_later(
    counts: list[int], every: int | None, newest: int, best: int, losses: Any
) -> None:
    """Deleting after each save leaves what deleting once, at the end, would: a rule looks at what is there alone."""
    keep = Keep(newest=newest, every=every and Amount(count=every, unit="samples"), best=best)
    all_of_them = among(*(at(count, float(losses.randrange(5))) for count in counts))
    there: dict[int, Checkpoint] = {}
    for count in counts:
        there[count] = all_of_them[count]
        there = {kept_count: there[kept_count] for kept_count in sorted(kept(there, keep))}
    assert kept(there, keep) == kept(all_of_them, keep)


@pytest.mark.parametrize("newest", [1, 3])
def test_one_that_is_evaluated_later_counts_from_then_on(newest: int) -> None:
    before = among(at(4, 1.0), at(8))
    assert 4 in kept(before, Keep(newest=newest, best=1))
    after = among(at(4, 1.0), at(8, 0.5))
    assert (4 in kept(after, Keep(newest=newest, best=1))) == (newest > 1)
