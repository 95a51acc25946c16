"""Why a guest ended, judged from values."""

from __future__ import annotations

import pytest

from sandboxes.execution import ExitReason
from sandboxes.verdict import judge


@pytest.mark.parametrize("code", [0, 1, 3, 127, 128, 193, 255])
def test_codes_that_name_no_signal_are_exits(code: int) -> None:
    verdict = judge(code=code, cause=None, oom_kills=0)
    assert verdict is not None
    assert (verdict.code, verdict.reason, verdict.signal) == (code, ExitReason.EXITED, None)


def test_a_signal_is_told() -> None:
    verdict = judge(code=139, cause=None, oom_kills=0)
    assert verdict is not None
    assert (verdict.code, verdict.reason, verdict.signal) == (139, ExitReason.KILLED, 11)


def test_too_large_a_file_is_disk() -> None:
    verdict = judge(code=128 + 25, cause=None, oom_kills=0)
    assert verdict is not None
    assert verdict.reason is ExitReason.DISK


def test_an_oom_kill_counts_whatever_the_guest_said() -> None:
    verdict = judge(code=0, cause=None, oom_kills=1)
    assert verdict is not None
    assert verdict.reason is ExitReason.OOM


def test_the_hosts_cause_counts_before_all() -> None:
    verdict = judge(code=0, cause=ExitReason.CANCELLED, oom_kills=3)
    assert verdict is not None
    assert verdict.reason is ExitReason.CANCELLED


def test_no_word_from_bubblewrap_means_no_guest_ran() -> None:
    assert judge(code=None, cause=None, oom_kills=0) is None
