"""The control plane's own authority: certificates that strict clients accept, kept while they are good."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from controlplane.certificates import RENEW_DAYS, SERVER_DAYS, ensure, main
from controlplane.config import Settings, SettingsRefused, from_environment

NOW = datetime.datetime.now(datetime.UTC)
NAMES = ["control-plane", "localhost", "127.0.0.1", "::1"]


def test_names_and_addresses_are_in_it_and_only_the_owner_reads_keys(tmp_path: Path) -> None:
    assert ensure(tmp_path / "keys", NAMES, NOW)
    server = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == NAMES
    for name, mode in (("ca.key", 0o600), ("server.key", 0o600), ("ca.pem", 0o644), ("server.pem", 0o644)):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == mode
    ssl.create_default_context(cafile=str(tmp_path / "keys" / "ca.pem"))


def test_a_strict_client_accepts_it_for_its_names_only(tmp_path: Path) -> None:
    ensure(tmp_path, ["localhost"], NOW)
    for name, accepted in (("localhost", True), ("elsewhere", False)):
        client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
        assert _shakes_hands(client, server, name) is accepted


def _shakes_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server, server_hostname=name)
    answers = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (asks, answers):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return asks.version() is not None


def test_what_is_good_is_kept_and_what_is_not_is_made_again(tmp_path: Path) -> None:
    ensure(tmp_path, NAMES, NOW)
    authority = (tmp_path / "ca.pem").read_bytes()
    server = (tmp_path / "server.pem").read_bytes()
    assert not ensure(tmp_path, NAMES, NOW) and (tmp_path / "server.pem").read_bytes() == server
    assert ensure(tmp_path, NAMES[:1], NOW), "other names"
    assert ensure(tmp_path, NAMES[:1], NOW + datetime.timedelta(days=SERVER_DAYS - RENEW_DAYS + 1)), "it ends soon"
    (tmp_path / "server.key").write_text("half a key")
    assert ensure(tmp_path, NAMES[:1], NOW)
    assert (tmp_path / "ca.pem").read_bytes() == authority, "nobody has to trust another authority"
    (tmp_path / "ca.key").unlink()
    assert ensure(tmp_path, NAMES[:1], NOW)
    assert (tmp_path / "ca.pem").read_bytes() != authority


def test_the_command_says_what_it_did_and_refuses_a_name_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--name", "localhost"]) == 0
    assert "a new certificate for localhost" in capsys.readouterr().out
    assert main([str(tmp_path), "--name", "bücher.example"]) == 1
    assert "error: " in capsys.readouterr().err


def test_half_of_tls_is_refused_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKADE_TLS_CERTIFICATE_FILE", str(tmp_path / "server.pem"))
    with pytest.raises(SettingsRefused, match="STOCKADE_TLS_KEY_FILE"):
        from_environment()
    monkeypatch.setenv("STOCKADE_TLS_KEY_FILE", str(tmp_path / "server.key"))
    with pytest.raises(SettingsRefused, match=r"no file .*server\.pem"):
        from_environment()
    ensure(tmp_path, NAMES, NOW)
    assert from_environment().url.startswith("https://")
    assert Settings().url.startswith("https://")
