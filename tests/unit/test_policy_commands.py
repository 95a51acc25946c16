"""`stockade policy check`, `stockade policy test` and `stockade up --policy` refuse alike, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockade.cli.main import main

GUESSED = """package tenant.tool
import rego.v1
deny contains {"code": "a", "message": "m"} if {
	input.args.city == "Oslo"
}
"""
ITS_TEST = """package tenant.tool_test
import rego.v1
import data.tenant.tool
test_oslo if count(tool.deny) == 1 with input as {"args": {"city": "Oslo"}}
"""


@pytest.mark.parametrize("command", [("policy", "check"), ("policy", "test"), ("up", "--port", "0", "--policy")])
def test_a_guessed_path_and_a_guessed_key_are_said_before_anything_runs(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that never denied passed its own test, and the call that it was written against was allowed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "state"))
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "tool.rego").write_text(GUESSED)
    (folder / "tool_test.rego").write_text(ITS_TEST)
    (folder / "data.json").write_text('{"tenants": {"default": {\n"tool": {}}}}')
    assert main([*command, str(folder)]) == 1
    said = capsys.readouterr().err
    assert "rules/tool.rego:4: input.args.city is compared with a string" in said
    assert "did you mean input.args.city.value?" in said
    assert "rules/tool_test.rego:4: input.args.city is given as a string" in said
    assert 'rules/data.json:2: /tenants/default/tool is nothing that policy reads; did you mean "tools"?' in said
    assert not (tmp_path / "state").exists()
