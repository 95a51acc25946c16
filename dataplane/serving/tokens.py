"""Stream tokens: the right to one target on one node, for a short time. The control plane signs, the node checks.

The key is the node's own, given to it with its registration, so a token opens nothing elsewhere and a node that
registers again refuses the earlier ones. Tokens are JWTs (HS256).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

# joserfc is imported where it is used: it brings 7 MB that a node or control plane without streams never needs.
if TYPE_CHECKING:
    from joserfc.jwk import OctKey

AUTHORIZATION = "X-Stockade-Stream"
"""The header of a request to a node that has the token."""

ALGORITHM = "HS256"
KEY_BYTES = 32
LIFE_SECONDS = 30.0
TOKEN_BYTES_MOST = 2048


class TokenRefused(Exception):
    """The token does not open this; the message says why, and quotes nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a stream is for: the first two parts of its path, such as ``models`` and a replica's id.

    ``fence`` is that of an attempt; 0 for a model server, whose id is used once.
    """

    tenant: str
    kind: str
    name: str
    fence: int = 0

    @property
    def path(self) -> str:
        return f"/{self.kind}/{self.name}"


def sign(key: str, node: str, target: Target, now: float, life_seconds: float = LIFE_SECONDS) -> str:
    """A token for ``target`` on ``node``; ``now`` in seconds of the control plane's clock."""
    from joserfc import jwt

    claims = {"aud": node, "ten": target.tenant, "tgt": target.path, "fen": target.fence, "exp": now + life_seconds}
    return jwt.encode({"alg": ALGORITHM}, claims, _key(key), algorithms=[ALGORITHM])


def check(token: str, key: str, node: str, target: Target, now: float) -> None:
    """Raises: TokenRefused unless the token is for exactly this target, here and now."""
    from joserfc import jwt
    from joserfc.errors import JoseError

    if not key or len(token) > TOKEN_BYTES_MOST:
        raise TokenRefused("there is no valid stream token")
    try:
        claims: Mapping[str, object] = jwt.decode(token, _key(key), algorithms=[ALGORITHM]).claims
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("the stream token is not signed by this node's control plane") from None
    expires = claims.get("exp")
    if claims.get("aud") != node:
        raise TokenRefused("the stream token is for another node")
    if claims.get("ten") != target.tenant:
        raise TokenRefused("the stream token is another tenant's")
    if claims.get("tgt") != target.path:
        raise TokenRefused("the stream token is for another target")
    if type(claims.get("fen")) is not int or claims.get("fen") != target.fence:
        raise TokenRefused("the fence of the stream token is not current")
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not now < expires <= now + LIFE_SECONDS * 2:
        raise TokenRefused("the stream token has expired")


class Signer:
    """Signs, and gives a token out again while more than half of its life is left."""

    def __init__(self, clock: Callable[[], float], remembered_most: int = 4096) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str, Target], tuple[str, float]] = {}
        self._most = remembered_most

    def token(self, key: str, node: str, target: Target) -> str:
        """A token that lives for at least half of ``LIFE_SECONDS``."""
        now = self._clock()
        known = self._known.get((key, node, target))
        if known is not None and known[1] > now:
            return known[0]
        if len(self._known) >= self._most:
            self._known.clear()
        token = sign(key, node, target, now)
        self._known[key, node, target] = token, now + LIFE_SECONDS / 2
        return token


def _key(text: str) -> OctKey:
    from joserfc.jwk import OctKey

    return OctKey.import_key(bytes.fromhex(text))
