"""Control path of tcp: finds the addresses to listen on, and the ports.

PYMPX_TCP_INTERFACES  comma-separated interface names or networks (``eth0``, ``192.0.2.0/24``), best first; ``lo`` is loopback.
                      Default: every interface that is up and has an IPv4 address. Those that look like a bridge to containers or virtual
                      machines come last; loopback serves peers in the same network namespace only.
PYMPX_TCP_PORTS       range to listen in, ``40000-40100``. Default: the kernel chooses.

Nothing is decided here about which address leads to a peer: that is shown by connecting, authenticated, to each of them (handshake.cc).
"""

from __future__ import annotations

import fcntl
import hashlib
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
_IFF_RUNNING = 0x40
#: as many addresses as an iface has room for (kMaxPlaces in wire.hh)
MOST_ADDRESSES = 8
#: bridges to containers and virtual machines of this host: other hosts can seldom reach their addresses
_BRIDGES = ("docker", "br-", "virbr", "lxcbr", "lxdbr", "cni", "podman", "veth")


@dataclass(frozen=True)
class Interface:
    """A network interface that is up, with its first IPv4 address."""

    name: str
    address: ipaddress.IPv4Address
    loopback: bool
    #: the kernel sees a carrier
    running: bool


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
                running = bool(flags & _IFF_RUNNING)
                found.append(Interface(name, ipaddress.IPv4Address(raw), bool(flags & _IFF_LOOPBACK), running))
    return found


def choose_addresses(wanted: str, available: list[Interface]) -> list[str]:
    """Return the IPv4 addresses to listen on, best first, at most MOST_ADDRESSES.

    `wanted` is the value of PYMPX_TCP_INTERFACES, empty for the default. Raises ValueError when nothing matches it.
    """
    chosen: list[Interface] = []
    for item in (part.strip() for part in wanted.split(",") if part.strip()):
        network = _network(item) if "/" in item else None
        chosen += [i for i in available if i.name == item or (network is not None and i.address in network)]
    names = ", ".join(f"{i.name} ({i.address})" for i in available) or "none"
    if wanted.strip() and not chosen:
        raise ValueError(f"PYMPX_TCP_INTERFACES={wanted!r} matches no interface that is up with an IPv4 address; there are: {names}")
    if not chosen:
        loopback = [i for i in available if i.loopback][:1]
        others = sorted((i for i in available if not i.loopback), key=lambda i: (i.name.startswith(_BRIDGES), not i.running))
        chosen = others[: MOST_ADDRESSES - len(loopback)] + loopback
    if not chosen:
        raise ValueError("no interface to listen on is up with an IPv4 address")
    return list(dict.fromkeys(str(i.address) for i in chosen))[:MOST_ADDRESSES]


def _network(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"PYMPX_TCP_INTERFACES: {text!r} is neither an interface name nor an IPv4 network: {error}") from None


def parse_ports(text: str) -> tuple[int, int] | None:
    """Return (first, last) of a range ``a-b`` or one port ``a``; None for the empty text. Raises ValueError when it is neither."""
    if not text.strip():
        return None
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        ports = int(first), int(last if dash else first)
    except ValueError:
        ports = 0, 0
    if not text.isascii() or not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueError(f"PYMPX_TCP_PORTS={text!r} is no range first-last of ports between 1 and 65535")
    return ports


def network_identity() -> str:
    """Return 32 hexadecimal digits that are the same for processes in one network namespace of one running kernel.

    All zero where /proc does not tell. It is only a hint which addresses are worth a try.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        namespace = os.stat("/proc/self/ns/net")
    except OSError:
        return "0" * 32
    return hashlib.blake2b(b"%s %d %d" % (boot.strip(), namespace.st_dev, namespace.st_ino), digest_size=16).hexdigest()


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
        """Return the addresses to listen on and, when restricted, the range of ports. Raises ValueError naming a wrong variable."""
        config: dict[str, Any] = {
            "addresses": choose_addresses(os.environ.get("PYMPX_TCP_INTERFACES", ""), interfaces()),
            "network": network_identity(),
        }
        ports = parse_ports(os.environ.get("PYMPX_TCP_PORTS", ""))
        if ports is not None:
            config["ports"] = list(ports)
        return config


@hookimpl
def pympx_transport() -> TcpTransport:
    """Return the control path of tcp."""
    return TcpTransport()
