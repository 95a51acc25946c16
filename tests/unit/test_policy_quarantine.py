"""What the quarantine holds, and for how long."""

from __future__ import annotations

from controlplane.authorization import quarantine
from controlplane.authorization.quarantine import Quarantine
from controlplane.authorization.testing import question
from controlplane.authorization.values import EntryPoint

KILLER = question(args={"n": {"value": 1}})


def test_the_same_question_is_held_at_another_moment_and_in_another_run() -> None:
    one = Quarantine()
    one.add(KILLER, 0.0)
    assert one.holds(question(args={"n": {"value": 1}}, now_ns=9, run="run_9"), 1.0)


def test_another_question_is_not_held() -> None:
    one = Quarantine()
    one.add(KILLER, 0.0)
    for other in (question(args={"n": {"value": 2}}), question(EntryPoint.DATA), question(tenant="other")):
        assert not one.holds(other, 1.0)


def test_it_forgets() -> None:
    one = Quarantine()
    one.add(KILLER, 0.0)
    one.add(KILLER, 500.0)
    assert one.holds(KILLER, 1099.0)
    assert not one.holds(KILLER, 1100.0)


def test_what_is_released_is_not_held() -> None:
    one = Quarantine()
    one.add(KILLER, 0.0)
    one.release(KILLER)
    assert not one.holds(KILLER, 1.0)


def test_the_oldest_gives_way() -> None:
    one = Quarantine()
    for index in range(quarantine.MOST + 1):
        one.add(question(step=f"s{index}"), float(index))
    assert not one.holds(question(step="s0"), 1.0)
    assert one.holds(question(step="s1"), 1.0)
