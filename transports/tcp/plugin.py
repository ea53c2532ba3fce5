"""Control path of tcp: chooses the one address to listen on, and the ports.

PYMPX_TCP_INTERFACES  comma-separated interface names or networks (``eth0``, ``192.0.2.0/24``), first match wins; ``lo`` is loopback.
                      Default: the first interface that is up, not loopback and no bridge of a container or virtual machine; else loopback.
PYMPX_TCP_PORTS       range to listen in, ``40000-40100``. Default: the kernel chooses.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pympx.plugins.api import NativeTransport, hookimpl

_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
#: bridges to containers and virtual machines of this host: other hosts cannot reach their addresses
_BRIDGES = ("docker", "br-", "virbr", "lxcbr", "lxdbr", "cni", "podman", "veth")


@dataclass(frozen=True)
class Interface:
    """A network interface that is up, with its first IPv4 address."""

    name: str
    address: ipaddress.IPv4Address
    loopback: bool


def interfaces() -> list[Interface]:
    """Return this machine's interfaces that are up and have an IPv4 address, in the kernel's order."""
    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s24x", name.encode()[:15])
            try:
                flags: int = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
                raw = fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24]
            except OSError:  # no IPv4 address, or just gone
                continue
            if flags & _IFF_UP:
                found.append(Interface(name, ipaddress.IPv4Address(raw), bool(flags & _IFF_LOOPBACK)))
    return found


def choose_address(wanted: str, available: list[Interface]) -> str:
    """Return the IPv4 address to listen on.

    `wanted` is the value of PYMPX_TCP_INTERFACES, empty for the default. Raises ValueError when nothing matches it.
    """
    for item in (part.strip() for part in wanted.split(",") if part.strip()):
        for interface in available:
            if interface.name == item or ("/" in item and interface.address in _network(item)):
                return str(interface.address)
    names = ", ".join(f"{i.name} ({i.address})" for i in available) or "none"
    if wanted.strip():
        raise ValueError(f"PYMPX_TCP_INTERFACES={wanted!r} matches no interface that is up with an IPv4 address; there are: {names}")
    for interface in available:
        if not interface.loopback and not interface.name.startswith(_BRIDGES):
            return str(interface.address)
    for interface in available:
        if interface.loopback:
            return str(interface.address)
    raise ValueError(f"no interface to listen on is up with an IPv4 address; there are: {names}")


def _network(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"PYMPX_TCP_INTERFACES: {text!r} is neither an interface name nor an IPv4 network: {error}") from None


def parse_ports(text: str) -> tuple[int, int] | None:
    """Return (first, last) of a range ``a-b`` or one port ``a``; None for the empty text. Raises ValueError when it is neither."""
    if not text.strip():
        return None
    first, _, last = text.partition("-")
    try:
        ports = int(first), int(last or first)
    except ValueError:
        ports = 0, 0
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueError(f"PYMPX_TCP_PORTS={text!r} is no range first-last of ports between 1 and 65535")
    return ports


class TcpTransport(NativeTransport):
    """TCP over IPv4, both ends authenticated with the job's key."""

    def __init__(self) -> None:
        super().__init__("tcp", "TCP over IPv4, between hosts or on one", Path(__file__).with_name("_fastpath.so"))

    def probe(self) -> str | None:
        """Return why tcp cannot serve here: its library is missing, or the settings match nothing."""
        try:
            self.config()
        except ValueError as error:
            return str(error)
        return super().probe()

    def config(self) -> dict[str, Any]:
        """Return the address to listen on and, when restricted, the range of ports. Raises ValueError naming a wrong variable."""
        config: dict[str, Any] = {"address": choose_address(os.environ.get("PYMPX_TCP_INTERFACES", ""), interfaces())}
        ports = parse_ports(os.environ.get("PYMPX_TCP_PORTS", ""))
        if ports is not None:
            config["ports"] = list(ports)
        return config


@hookimpl
def pympx_transport() -> TcpTransport:
    """Return the control path of tcp."""
    return TcpTransport()
