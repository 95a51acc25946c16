"""Exit codes, four-line errors, precedence of contexts, forms of output, and the tree of a large map."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pytest_httpserver import HTTPServer
from rich.console import Console

from stockade.cli import contexts, inputs
from stockade.cli.exits import Exit, Refusal, visible
from stockade.cli.main import LATER, main
from stockade.cli.output import Format, show_list, show_value, yaml_lines
from stockade.cli.tree import Words, run_tree
from stockade.client.models import Run, Step
from tests.acceptance.cluster import free_port


@pytest.fixture(autouse=True)
def _own_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("STOCKADE_URL", "STOCKADE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def problem(status: int, **members: Any) -> dict[str, Any]:
    return {"type": "/problems/x", "title": "No", "status": status, "detail": "because", **members}


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (problem(404), 3, "fix:   stockade ps"),
        (problem(404, instance="/v1/secrets/x"), 3, "fix:   stockade secret ls"),
        (problem(404, instance="/v1/tools/x.y"), 3, "fix:   stockade tool ls"),
        (problem(404, instance="/v1/runs"), 3, "fix:   stockade workflow ls"),
        (
            problem(404, instance="/v1/runs/run_1/logs", detail="There is no step 'x' here."),
            3,
            "stockade explain run_1",
        ),
        (problem(404, detail="No key 'x' here. GET /v1/keys lists them."), 3, "why:   No key 'x' here.\n"),
        (problem(403, decision_id="dec_9"), 4, "fix:   stockade explain dec_9"),
        (problem(403), 4, "why:   because"),
        (problem(500), 1, "error: No"),
        (problem(422), 2, "error: No"),
    ],
)
def test_a_refusal_is_four_lines_and_a_code(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], answer: dict[str, Any], code: int, expected: str
) -> None:
    httpserver.expect_request("/v1/runs").respond_with_json(answer, status=answer["status"])
    assert main(["--url", httpserver.url_for("/"), "ps"]) == code
    out, err = capsys.readouterr()
    assert expected in err and out == ""


def test_a_fault_of_the_workflow_shows_file_line_column_and_caret(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fault = {
        "pointer": "/output", "message": "no step 'nope'", "hint": "name a step", "line": 1, "column": 9,
        "excerpt": "${steps.nope}\n        ^",
    }  # fmt: skip
    httpserver.expect_request("/v1/runs").respond_with_json(problem(422, errors=[fault]), status=422)
    file = tmp_path / "flow.json"
    file.write_text("{}")
    assert main(["--url", httpserver.url_for("/"), "run", str(file), "--detach"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: No",
        f"where: {file}:1:9 /output",
        "       ${steps.nope}",
        "               ^",
        "why:   no step 'nope'",
        "fix:   name a step",
    ]


def test_every_fault_is_shown(httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    faults = [{"pointer": f"/{number}", "message": f"m{number}", "hint": "h"} for number in range(12)]
    httpserver.expect_request("/v1/workflows").respond_with_json(problem(422, errors=faults), status=422)
    file = tmp_path / "flow.json"
    file.write_text("{}")
    assert main(["--url", httpserver.url_for("/"), "workflow", "add", str(file)]) == 2
    err = capsys.readouterr().err
    assert all(f"{file} /{number}\nwhy:   m{number}" in err for number in range(10)) and "and 2 more" in err


def test_a_key_is_missing_wrong_or_for_another_server(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    httpserver.expect_request("/v1/runs").respond_with_json(problem(401), status=401)
    url = httpserver.url_for("/").rstrip("/")
    assert main(["--url", url, "ps"]) == 4
    assert "no key was given" in capsys.readouterr().err
    assert main(["--url", url, "--api-key", "sk_wrong", "ps"]) == 4
    assert "key from flag" in capsys.readouterr().err
    contexts.write(contexts.context_file(), "http://kept:1", "sk_kept")
    assert main(["--url", url, "ps"]) == 4
    assert "the kept key is for http://kept:1" in capsys.readouterr().err
    # What the fix line says works.
    monkeypatch.setattr("sys.stdin", io.StringIO("sk_typed\n"))
    assert main(["context", "set", "--api-key", "-"]) == 0
    kept = contexts.resolve(None, None)
    assert (kept.url, kept.api_key) == ("http://kept:1", "sk_typed")


@pytest.mark.parametrize("body", ['{"hello": 1}', "[]", "<html>"])
def test_a_server_that_is_no_stockade_is_seven(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    httpserver.expect_request("/v1/runs").respond_with_data(body)
    assert main(["--url", httpserver.url_for("/"), "ps"]) == 7
    assert main(["--url", httpserver.url_for("/other"), "ps"]) == 7
    err = capsys.readouterr().err
    assert err.count("error: this is not Stockade") == 2 and "Traceback" not in err


def test_an_address_without_its_scheme_is_said_to_be_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOCKADE_URL", "localhost:7373")
    assert main(["ps"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "where: STOCKADE_URL",
        "fix:   write it as http://localhost:7373",
    ]


def test_a_misspelt_command_is_answered_with_ones_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runn"]) == 2
    err = capsys.readouterr().err
    assert "'run'" in err and "run-" not in err


def test_a_tool_may_be_named_on_the_command_line(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    httpserver.expect_request("/v1/tools/wx.now", method="PUT").respond_with_json({"name": "wx.now"})
    file = tmp_path / "tool.json"
    file.write_text('{"kind": "http"}')
    add = ["--url", httpserver.url_for("/"), "tool", "add"]
    assert main([*add, "wx.now", str(file)]) == 0
    assert main([*add, str(file)]) == 2
    assert main([*add, "Wx", str(file)]) == 2
    assert "not a tool's name" in capsys.readouterr().err


def test_no_server_is_seven(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.client.transport.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("stockade.client.transport.LONGEST_PAUSE_SECONDS", 0.001)
    assert main(["--url", f"http://127.0.0.1:{free_port()}", "ps"]) == 7
    assert "stockade up" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nonsense"], ["ps", "--no-such-flag"], ["run"], *([noun] for noun in LATER)])
def test_bad_usage_is_two_with_a_fix(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "fix: " in capsys.readouterr().err


def test_a_missing_workflow_file_is_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "no/such/file.json"]) == 3
    assert "no/such/file.json" in capsys.readouterr().err


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert contexts.resolve(None, None, home).url == contexts.DEFAULT_URL
    contexts.write(contexts.context_file(home), "http://file", "sk_file")
    assert contexts.context_file(home).stat().st_mode & 0o777 == 0o600
    kept = contexts.resolve(None, None, home)
    assert (kept.url, kept.api_key) == ("http://file", "sk_file")
    named = {**home, "STOCKADE_URL": "http://env", "STOCKADE_API_KEY": "sk_env"}
    assert contexts.resolve(None, None, named).api_key == "sk_env"
    assert contexts.resolve("http://flag", "sk_flag", named).url == "http://flag"


def test_the_kept_key_goes_to_the_kept_server_only(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    contexts.write(contexts.context_file(home), "http://mine", "sk_mine")
    assert contexts.resolve("http://elsewhere", None, home).api_key is None


def test_inputs_are_json_or_text_or_files(tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text('{"c": [1]}')
    given = inputs.run_input(["a=1", "b=x y", f"@{tmp_path}/more.json", f"d=@{tmp_path}/more.json"])
    assert given == {"a": 1, "b": "x y", "c": [1], "d": {"c": [1]}}
    (tmp_path / "bad.json").write_text('{"c" 1}')
    with pytest.raises(Refusal) as caught:
        inputs.run_input([f"@{tmp_path}/bad.json"])
    assert f"{tmp_path}/bad.json:1:6" in caught.value.where and "^" in caught.value.where


def test_yaml_reads_back_as_the_value() -> None:
    yaml = pytest.importorskip("yaml")
    value = {"a b": [1, {"x": None, "y": "no", "z": []}, ["p", "q: r"]], "t": True, "e": {}, "s": "line\nbreak"}
    assert yaml.safe_load("\n".join(yaml_lines(value))) == json.loads(json.dumps(value))


def test_what_a_guest_wrote_cannot_command_the_terminal() -> None:
    assert visible("a\x1b[31mred\x9b\x7f\n") == "a\\x1b[31mred\\x9b\\x7f\n"


def test_a_large_map_is_counted_and_its_first_failures_shown() -> None:
    run = Run.model_validate({"id": "run_1", "status": "failed", "workflow": {"name": "w", "version": "1"}})
    error = {"type": "sandbox_exit", "message": "exit 1"}
    steps = [Step(path="scan", verb="map", status="failed")]
    for index in range(40):
        failed = index % 8 == 0
        steps.append(
            Step.model_validate(
                {
                    "path": f"scan[{index}]/probe",
                    "verb": "code",
                    "status": "failed" if failed else "completed",
                    "error": error if failed else None,
                }
            )
        )
    screen = Console(width=200, record=True, file=None, quiet=True)
    with screen.capture() as captured:
        screen.quiet = False
        screen.print(run_tree(run, steps, Words()))
    text = captured.get()
    assert "40 items: 35 completed, 5 failed" in text and "scan[16]/probe" in text and "and 2 more failures" in text
    assert text.count("\n") < 10


@pytest.mark.parametrize("text", ['{"a": [1,\n', '{"a": "x\n\n', "{\n", ""])
def test_a_file_that_ends_too_early_is_said_to(text: str, tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    file.write_text(text)
    with pytest.raises(Refusal) as refused:
        inputs.workflow(str(file))
    assert refused.value.code is Exit.USAGE and str(file) in refused.value.where and refused.value.fix


class Said(BaseModel):
    text: str


@pytest.mark.parametrize("form", [Format.JSON, Format.JSONL, Format.YAML])
def test_data_forms_give_a_terminal_nothing_to_obey_and_stay_the_same_value(
    form: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "\x9b31mRED\x7f \u202egnp.exe\u202c \u2066 \x1b[2J \ue000 \U000e0041 \ud800 Zürich"
    show_value({"text": said}, form)
    alone = capsys.readouterr().out
    show_list([Said(text=said.replace("\ud800", ""))], form, [("text", lambda one: one.text)])
    listed = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in alone + listed)
    if form is not Format.YAML:
        assert json.loads(alone) == {"text": said} and "Zürich" in alone
        assert "gnp.exe" in listed and json.loads(listed)
