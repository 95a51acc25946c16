"""Ids sort by time, and collide only by chance."""

from __future__ import annotations

import re

import pytest

from controlplane import ids


def test_an_id_has_its_prefix_and_26_characters() -> None:
    assert re.fullmatch(r"dec_[0-9a-hjkmnp-tv-z]{26}", ids.new_id("dec"))


def test_later_ids_sort_after_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for nanoseconds in (0, 1_000, 1_700_000_000_000_000_000, 1_700_000_000_000_001_000, 4_000_000_000_000_000_000):
        monkeypatch.setattr(ids.time, "time_ns", lambda now=nanoseconds: now)
        made.append(ids.new_id("run"))
    assert made == sorted(made)
    assert len({len(one) for one in made}) == 1


def test_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({ids.new_id("dec") for _ in range(1000)}) == 1000
