"""What docs/policy.md shows is what the platform takes: its question, its data, its rule and its tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

from controlplane.authorization.bundle import load_bundle
from controlplane.authorization.rule_tests import run_rule_tests
from controlplane.authorization.schemas import problem_with
from controlplane.authorization.shapes import document, keys, question
from controlplane.authorization.values import EntryPoint

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of the page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_question_shown_is_a_whole_one() -> None:
    shown = json.loads(blocks("json")[0])
    assert problem_with(EntryPoint.TOOL, shown) == ""
    assert list(shown) == keys(question("tool"))


def test_the_data_rule_and_tests_shown_pass_together(tmp_path: Path) -> None:
    rule, tests = blocks("rego")
    (tmp_path / "data.json").write_text(blocks("json")[1])
    (tmp_path / "tool.rego").write_text(rule)
    (tmp_path / "tool_test.rego").write_text(tests)
    results = run_rule_tests(load_bundle([tmp_path]))
    assert (results.passed, results.not_covered) == (True, ())


def test_every_table_of_the_data_is_described() -> None:
    tables = document("tenants.json")["properties"]["tenants"]["additionalProperties"]["properties"]
    assert all(f"`{one}`" in PAGE for one in tables)
