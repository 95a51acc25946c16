"""What was measured of work that ended, and what is expected of work that runs."""

from __future__ import annotations

import pytest

from controlplane.placement.history import KINDS_MOST, SAMPLES, STARTS_MOST, Durations, Starts, Work

STEP = Work("default", "w", "/steps/0")
OTHER = Work("default", "w", "/steps/1")


def test_what_is_expected_comes_from_the_step_else_the_node_else_all() -> None:
    durations = Durations()
    assert durations.expected(STEP) is None
    durations.record(OTHER, "a", 4.0)
    assert (durations.expected(STEP, "a"), durations.expected(STEP, "b")) == (4.0, 4.0)
    durations.record(OTHER, "b", 8.0)
    assert (durations.expected(STEP, "a"), durations.expected(STEP)) == (4.0, 6.0)
    durations.record(STEP, "a", 1.0)
    assert durations.expected(STEP, "b") == 1.0


def test_what_remains_is_what_longer_ones_ran_on() -> None:
    durations = Durations()
    for seconds in (2.0, 6.0, 10.0):
        durations.record(STEP, "a", seconds)
    assert durations.remaining(STEP, "a", 0.0, 60.0) == 6.0
    assert durations.remaining(STEP, "a", 5.0, 60.0) == pytest.approx((1.0 + 5.0) / 2)
    assert durations.remaining(STEP, "a", 12.0, 60.0) == 12.0, "longer than ever: taken to be half way"
    assert durations.remaining(STEP, "a", 12.0, 3.0) == 3.0, "but never past its limit"
    assert durations.remaining(STEP, "a", 70.0, -10.0) == 0.0
    assert Durations().remaining(STEP, "a", 7.0, 60.0) == 7.0


def test_the_history_is_bounded() -> None:
    durations = Durations()
    for number in range(KINDS_MOST + 10):
        durations.record(Work("default", "w", str(number)), "a", 1.0)
    for _ in range(SAMPLES):
        durations.record(STEP, "a", 5.0)
    assert durations.expected(Work("default", "w", "0")) == 5.0, "the oldest kind of work is forgotten"
    assert durations.expected(STEP) == 5.0


def test_a_node_that_speaks_often_or_lies_does_not_decide_how_long_starts_take() -> None:
    starts = Starts()
    assert starts.means() == {}
    for node, seconds in (("a", 0.1), ("b", 0.3), ("liar", 100.0)):
        for _ in range(10 if node == "liar" else 1):
            starts.record(node, "wasm", "python", seconds)
    assert starts.means() == {("wasm", "python"): pytest.approx(0.3)}
    for nonsense in (-1.0, 1e9, float("nan"), float("inf")):
        starts.record("a", "jail", "python", nonsense)
    assert ("jail", "python") not in starts.means()
    for number in range(STARTS_MOST + 1):
        starts.record("a", "container", f"image-{number}", 1.0)
    assert len(starts.means()) == STARTS_MOST
