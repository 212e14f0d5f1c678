"""Weights that change: values at moments, in shares of the run and in epochs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning import ConfigurationError, CosineSchedule, LinearSchedule, SigmoidRampUp, StepSchedule
from kdlightning.schedules import Schedule, weight_at

SHAPES = {
    LinearSchedule: lambda share: share,
    CosineSchedule: lambda share: (1 - math.cos(math.pi * share)) / 2,
    SigmoidRampUp: lambda share: math.exp(-5 * (1 - share) ** 2),
}


@pytest.mark.parametrize("kind", SHAPES)
@given(moment=st.floats(0, 1), start=st.floats(-10, 10), end=st.floats(-10, 10))
def test_ramps_follow_their_formula_between_begin_and_until(
    kind: type, moment: float, start: float, end: float
) -> None:
    schedule = kind(start, end, begin=0.25, until=0.75)
    share = min(max((moment - 0.25) / 0.5, 0), 1)
    expected = start + (end - start) * SHAPES[kind](share)
    assert weight_at(schedule, moment, 99.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_ramps_are_constant_outside(kind: type) -> None:
    schedule = kind(1.0, 3.0, begin=0.2, until=0.5)
    assert [weight_at(schedule, moment, 0) for moment in (0.0, 0.2)] == [1.0, 1.0]
    assert [weight_at(schedule, moment, 0) for moment in (0.5, 1.0)] == [3.0, 3.0]


def test_dkds_warm_up_counts_epochs() -> None:
    warm_up = LinearSchedule(0, 1, until=20, unit="epochs")
    assert [weight_at(warm_up, 0.9, epoch) for epoch in (0, 5, 20, 240)] == [0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("unit", ["progress", "epochs"])
def test_a_step_changes_at_its_moment(unit: str) -> None:
    at = 0.125 if unit == "progress" else 30
    step = StepSchedule(0.0, 2.0, at, unit)  # type: ignore[arg-type]
    moments = [(29 / 240, 29.0), (30 / 240, 30.0), (1.0, 240.0)]
    assert [weight_at(step, *moment) for moment in moments] == [0.0, 2.0, 2.0]
    assert weight_at(StepSchedule(1, 5, 0.0, unit), 0.0, 0.0) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "unit"), [(30, "progress"), (-0.1, "progress"), (-1, "epochs")])
def test_a_step_outside_the_run_is_refused(at: float, unit: str) -> None:
    with pytest.raises(ConfigurationError, match=f"at={at} lies outside the run.*unit: epochs"):
        StepSchedule(0, 1, at, unit)  # type: ignore[arg-type]


def test_numbers_are_themselves() -> None:
    assert weight_at(2, 0.3, 1.0) == 2.0


def test_a_ramp_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"until=0.1 must be later than begin=0.5"):
        LinearSchedule(begin=0.5, until=0.1)


def test_a_schedule_of_ones_own_defines_its_call() -> None:
    with pytest.raises(NotImplementedError, match="Schedule must define"):
        Schedule()(0.0, 0.0)
