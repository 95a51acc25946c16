"""Why a child of ``stockade up`` ended, from what it said last; each is a real process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stockade.cli.children import Child, ending
from stockade.cli.exits import Exit, Refusal


def ended(tmp_path: Path, program: str) -> Child:
    child = Child("node", [sys.executable, "-c", program], tmp_path / "node.log", {})
    child.tend()
    assert child.process is not None
    child.process.wait()
    return child


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise OSError(16, 'busy')", "OSError: [Errno 16] busy"),
        ("raise ExceptionGroup('many', [OSError(16, 'busy')])", "OSError: [Errno 16] busy"),
        ("print('error: what\\nwhere: there\\nwhy:   because\\nfix:   do')", "because"),
        ("print('error: the port is taken')", "the port is taken"),
        ('print(\'{"event": "stopped", "error": "no lease", "level": "error"}\')', "stopped: no lease"),
        ("pass", ""),
    ],
)
def test_the_reason_is_what_it_said_last(tmp_path: Path, program: str, why: str) -> None:
    (tmp_path / "node.log").write_text("why: an earlier start\n")
    assert ended(tmp_path, program).reason() == why


def test_it_is_started_again_with_the_reason_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = ended(tmp_path, "raise SystemExit('gave up')")
    child.tend()
    said = capsys.readouterr().err
    assert "the node ended with 1; starting it again in 0.5 s" in said and "why: gave up" in said
    assert child.process is None


def test_one_that_is_not_alone_is_not_started_again(tmp_path: Path) -> None:
    child = ended(tmp_path, "print('why: already running for URL (pid 1)'); raise SystemExit(9)")
    with pytest.raises(Refusal) as refused:
        child.tend()
    assert (refused.value.code, refused.value.why) == (Exit.ALREADY_RUNNING, "already running for URL (pid 1)")


def test_endings_are_named() -> None:
    assert (ending(3), ending(-9)) == ("ended with 3", "was ended by SIGKILL")
