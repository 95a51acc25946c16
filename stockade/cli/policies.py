"""Policy bundles tested and checked in this process, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.cli.exits import Exit, Refusal, install

if TYPE_CHECKING:
    from controlplane.authorization.bundle import Bundle


def test(directory: Path | None) -> int:
    """Run every test rule of the shipped bundle with ``directory`` over it. 1 if one failed or there is none."""
    from controlplane.authorization.rule_tests import run_rule_tests

    found = run_rule_tests(load(directory))
    for one in found.tests:
        if not one.passed:
            print(f"FAIL  {one.name}  {one.rule}  {one.problem}", file=sys.stderr)
    failed = sum(not one.passed for one in found.tests)
    print(f"{len(found.tests) - failed} passed, {failed} failed, {found.coverage_percent:.1f}% of lines covered")
    if not found.tests:
        print("no test rule: write `test_… if { … }` in a file *_test.rego beside your rules", file=sys.stderr)
    for place in found.not_covered:
        print(f"not covered: {place}", file=sys.stderr)
    return int(Exit.OK if found.passed else Exit.FAILED)


def check(directory: Path | None) -> int:
    """Print the revision of the bundle the control plane would load."""
    bundle = load(directory)
    print(f"{bundle.revision}  {len(bundle.files)} files, {len(bundle.tests)} test files")
    return int(Exit.OK)


def load(directory: Path | None) -> Bundle:
    """The shipped bundle with ``directory`` over it. Raises: Refusal, with every finding's file and line."""
    try:
        from controlplane.authorization.bundle import load_bundle
        from controlplane.authorization.profile import PolicyInvalid
    except ImportError as error:
        raise Refusal(
            Exit.USAGE,
            "policy commands need the control plane's parts",
            why=str(error),
            fix=install("server"),
        ) from None
    try:
        return load_bundle((directory,) if directory else ())
    except (PolicyInvalid, OSError) as error:
        raise Refusal(
            Exit.FAILED, "the bundle is not valid", where=str(directory or "shipped"), why=str(error)
        ) from None
