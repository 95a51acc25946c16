"""Where a node's own requests may go: names are resolved here, every address is judged, and only a judged one is used.

The connector asks this resolver for each new connection and connects to what it returns, so a name that answers
differently the second time (DNS rebinding) is judged a second time.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable

from aiohttp.abc import AbstractResolver, ResolveResult
from anyio.lowlevel import RunVar

from dataplane.lookups import SystemLookups

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str], Awaitable[list[str]]]
_LOOKUPS: RunVar[SystemLookups] = RunVar("lookups")

_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "168.63.129.16")
)
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)


class EgressRefused(Exception):
    """The request may not go there; the message names the address and the reason.

    ``listable``: whoever starts the control plane can list the host as a private one, and then it may.
    """

    def __init__(self, message: str, *, listable: bool = False) -> None:
        super().__init__(message)
        self.listable = listable


def refusal(address: Address, *, private_allowed: bool) -> str | None:
    """Why nothing may connect to ``address``, or ``None``.

    ``private_allowed`` admits loopback and private networks; never metadata services, link-local or multicast.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour or address.teredo or int(address) >> 32 == 0:
            if address.is_loopback and private_allowed:
                return None
            return "is loopback" if address.is_loopback else "hides an IPv4 address"
        if any(address in network for network in _NAT64):
            return "hides an IPv4 address (NAT64)"
        if address.scope_id is not None or address.is_site_local:
            return "is link-local"
    if address in _METADATA:
        return "is a metadata service"
    if address.is_multicast:
        return "is multicast"
    if address.is_unspecified or (isinstance(address, ipaddress.IPv4Address) and int(address) >> 24 == 0):
        return "is unspecified"
    if address.is_link_local:
        return "is link-local"
    if address.is_loopback:
        return None if private_allowed else "is loopback"
    if any(address in network for network in _PRIVATE):
        return None if private_allowed else "is private"
    if address.is_reserved or not address.is_global:
        return "is reserved"
    return None


def check(address: Address, named: str, *, private_allowed: bool, loopback_only: bool = False) -> None:
    """Judge one address, which errors call ``named``. Raises ``EgressRefused``.

    ``loopback_only``: what is sent is not encrypted and must not leave this machine.
    """
    if reason := refusal(address, private_allowed=private_allowed):
        raise EgressRefused(f"{named} {reason}", listable=refusal(address, private_allowed=True) is None)
    if loopback_only and not address.is_loopback:
        raise EgressRefused(f"{named} is not on this machine, and a secret does not travel in clear text")


def check_literal(host: str, *, private_allowed: bool, loopback_only: bool = False) -> None:
    """Judge a host that is an address already (a connector asks no resolver for those). Raises ``EgressRefused``."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return
    check(address, host, private_allowed=private_allowed, loopback_only=loopback_only)


async def system_lookup(host: str) -> list[str]:
    """Every address the system's resolver gives, asked in threads that nothing else needs."""
    try:
        lookups = _LOOKUPS.get()
    except LookupError:
        lookups = SystemLookups()
        _LOOKUPS.set(lookups)
    return await lookups.addresses(host)


class CheckedResolver(AbstractResolver):
    """A resolver that answers only if *every* address of the name may be connected to."""

    def __init__(self, *, private_allowed: bool, loopback_only: bool = False, lookup: Lookup = system_lookup) -> None:
        self._private_allowed = private_allowed
        self._loopback_only = loopback_only
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        for text in await self._lookup(host):
            address = ipaddress.ip_address(text)
            check(
                address,
                f"{host} resolves to {text}, which",
                private_allowed=self._private_allowed,
                loopback_only=self._loopback_only,
            )
            results.append(
                ResolveResult(
                    hostname=host,
                    host=text,
                    port=port,
                    family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        if not results:
            raise OSError(f"{host} has no address")
        return results

    async def close(self) -> None:
        """Nothing is held."""
