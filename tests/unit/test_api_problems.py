"""Every problem has a page, and every page a problem."""

from __future__ import annotations

import re

import pytest

from controlplane.authorization.values import Decision, EntryPoint, Reason
from controlplane.errors import KINDS, ApiError, Slug, policy_denied
from controlplane.problems import as_api_error
from controlplane.runs.journal import JournalFailed
from controlplane.status_endpoints import PAGES


def test_slugs_and_pages_are_the_same_set() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {slug.value for slug in Slug} == {slug.value for slug in KINDS}


@pytest.mark.parametrize("slug", list(Slug))
def test_a_page_names_its_title_and_status(slug: Slug) -> None:
    status, title = KINDS[slug]
    text = (PAGES / f"{slug.value}.md").read_text("utf-8")
    assert text.startswith(f"# {title}\n")
    assert re.search(rf"HTTP {status}\b", text)
    assert "## What to do" in text


def test_an_unexpected_error_says_nothing_of_its_cause() -> None:
    answer = as_api_error(RuntimeError("sk_secret at /srv/db")).to_json("/v1/runs")
    assert answer["status"] == 500
    assert "sk_secret" not in str(answer)
    assert "/srv" not in str(answer)


def test_a_journal_failure_can_be_tried_again() -> None:
    error = as_api_error(JournalFailed("disk full"))
    assert (error.status, error.retryable, error.slug) == (503, True, Slug.NOT_STORED)


def test_a_denial_carries_reasons_remedies_and_the_decision() -> None:
    decision = Decision(
        id="dec_1",
        entry=EntryPoint.WORKFLOW,
        allow=False,
        reasons=(Reason(code="no_shell", message="Shell is not allowed.", remedy="Use python."),),
        obligations=(),
        revision="r",
        engine="e",
        input_digest="d",
        input={},
    )
    error = policy_denied(decision)
    assert isinstance(error, ApiError)
    answer = error.to_json("/v1/runs")
    assert (answer["status"], answer["decision_id"], answer["retryable"]) == (403, "dec_1", False)
    assert answer["errors"] == [{"pointer": "", "message": "Shell is not allowed.", "hint": "Use python."}]
