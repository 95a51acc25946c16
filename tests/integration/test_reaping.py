"""A leftover that cannot be removed is named with what to do, and the others go."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sandboxes.errors import DriverFailed
from sandboxes.jail import box
from sandboxes.jail.driver import JailDriver
from sandboxes.wasm import leftovers

YEAR_SECONDS = 365 * 86400.0


def names(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir()]


def stuck(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    from sandboxes.hostfiles import remove_tree

    def remove(root: Path) -> None:
        if root.name == "stuck":
            raise OSError(16, "Device or resource busy")
        remove_tree(root)

    monkeypatch.setattr(module, "remove_tree", remove)


def test_wasm_goes_on_after_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "stuck", "z"):
        (tmp_path / name / "root" / "rw").mkdir(parents=True)
        (tmp_path / name / "record.json").write_text(json.dumps({"label": name}))
    stuck(monkeypatch, leftovers)
    gone, stay = leftovers.leftovers(tmp_path, frozenset(), frozenset())
    assert sorted(gone) == ["a", "z"]
    assert names(tmp_path) == ["stuck"]
    (line,) = stay
    assert "busy" in line and f"rm -rf {tmp_path / 'stuck'}" in line


def test_what_lost_its_record_goes_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn" / ".removing-1" / "rw").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert leftovers.leftovers(tmp_path, frozenset(), frozenset()) == ([], [])
    assert (tmp_path / "torn").exists()
    now = time.time()
    monkeypatch.setattr(leftovers.time, "time", lambda: now + YEAR_SECONDS)
    assert leftovers.leftovers(tmp_path, frozenset(), frozenset()) == ([], [])
    assert not (tmp_path / "torn").exists()


@pytest.mark.anyio
async def test_the_jail_goes_on_after_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "stuck", "z"):
        (tmp_path / name).mkdir()
    stuck(monkeypatch, box)
    with pytest.raises(DriverFailed, match=f"{tmp_path / 'stuck'} stays: Device or resource busy; by hand: "):
        await JailDriver(tmp_path).reap(keep=[])
    assert names(tmp_path) == ["stuck"]
