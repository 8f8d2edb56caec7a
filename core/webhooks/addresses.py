"""Where a webhook may be sent. Users name the URL and this server calls it, so an address that only this server can
reach is refused: private, loopback, link-local, multicast, reserved, and where clouds keep their machines' secrets.
Whoever runs Millrace can allow networks of their own. Knows no DNS: it judges addresses, not names.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from core.errors import ConfigurationError, InvalidRequest

MAX_URL_CHARACTERS = 2048
NAT64 = ip_network("64:ff9b::/96")
# What Python calls global, or calls so in some versions: special purposes, dead tunnels that a gateway would unpack,
# and Azure's platform, which answers at a public number from the machine's own host.
REFUSED = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "64:ff9b:1::/48",
        "2001::/23",
        "2002::/16",
        "5f00::/16",
        "fec0::/10",
    )
)

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]


def parse_networks(text: str) -> Networks:
    """`text`: networks separated by commas. Raises ConfigurationError."""
    try:
        return [ip_network(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigurationError(
            f"MILLRACE_WEBHOOK_NETWORKS: expected networks such as 10.1.0.0/16,127.0.0.1/32, got {text!r}: {error}"
        ) from error


def is_public(address: Address) -> bool:
    """Where an IPv6 address stands for an IPv4 address, that one is judged."""
    meant = _meant(address)
    return meant.is_global and not meant.is_multicast and not any(meant in network for network in REFUSED)


def _meant(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


def is_listed(address: Address, networks: Networks) -> bool:
    return any(_meant(address) in network for network in networks)


def check_url(url: str, networks: Networks) -> SplitResult:
    """Without asking any name server. Plain HTTP only where whoever runs Millrace has allowed networks of their own.
    Raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"expected a URL, got {url!r}: {error}", param="url") from error
    schemes = ("https", "http") if networks else ("https",)
    is_clean = parts.username is None and parts.password is None and not parts.fragment and url.isascii()
    if parts.scheme not in schemes or not parts.hostname or port == 0 or not is_clean or not url.isprintable():
        raise InvalidRequest(f"expected {' or '.join(schemes)}://host[:port]/path, got {url!r}", param="url")
    if len(url) > MAX_URL_CHARACTERS or " " in url:
        raise InvalidRequest(f"expected a URL of at most {MAX_URL_CHARACTERS} characters without spaces", param="url")
    _check_literal(parts.hostname, networks)
    return parts


def _check_literal(host: str, networks: Networks) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        return  # a name, which is judged when it is resolved
    if not (is_public(address) or is_listed(address, networks)):
        raise InvalidRequest(f"expected a public address, got {host}", param="url")
