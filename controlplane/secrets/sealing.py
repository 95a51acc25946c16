"""Authenticated encryption of secret values: AES-256-GCM under a key file that is not in the database."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controlplane.identity import write_private

_KEY_BYTES = 32
_NONCE_BYTES = 12


class SealBroken(Exception):
    """A sealed value cannot be opened: another key sealed it, or it was changed. The message names no value."""


class Sealer:
    """Seals and opens with one key; ``key_id`` names the key without revealing it."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the key that seals secrets has {len(key)} bytes and needs {_KEY_BYTES}")
        self._cipher = AESGCM(key)
        self._root = HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"stockade derived keys").derive(key)
        self.key_id = hashlib.sha256(b"stockade secrets key id" + key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Sealer(key_id={self.key_id!r})"

    @classmethod
    def from_file(cls, path: Path) -> Sealer:
        """The sealer of the key in ``path``, which is made (mode 0600) if it does not exist. Blocking.

        Raises:
            ValueError: the file is not 32 bytes, or others can read it.
        """
        if not path.exists():
            write_private(path, os.urandom(_KEY_BYTES))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ValueError(f"others can read {path}, which seals all secrets: run chmod 600 {path}")
        return cls(path.read_bytes())

    def seal(self, value: bytes, bound_to: bytes) -> bytes:
        """Nonce and ciphertext. Only the same ``bound_to`` opens it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, bound_to)

    def derived(self, purpose: bytes) -> bytes:
        """A key for something else, the same each time; nothing can be learned from it about this one."""
        return HKDF(SHA256(), _KEY_BYTES, salt=None, info=purpose).derive(self._root)

    def open(self, key_id: str, sealed: bytes, bound_to: bytes) -> bytes:
        """The value. Raises: SealBroken."""
        if key_id != self.key_id:
            raise SealBroken(f"sealed with the key {key_id}, but the key at hand is {self.key_id}")
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
        except InvalidTag:
            raise SealBroken("the sealed value was changed or belongs to another name") from None
