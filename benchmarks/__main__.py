"""Runs one benchmark and prints its result: a table for people, JSON with ``--json``."""

from __future__ import annotations

import importlib
import sys

from benchmarks.report import host, print_json, print_table

NAMES = ("engine", "sandboxes", "placement", "policy", "gateway")


def main(argv: list[str]) -> int:
    """Exit code 2 for wrong usage; a benchmark's own failure is its traceback."""
    if not argv or argv[0] not in NAMES:
        print(f"usage: python -m benchmarks {'|'.join(NAMES)} [--json] [options]", file=sys.stderr)
        return 2
    rest = [argument for argument in argv[1:] if argument != "--json"]
    # Lazily, so that one benchmark's dependencies are not the others'.
    result = importlib.import_module(f"benchmarks.{argv[0]}").run(rest)
    report = {"benchmark": argv[0], "host": host(), **result}
    if "--json" in argv:
        print_json(report)
    else:
        print_table(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
