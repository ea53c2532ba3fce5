"""This machine's RDMA devices, as far as the kernel's /sys tells without opening them; and pyverbs, found and imported with care."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLASS = Path("/sys/class/infiniband")
#: where Debian's python3-pyverbs lies, for a virtual environment that does not see the system's packages
_SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"


@dataclass(frozen=True)
class Port:
    """One port of a device, as /sys has it."""

    device: str
    number: int
    active: bool
    #: what the kernel calls its state
    state: str
    #: made by software on top of an ordinary network interface
    software: bool
    #: bits per second
    rate: float
    #: network interfaces of a port on Ethernet
    interfaces: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.device} port {self.number}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def ports() -> list[Port]:
    """Return the ports of all devices, best first: active ones, real cards before software, then by rate."""
    found = []
    for device in sorted(_CLASS.iterdir()) if _CLASS.is_dir() else []:
        for path in sorted((device / "ports").iterdir(), key=lambda p: int(p.name)):
            state = _read(path / "state").partition(": ")[2] or "unknown"
            rate = _read(path / "rate").split()
            netdevs = {name for entry in (path / "gid_attrs" / "ndevs").glob("*") if (name := _read(entry))}
            found.append(
                Port(
                    device.name, int(path.name), state == "ACTIVE", state, "/virtual/" in str(device.resolve()),
                    float(rate[0]) * 1e9 if rate else 0.0, tuple(sorted(netdevs)),
                )
            )  # fmt: skip
    return sorted(found, key=lambda port: (not port.active, port.software, -port.rate, port.device, port.number))


def why_no_device() -> str:
    """Return why there is no RDMA device at all, and what to do, in one line."""
    if not _CLASS.is_dir():
        return "the kernel has no RDMA: load the card's driver (for soft-RoCE on any network interface: modprobe rdma_rxe)"
    return "no RDMA device: load the card's driver (for soft-RoCE: rdma link add rxe0 type rxe netdev INTERFACE)"


def choose(wanted: str) -> Port:
    """Return the port to use: the best one that is active, or the one that PYMPX_VERBS_DEVICE names (``mlx5_0``, ``mlx5_0:2``).

    Raises LookupError with cause and cure in one line.
    """
    known = ports()
    if not known:
        raise LookupError(why_no_device())
    device, _, number = wanted.partition(":")
    matching = [port for port in known if (not device or port.device == device) and (not number or str(port.number) == number)]
    if not matching:
        names = ", ".join(f"{port.device}:{port.number}" for port in known)
        raise LookupError(f"PYMPX_VERBS_DEVICE={wanted!r} is none of the devices here: {names}")
    port = matching[0]
    if not port.active:
        up = "; ".join(f"ip link set {name} up" for name in port.interfaces) or "connect its cable, or start a subnet manager"
        raise LookupError(f"{port.name} is {port.state}: {up}")
    if not list(Path("/dev/infiniband").glob("uverbs*")):
        raise LookupError("/dev/infiniband has no uverbs device: modprobe ib_uverbs")
    return port


def gid_index(port: Port) -> int:
    """Return the index of the GID to use: on Ethernet the first of RoCE v2 that is made of an IPv4 address, else the first of RoCE v2."""
    folder = _CLASS / port.device / "ports" / str(port.number)
    if _read(folder / "link_layer") != "Ethernet":
        return 0
    candidates = []
    for path in (folder / "gids").iterdir():
        gid = _read(path)
        if gid.replace("0", "").strip(":") and _read(folder / "gid_attrs" / "types" / path.name) == "RoCE v2":
            candidates.append((not gid.startswith("0000:0000:0000:0000:0000:ffff:"), int(path.name)))
    if not candidates:
        raise LookupError(f"{port.name} has no GID of RoCE v2: give its network interface an IP address")
    return min(candidates)[1]


def pyverbs(name: str) -> Any:
    """Import pyverbs' module `name`, from the system's packages if the environment has none. Raises LookupError with cause and cure."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # pyverbs configures the program's logging
    try:
        if "pyverbs" not in sys.modules and importlib.util.find_spec("pyverbs") is None:
            spec = importlib.machinery.PathFinder.find_spec("pyverbs", [_SYSTEM_PACKAGES])
            if spec is None or spec.loader is None:
                raise LookupError("pyverbs is not installed: apt-get install python3-pyverbs (it serves the system's Python version)")
            package = importlib.util.module_from_spec(spec)
            sys.modules["pyverbs"] = package
            spec.loader.exec_module(package)
        return importlib.import_module(f"pyverbs.{name}")
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise LookupError(f"pyverbs does not serve this Python {version}: {error}") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
