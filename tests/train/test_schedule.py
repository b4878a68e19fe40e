"""The learning rate, and amounts of a run."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import ConfigError
from shardpipe.train.amount import Amount, Done
from shardpipe.train.schedule import Plateau, Schedule


def done(*, steps: int = 1, samples: int = 1, sub_epochs: float = 0.0) -> Done:
    return Done(steps=steps, samples=samples, sub_epochs=sub_epochs)


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
    rates = [schedule.at(done(steps=i, samples=i * size)) for i in range(1, steps + 1)]
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
    assert schedule.at(done(steps=50)) == 0.5
    assert schedule.at(done(steps=100)) == 1.0
    assert schedule.at(done(steps=400)) == 0.5


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("5000samples", 5000, "samples"),
        ("1 step", 1, "steps"),
        ("10min", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("90s", 90, "seconds"),
        ("1sub-epoch", 1, "sub_epochs"),
        ("12 sub-epochs", 12, "sub_epochs"),
    ],
)
def test_amounts(text: str, count: float, unit: str) -> None:
    assert Amount.parse("save_every", text, clock=True) == Amount(count=count, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "5", "steps", "-1steps", "1.5steps", "5 days", "1e3steps", "inf s", "1subepoch", "0.5sub-epochs"]
)
def test_wrong_amounts_name_the_setting_and_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match="save_every is"):
        Amount.parse("save_every", text, clock=True)
    with pytest.raises(ConfigError, match=r"5000samples, 200steps or 2sub-epochs$"):
        Amount.parse("warmup", "10min", clock=False)


def of_cycles(cycle: Amount, growth: int = 1) -> Schedule:
    return Schedule(
        peak=1.0,
        warmup=Amount(count=0, unit="steps"),
        decay="cosine",
        total_samples=1,
        cycle=cycle,
        cycle_growth=growth,
    )


@pytest.mark.parametrize(("growth", "ends"), [(1, [4, 8, 12, 16]), (2, [4, 12, 28]), (3, [4, 16, 52])])
def test_cosine_begins_again_after_each_cycle(growth: int, ends: list[int]) -> None:
    schedule = of_cycles(Amount(count=4, unit="steps"), growth)
    rates = {i: schedule.at(done(steps=i)) for i in range(1, ends[-1] + 2)}
    for begin, end in pairwise([0, *ends]):
        assert rates[end] == pytest.approx(0.01), "each ends where the whole run would"
        falling = [rates[i] for i in range(begin + 1, end + 1)]
        assert all(a > b for a, b in pairwise(falling))
        share = 1 / (end - begin)
        assert rates[begin + 1] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        assert rates[end + 1] > 0.5


def test_cycles_by_samples_and_by_sub_epochs() -> None:
    by_samples = of_cycles(Amount(count=1000, unit="samples"))
    assert by_samples.at(done(samples=1000)) == pytest.approx(0.01)
    assert by_samples.at(done(samples=1500)) == by_samples.at(done(samples=500)) == pytest.approx(0.505)
    by_parts = of_cycles(Amount(count=2, unit="sub_epochs"))
    assert by_parts.at(done(sub_epochs=2.0)) == pytest.approx(0.01)
    assert by_parts.at(done(sub_epochs=1.0)) == by_parts.at(done(sub_epochs=3.0)) == pytest.approx(0.505)
    warm = Schedule(peak=1.0, warmup=Amount(count=2, unit="sub_epochs"), decay="constant", total_samples=1)
    assert [warm.at(done(sub_epochs=n)) for n in (0.5, 1.0, 2.0, 9.0)] == [0.25, 0.5, 1.0, 1.0]


def test_a_plateau_lowers_the_rate_and_what_it_knows_goes_on() -> None:
    state = Plateau(peak=1.0, by="dev/loss")
    schedule = Schedule(peak=1.0, warmup=Amount(count=0, unit="steps"), decay="plateau", total_samples=1)
    rates = []
    for figure in (3.0, 2.0, 2.0, None, 1.9, 1.95, 1.9, 5.0, 5.0):
        state = msgspec.json.decode(msgspec.json.encode(state), type=Plateau)
        state = state.after(figure, patience=2, factor=0.5)
        rates.append(schedule.at(done(), state))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert state.best == 1.9
    for _ in range(20):
        state = state.after(9.0, patience=1, factor=0.5)
    assert schedule.at(done(), state) == 0.01, "so that the last steps still learn"
    assert state.going_on(peak=1.0, by="dev/loss") == state
    assert state.going_on(peak=0.5, by="dev/loss") == Plateau(peak=0.5, by="dev/loss"), "a rate that was given is taken"
    other = state.going_on(peak=1.0, by="dev/cer")
    assert (other.factor, other.best, other.waited) == (0.01, None, 0)
