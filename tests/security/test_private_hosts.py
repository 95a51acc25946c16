"""Where a secret may go unencrypted, what may be listed as private, and what a refusal says to do."""

from __future__ import annotations

import pytest

from controlplane.config import Settings, SettingsRefused, from_environment
from dataplane.http_calls import HttpCalls
from dataplane.protocol import HttpCall, SecretLease

HTTPS = "register the tool with an https address"
LIST_IT = "whoever starts the control plane may list it"
NEVER = "no setting opens it"


async def refusal(url: str, *, listed: bool, secret: bool, resolves_to: str) -> str:
    async def lookup(host: str) -> list[str]:
        return [resolves_to]

    calls = HttpCalls(lookup)
    secrets = [SecretLease(name="s", header="X-Key", format="{}", value="sesame")] if secret else []
    try:
        outcome = await calls.perform(HttpCall(method="GET", url=url, private_allowed=listed, secrets=secrets), "key")
    finally:
        await calls.close()
    assert outcome.error is not None
    if outcome.error["type"] != "policy_denied":
        return ""
    return str(outcome.error["message"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "listed", "secret", "resolves_to", "says"),
    [
        # Nothing listens on port 1: what is not refused fails, as a tool.
        ("http://127.0.0.1:1/", True, True, "", ""),
        ("http://[::1]:1/", True, True, "", ""),
        ("http://localhost:1/", True, True, "127.0.0.1", ""),
        ("http://localhost:1/", True, True, "10.1.2.3", HTTPS),
        ("http://127.0.0.1:1/", False, True, "", f"{LIST_IT}: `stockade up --private-host 127.0.0.1:1`"),
        ("http://[::1]:1/", False, False, "", "STOCKADE_PRIVATE_HOSTS=[::1]:1"),
        ("http://10.1.2.3:1/", True, True, "", HTTPS),
        ("http://10.1.2.3:1/", False, True, "", HTTPS),
        ("http://db.internal:1/", True, True, "10.1.2.3", HTTPS),
        ("http://8.8.8.8:1/", False, True, "", HTTPS),
        ("http://db.internal/", False, False, "10.1.2.3", "--private-host db.internal:80"),
        ("https://db.internal/", False, True, "10.1.2.3", "--private-host db.internal:443"),
        ("http://169.254.169.254/", False, False, "", NEVER),
        ("http://169.254.169.254/", True, False, "", NEVER),
        ("http://meta.example/", True, False, "169.254.169.254", NEVER),
    ],
)
async def test_what_is_refused_says_what_to_do(
    url: str, listed: bool, secret: bool, resolves_to: str, says: str
) -> None:
    said = await refusal(url, listed=listed, secret=secret, resolves_to=resolves_to)
    assert says in said and bool(says) == bool(said), said
    assert sum(remedy in said for remedy in (HTTPS, LIST_IT, NEVER)) == bool(said)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("127.0.0.1:8919", ("127.0.0.1:8919",)),
        ("127.0.0.1:8919, Db.Internal:80", ("127.0.0.1:8919", "db.internal:80")),
        ('["127.0.0.1:8919"]', ("127.0.0.1:8919",)),
        ("[::1]:80", ("::1:80",)),
        ("", ()),
    ],
)
def test_private_hosts_are_written_plainly(monkeypatch: pytest.MonkeyPatch, text: str, hosts: tuple[str, ...]) -> None:
    monkeypatch.setenv("STOCKADE_PRIVATE_HOSTS", text)
    assert from_environment().private_hosts == hosts
    assert Settings(private_hosts=("a:1",)).private_hosts == ("a:1",)


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("STOCKADE_PRIVATE_HOSTS", "127.0.0.1", "HOST:PORT"),
        ("STOCKADE_PRIVATE_HOSTS", "http://127.0.0.1:80", "HOST:PORT"),
        ("STOCKADE_PRIVATE_HOSTS", "a:99999", "HOST:PORT"),
        ("STOCKADE_PRIVATE_HOSTS", "user@a:1", "HOST:PORT"),
        ("STOCKADE_PRIVATE_HOSTS", "a:1,b", "HOST:PORT"),
        ("STOCKADE_PRIVATE_HOSTS", "[1]", "HOST:PORT"),
        ("STOCKADE_PORT", "x", "integer"),
    ],
)
def test_a_wrong_variable_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, form: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsRefused) as refused:
        from_environment()
    said = str(refused.value)
    assert "\n" not in said and said.startswith(f"{name}={value!r}: ") and form in said
