"""``python -m controlplane.certificates FOLDER --name HOST …``: TLS for a control plane, by an authority of its own.

FOLDER/ca.pem, ca.key           the authority; nodes and clients trust ca.pem
FOLDER/server.pem, server.key   STOCKADE_TLS_CERTIFICATE_FILE and STOCKADE_TLS_KEY_FILE

What is there and good for another month, for all the names, is left alone; so it can run before every start.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
RENEW_DAYS = 30
_EARLIER = datetime.timedelta(hours=1)  # another host's clock may be behind


def ensure(folder: Path, names: Sequence[str], now: datetime.datetime) -> bool:
    """Make what is missing or ends soon. Whether the server's certificate is new. Blocks. Raises OSError, ValueError.

    ``names`` are host names and addresses. A server that runs reads a new certificate at its next start.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, authority_key = _kept(folder / "ca.pem", folder / "ca.key")
    if authority is None or authority_key is None or _ends_soon(authority, now):
        authority_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Stockade's own authority")])
        authority = (
            _builder(subject, subject, authority_key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        _write(folder / "ca", authority, authority_key)
    server, server_key = _kept(folder / "server.pem", folder / "server.key")
    wanted = [_general(name) for name in names]
    if server is not None and server_key is not None and not _ends_soon(server, now):
        found = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if list(found) == wanted and server.issuer == authority.subject and _is_issued_by(server, authority):
            return False
    server_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Stockade control plane")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    server = (
        _builder(subject, authority.subject, server_key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / "server", server, server_key)
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _kept(certificate: Path, key: Path) -> tuple[x509.Certificate | None, ec.EllipticCurvePrivateKey | None]:
    """Both, or neither where a file is missing, unreadable or of the other's certificate."""
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        return None, None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or read.public_key() != private.public_key():
        return None, None
    return read, private


def _ends_soon(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - now < datetime.timedelta(days=RENEW_DAYS)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # it says no in several ways, an InvalidSignature among them
        return False
    return True


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """The key first: a certificate without its key is made again."""
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    for suffix, data, mode in ((".key", private, 0o600), (".pem", certificate.public_bytes(pem), 0o644)):
        fresh = stem.with_name(f".{stem.name}{suffix}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        fresh.chmod(mode)
        fresh.replace(stem.with_suffix(suffix))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.certificates", description="TLS of its own.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", action="append", required=True, help="a host name or address of the control plane")
    given = parser.parse_args(argv)
    try:
        new = ensure(given.folder, given.name, datetime.datetime.now(datetime.UTC))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.folder}: {'a new certificate' if new else 'the certificate is good'} for {', '.join(given.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
