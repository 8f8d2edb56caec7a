from ipaddress import ip_address

import pytest

from core.errors import ConfigurationError, InvalidRequest
from core.webhooks.addresses import check_url, is_listed, is_public, parse_networks


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "239.1.2.3",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.0.192",
        "100.100.100.200",
        "168.63.129.16",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:102:304:0:fbff:80ff:fffe",  # Teredo of 127.0.0.1
    ],
)
def test_an_address_that_only_this_machine_may_reach_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:word@example.com/",
        "https://example.com/#there",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/a\r\nHost: other",
        "https://examplé.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::1",
        "https://169.254.169.254/latest/meta-data",
        "https://example.com/" + "a" * 3000,
        "",
    ],
)
def test_a_url_that_leads_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(url, ())
    assert refused.value.param == "url"


def test_plain_http_goes_to_networks_that_are_allowed() -> None:
    # Given
    networks = parse_networks("127.0.0.0/8, 10.0.0.0/8")
    # When
    parts = check_url("http://127.0.0.1:8000/hook?a=1", networks)
    # Then
    assert (parts.hostname, parts.port, parts.query) == ("127.0.0.1", 8000, "a=1")
    with pytest.raises(InvalidRequest):
        check_url("http://192.168.0.1/", networks)


def test_an_allowed_network_holds_for_both_spellings_of_its_addresses() -> None:
    networks = parse_networks("10.0.0.0/8")
    assert is_listed(ip_address("10.1.1.1"), networks)
    assert is_listed(ip_address("::ffff:10.1.1.1"), networks)
    assert not is_listed(ip_address("11.1.1.1"), networks)


def test_a_network_that_is_none_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="MILLRACE_WEBHOOK_NETWORKS"):
        parse_networks("10.0.0.0/8,here")
