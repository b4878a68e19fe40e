"""The learning rate, and amounts of a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import ConfigError
from shardpipe.train.schedule import Amount, Schedule


@given(
    st.sampled_from(["cosine", "inverse-sqrt", "constant"]),
    st.sampled_from(["steps", "samples"]),
    st.integers(0, 500),
    st.integers(1, 400),
    st.integers(1, 20),
)
def test_the_rate_climbs_to_the_peak_and_never_beyond(
    decay: str, unit: str, warmup: int, steps: int, size: int
) -> None:
    schedule = Schedule(
        peak=0.5,
        warmup=Amount(count=warmup, unit=unit),  # type: ignore[arg-type]
        decay=decay,  # type: ignore[arg-type]
        total_samples=steps * size,
    )
    rates = [schedule.at(steps=i, samples=i * size) for i in range(1, steps + 1)]
    assert all(0 < rate <= 0.5 for rate in rates)
    start = warmup if unit == "steps" else math.ceil(warmup / size)
    falling = rates[max(0, start - 1) :]
    assert all(a >= b for a, b in pairwise(falling))
    if decay != "cosine":
        climbing = rates[: max(0, start - 1)]
        assert all(a < b for a, b in pairwise(climbing))
    if decay == "constant" and start <= steps:
        assert falling[-1] == 0.5
    if decay == "cosine" and start <= steps:
        assert rates[-1] == pytest.approx(0.005)


def test_the_inverse_square_root_begins_at_the_warm_ups_end() -> None:
    schedule = Schedule(peak=1.0, warmup=Amount(count=100, unit="steps"), decay="inverse-sqrt", total_samples=1)
    assert schedule.at(steps=50, samples=0) == 0.5
    assert schedule.at(steps=100, samples=0) == 1.0
    assert schedule.at(steps=400, samples=0) == 0.5


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("5000samples", 5000, "samples"),
        ("1 step", 1, "steps"),
        ("10min", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("90s", 90, "seconds"),
    ],
)
def test_amounts(text: str, count: float, unit: str) -> None:
    assert Amount.parse("save_every", text, clock=True) == Amount(count=count, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "5", "steps", "-1steps", "1.5steps", "5 days", "1e3steps", "inf s"])
def test_wrong_amounts_name_the_setting_and_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match="save_every is"):
        Amount.parse("save_every", text, clock=True)
    with pytest.raises(ConfigError, match=r"5000samples or 200steps$"):
        Amount.parse("warmup", "10min", clock=False)
