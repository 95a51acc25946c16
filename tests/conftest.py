"""Fixtures every folder uses, and the promise of STOCKADE_REQUIRE."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.required import broken_promise, required


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, the loop of production."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for want of a required component is a failure."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if (component := broken_promise(reason, required())) is not None:
            report.outcome = "failed"
            report.longrepr = f"{component} is required (STOCKADE_REQUIRE), and this was to be skipped: {reason}"
    return report
