"""Which addresses the service may be made to call. Nothing here asks the network or a name server.

A name says nothing yet about where it leads: whoever calls it has to ask `is_public` of what it resolves to, and to
call exactly that.
"""

import ipaddress
import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

_HTTPS_PORT: Final = 443
_LEAST_PORT: Final = 1024  # below are the ports of mail, printers and other services that take what they are sent
_URL: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<authority>[^/?#]*)"
    r"(?P<target>[^#]*)"
    r"(?P<fragment>#.*)?",
    re.IGNORECASE,
)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label: the whole is an IPv4 address, or nothing
_NAME_CHARACTERS: Final = 253
_HOUSE_NAMES: Final = (
    *("localhost", "localdomain", "local", "lan", "home", "internal", "intranet", "corp", "private"),
    *("home.arpa", "in-addr.arpa", "ip6.arpa", "onion", "test", "invalid", "alt"),
)

_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(each)
    for each in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
_UNICAST_6: Final = IPv6Network("2000::/3")  # all that was ever given out
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")  # the IPv4 address that it leads to is in bits 16 to 48,
_NAT64: Final = IPv6Network("64:ff9b::/96")  # here in the last 32


class Address(NamedTuple):
    """Where a URL leads."""

    host: str  # a name in lower case, or an IP address as it is usually written, without brackets
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        """As a URL and the header `Host` have it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _HTTPS_PORT else f"{host}:{self.port}"


def check_url(url: str) -> Address:
    """Of a URL that may be called, as far as that can be told without a name server.

    Raises ValueError with a sentence about a URL that may not be.
    """
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise ValueError(
            "A webhook's URL is written in ASCII, without spaces, control characters and backslashes; "
            "write other characters in percent-encoding, and names in Punycode (xn--...)."
        )
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"].lower() != "https":
        raise ValueError("A webhook's URL begins with https://.")
    if parts["fragment"] is not None:
        raise ValueError("A webhook's URL has no fragment (#...); it would not be sent.")
    if "@" in parts["authority"]:
        raise ValueError("A webhook's URL holds no user and no password; put a secret into its path.")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise ValueError("A webhook's URL names a host, and if need be a port: https://hooks.example.com:8443/path.")
    port = int(authority["port"] or _HTTPS_PORT)
    if port != _HTTPS_PORT and not _LEAST_PORT <= port <= 65_535:
        raise ValueError("A webhook's port is 443, or one from 1024 to 65535.")
    return Address(_checked(authority["host"].lower()), port, _absolute(parts["target"]))


def origin(url: str) -> str | None:
    """What of a URL may be shown to anybody; None of one that may not be called."""
    try:
        address = check_url(url)
    except ValueError:
        return None
    return f"https://{address.authority}"


def is_public(ip: str) -> bool:
    """Whether this is the address of one machine that the public network leads to, in whatever it is wrapped."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    within = _wrapped(address)
    if within is not None:
        return is_public(str(within))
    return address in _UNICAST_6 and not any(address in network for network in _NOT_PUBLIC_6)


def _wrapped(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that this one leads to. (Teredo is in 2001::/23: it is not public, whatever it wraps.)"""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _SIX_TO_FOUR:
        return address.sixtofour
    return IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None


def _checked(host: str) -> str:
    """Raises ValueError."""
    ip = _literal(host)
    if ip is not None:
        if not is_public(ip):
            raise ValueError(f"The address {ip} is not on the public network; webhooks go nowhere else.")
        return ip
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _NAME_CHARACTERS or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("The host of a webhook's URL is not a name that there can be.")
    if len(labels) == 1 or any(name == house or name.endswith(f".{house}") for house in _HOUSE_NAMES):
        raise ValueError(f"The name {name} is of this network and not of the public one; webhooks go nowhere else.")
    return name


def _literal(host: str) -> str | None:
    """The IP address that the host is, however it is spelled; None of a name. Raises ValueError."""
    if host.startswith("["):
        try:
            return str(IPv6Address(host[1:-1]))
        except ValueError as error:
            raise ValueError("The host of a webhook's URL is not an IPv6 address.") from error
    if not _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        return None
    try:  # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to whatever connects, so they are here
        return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    except OSError as error:
        raise ValueError("The host of a webhook's URL is not an IPv4 address.") from error


def _absolute(target: str) -> str:
    return target if target.startswith("/") else f"/{target}"
