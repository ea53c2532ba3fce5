"""tcp's control path: which addresses it listens on, which ports, and what it says of settings that cannot be used."""

from __future__ import annotations

import ipaddress

import pytest
from pympx.transports.tcp import plugin
from pympx.transports.tcp.plugin import MOST_ADDRESSES, Interface, choose_addresses, parse_ports


def interface(name: str, address: str, *, running: bool = True) -> Interface:
    return Interface(name, ipaddress.IPv4Address(address), name == "lo", running)


LO = interface("lo", "127.0.0.1")
DOCKER = interface("docker0", "172.17.0.1", running=False)
VIRTUAL = interface("virbr0", "192.168.122.1")
ETH0 = interface("eth0", "10.0.0.5")
IB0 = interface("ib0", "10.1.0.5")
UNPLUGGED = interface("eth1", "192.0.2.5", running=False)
EVERYTHING = [LO, DOCKER, VIRTUAL, UNPLUGGED, ETH0, IB0]


def test_by_default_all_that_are_up_likely_ones_first_bridges_last_then_loopback() -> None:
    expected = ["10.0.0.5", "10.1.0.5", "192.0.2.5", "192.168.122.1", "172.17.0.1", "127.0.0.1"]
    assert choose_addresses("", EVERYTHING) == expected
    assert choose_addresses("  ", EVERYTHING) == expected
    assert choose_addresses("", [LO, DOCKER]) == ["172.17.0.1", "127.0.0.1"]
    assert choose_addresses("", [LO]) == ["127.0.0.1"]
    assert choose_addresses("", [ETH0]) == ["10.0.0.5"]


def test_there_is_room_for_so_many_and_loopback_is_among_them() -> None:
    many = [interface(f"eth{n}", f"10.0.1.{n}") for n in range(20)]
    chosen = choose_addresses("", [LO, *many])
    assert len(chosen) == MOST_ADDRESSES == 8
    assert chosen[0] == "10.0.1.0"
    assert chosen[-1] == "127.0.0.1"
    assert len(choose_addresses("10.0.0.0/8", many)) == MOST_ADDRESSES


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("eth0", ["10.0.0.5"]),
        ("ib0,eth0", ["10.1.0.5", "10.0.0.5"]),
        (" ib0 , lo ", ["10.1.0.5", "127.0.0.1"]),
        ("10.0.0.0/8", ["10.0.0.5", "10.1.0.5"]),
        ("10.1.2.3/16", ["10.1.0.5"]),
        ("10.0.0.5/32,eth0", ["10.0.0.5"]),
        ("docker0", ["172.17.0.1"]),
        ("nosuch0,eth0", ["10.0.0.5"]),
        ("lo", ["127.0.0.1"]),
    ],
)
def test_what_is_wanted_in_its_order_and_nothing_else(wanted: str, expected: list[str]) -> None:
    assert choose_addresses(wanted, EVERYTHING) == expected


@pytest.mark.parametrize("wanted", ["nosuch0", "203.0.113.0/24", "eth", "10.0.0.5", "eth0;ib0", "fe80::/10", "10.0.0.0/33", "10.0.0/8x"])
def test_what_matches_nothing_is_one_line(wanted: str) -> None:
    with pytest.raises(ValueError, match="PYMPX_TCP_INTERFACES") as caught:
        choose_addresses(wanted, EVERYTHING)
    assert "\n" not in str(caught.value)
    assert wanted in str(caught.value)


def test_without_any_interface() -> None:
    with pytest.raises(ValueError, match="no interface to listen on is up"):
        choose_addresses("", [])
    with pytest.raises(ValueError, match="there are: none"):
        choose_addresses("eth0", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), (" ", None), ("40000-40100", (40000, 40100)), ("8445", (8445, 8445)), ("1-65535", (1, 65535)), ("7-7", (7, 7))],
)
def test_ports(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_ports(text) == expected


@pytest.mark.parametrize("text", ["0", "0-5", "5-4", "1-65536", "a-b", "10-", "-10", "1-2-3", "1.5", "8445,8446", "٣", "99999999999999"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="PYMPX_TCP_PORTS=") as caught:
        parse_ports(text)
    assert "\n" not in str(caught.value)


def test_the_interfaces_of_this_machine() -> None:
    found = plugin.interfaces()
    loopback = next(i for i in found if i.loopback)
    assert loopback.address in ipaddress.IPv4Network("127.0.0.0/8")
    assert str(loopback.address) in choose_addresses("", found)


def test_the_network_is_the_namespaces_identity() -> None:
    identity = plugin.network_identity()
    assert len(identity) == 32
    assert set(identity) <= set("0123456789abcdef")
    assert identity == plugin.network_identity() != "0" * 32
