"""Runs a bundle's ``test_`` rules with coverage, without an OPA binary.

For people and CI, in their own process: a test that never ends is ended by them. The control plane never runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from regorus import Engine

from controlplane.authorization.bundle import Bundle
from controlplane.authorization.syntax import package_of, parse, plain, rule_line, rule_name


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleTest:
    """One ``test_`` rule that was run. ``problem`` is "" when it passed."""

    name: str
    passed: bool
    rule: str
    seconds: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleTests:
    """All of them. Coverage is over the lines of ``Bundle.measured``; ``not_covered`` lists ``file:line``."""

    tests: tuple[RuleTest, ...]
    coverage_percent: float
    not_covered: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True when there is a test and none failed."""
        return bool(self.tests) and all(one.passed for one in self.tests)


def run_rule_tests(bundle: Bundle) -> RuleTests:
    """Run every ``test_`` rule of ``bundle.tests``; a test passes when it is exactly true."""
    engine = Engine()
    for path, text in (*bundle.files.items(), *bundle.tests.items()):
        engine.add_policy(path, text)
    engine.add_data_json(bundle.data_json)
    engine.set_enable_coverage(True)
    results = tuple(
        _run(engine, package, name, where)
        for path, text in bundle.tests.items()
        for package, name, where in _tests(path, text)
    )
    return _with_coverage(engine, bundle, results)


def _tests(path: str, text: str) -> Iterator[tuple[str, str, str]]:
    tree = parse(path, text)
    seen: set[str] = set()
    for rule in tree["rules"]:
        name = rule_name(rule)
        if name.startswith("test_") and name not in seen:
            seen.add(name)
            yield package_of(tree), name, f"{path}:{rule_line(rule)}"


def _run(engine: Engine, package: str, name: str, where: str) -> RuleTest:
    begun = time.perf_counter()
    try:
        engine.set_input_json("{}")
        answer = engine.eval_rule_as_json(f"data.{package}.{name}").strip()
        problem = "" if answer == "true" else f"is {answer.strip(chr(34))}, not true"
    except RuntimeError as failure:
        problem = plain(failure)
    return RuleTest(
        name=f"{package}.{name}",
        passed=not problem,
        rule=where,
        seconds=time.perf_counter() - begun,
        problem=problem,
    )


def _with_coverage(engine: Engine, bundle: Bundle, results: tuple[RuleTest, ...]) -> RuleTests:
    covered = 0
    missed: list[str] = []
    for report in json.loads(engine.get_coverage_report_as_json())["files"]:
        if report["path"] in bundle.measured:
            covered += len(report["covered"])
            missed.extend(f"{report['path']}:{line}" for line in report["not_covered"])
    lines = covered + len(missed)
    return RuleTests(
        tests=results,
        coverage_percent=100.0 * covered / lines if lines else 0.0,
        not_covered=tuple(missed),
    )
