"""Entry point of ``stockade``. ``--version`` is answered before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stockade import __version__

LATER = frozenset({"sandbox", "fleet", "collection", "prompt", "dataset", "key", "server", "bench", "exec", "trigger"})
"""Nouns and shortcuts of the design that this version does not have."""

_RUN_VERBS = frozenset({"validate", "ls", "show"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"stockade {__version__}")
        return 0
    noun = next((word for word in arguments if not word.startswith("-")), "")
    if noun in LATER:
        from stockade.cli.exits import Exit, Refusal, show

        what = f"`stockade {noun}` is not there yet"
        show(Refusal(Exit.USAGE, what, why=f"this is version {__version__}", fix="stockade --help"))
        return int(Exit.USAGE)
    at = arguments.index("run") if "run" in arguments else -1
    # `stockade run FILE` is the shortcut of every day; its noun's other verbs stand beside it.
    if at >= 0 and noun == "run" and arguments[at + 1 : at + 2] and arguments[at + 1] in _RUN_VERBS:
        arguments[at : at + 2] = [f"run {arguments[at + 1]}"]
    from stockade.cli.app import execute

    return execute(arguments)


if __name__ == "__main__":
    sys.exit(main())
