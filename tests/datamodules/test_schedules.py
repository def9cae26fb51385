"""Schedules by hand arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.schedules import Constant, Cosine, Ramp, Scaled, Schedule, Sequential, Steps, as_schedule

PROGRESS = st.floats(0, 1)


def test_values_by_hand():
    assert Constant(0.3)(0.7) == 0.3
    ramp = Ramp(first=1, last=3, begin=0.2, end=0.6)
    assert [ramp(p) for p in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 2, 3, 3])
    cosine = Cosine(first=0, last=2, begin=0.0, end=0.5)
    assert [cosine(p) for p in (0, 0.125, 0.25, 0.375, 0.5, 1)] == pytest.approx([0, 1 - 2**-0.5, 1, 1 + 2**-0.5, 2, 2])
    steps = Steps(boundaries=[0.25, 0.5], values=[0.0, 0.1, 0.4])
    assert [steps(p) for p in (0, 0.2499, 0.25, 0.49, 0.5, 1)] == [0, 0, 0.1, 0.1, 0.4, 0.4]


@given(PROGRESS, PROGRESS)
def test_ramps_never_turn_back(a, b):
    low, high = sorted((a, b))
    for kind in (Ramp, Cosine):
        rising, falling = kind(0.1, 0.9, 0.3, 0.8), kind(0.9, 0.1, 0.3, 0.8)
        assert rising(low) <= rising(high)
        assert falling(low) >= falling(high)
        assert 0.1 - 1e-12 <= rising(a) <= 0.9 + 1e-12
        assert rising(a) + falling(a) == pytest.approx(1)


@pytest.mark.parametrize("schedule", [Constant(1), Ramp(0, 1), Cosine(0, 1), Steps([0.5], [0, 1])])
@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_training_is_an_error(schedule, progress):
    assert isinstance(schedule, Schedule)
    with pytest.raises(ValueError, match="expected training progress in \\[0, 1\\]"):
        schedule(progress)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(0, 1, 0.5, 0.5), "begin < end"),
        (lambda: Cosine(0, 1, -0.1, 0.5), "begin < end"),
        (lambda: Ramp(0, float("nan")), "finite"),
        (lambda: Constant(float("inf")), "finite"),
        (lambda: Steps([0.5, 0.2], [1, 2, 3]), "rising boundaries"),
        (lambda: Steps([0.5, 1.2], [1, 2, 3]), "rising boundaries"),
        (lambda: Steps([0.5], [1]), "one value more"),
        (lambda: as_schedule("0.5"), "number or a schedule"),
        (lambda: as_schedule(None), "number or a schedule"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_sequential_runs_each_schedule_over_its_own_stretch():
    curriculum = Sequential([0.0, Ramp(0.0, 1.0), Constant(0.5)], [0.2, 0.6])
    assert [curriculum(p) for p in (0.0, 0.1, 0.2, 0.4, 0.5999, 0.6, 1.0)] == pytest.approx(
        [0, 0, 0, 0.5, 0.99975, 0.5, 0.5]
    )
    for schedules, boundaries in (([1.0], [0.5]), ([1, 2, 3], [0.6, 0.2]), ([1, 2], [0.0])):
        with pytest.raises(ValueError, match="boundaries"):
            Sequential(schedules, boundaries)


def test_scaled_is_a_multiple():
    assert Scaled(Ramp(0.0, 1.0), 0.2)(0.5) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="finite"):
        Scaled(1.0, float("nan"))
