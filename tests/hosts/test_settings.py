"""PYMPX_TCP_PORTS and PYMPX_TCP_INTERFACES by real runs: where ranks listen, read from the kernel; what a wrong value says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hosts_support import launch, program

from pympx.testing.hosts import Hosts

LISTENING = """
    import json, os, socket
    from pympx import MPI
    comm = MPI.COMM_WORLD
    comm.Barrier()
    inodes = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found, to = [], []
    for kind in ("tcp", "tcp6"):
        with open(f"/proc/self/net/{kind}") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    address, _, port = fields[1].partition(":")
                    other = fields[2].partition(":")[0]
                    if fields[3] == "0A":
                        found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]) if kind == "tcp" else "6", int(port, 16)))
                    elif fields[3] == "01":
                        to.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), socket.inet_ntoa(bytes.fromhex(other)[::-1])))
    everybody = comm.gather((found, to))
    if comm.rank == 0:
        print(json.dumps(everybody))
"""


def run(
    hosts: Hosts, folder: Path, placement: str = "a:1,b:1", **settings: str
) -> list[tuple[list[tuple[str, int]], list[tuple[str, str]]]]:
    """Return for every rank where it listens, and its connections as (own, other address)."""
    size = sum(int(item[2:]) for item in placement.split(","))
    done = launch(hosts, "run", placement, size, program(folder, LISTENING), folder=folder, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return [([(a, p) for a, p in found], [(a, b) for a, b in to]) for found, to in json.loads(done.stdout)]


def test_by_default_every_address_one_port_and_never_all_addresses(two: Hosts, tmp_path: Path) -> None:
    for number, (listening, connections) in enumerate(run(two, tmp_path), 1):
        assert sorted(address for address, _ in listening) == sorted([f"10.77.0.{number}", "127.0.0.1", "172.17.0.1", "192.168.122.1"])
        assert len({port for _, port in listening}) == 1
        assert {f"10.77.0.{number}", f"10.77.0.{3 - number}"} in [set(ends) for ends in connections]


def test_ports(two: Hosts, tmp_path: Path) -> None:
    for listening, _ in run(two, tmp_path, "a:2,b:2", PYMPX_TCP_PORTS="8500-8501"):
        assert {port for _, port in listening} <= {8500, 8501}


@pytest.mark.parametrize("wanted", ["eth0", "10.77.0.0/16", "eth0,lo", "10.77.0.0/24 , eth0"])
def test_interfaces(two: Hosts, tmp_path: Path, wanted: str) -> None:
    for number, (listening, _) in enumerate(run(two, tmp_path, PYMPX_TCP_INTERFACES=wanted), 1):
        expected = [f"10.77.0.{number}"] + ["127.0.0.1"] * ("lo" in wanted)
        assert sorted(address for address, _ in listening) == expected


def test_loopback_between_ranks_of_one_host_only(two: Hosts, tmp_path: Path) -> None:
    """By name, tcp inside the host: it takes loopback, where no firewall is in the way."""
    two.close_ports("a", 1024, 65535)
    nft = "add rule ip closed input iif lo accept"
    assert two.run("a", ["nft", "insert" + nft[3:]], timeout=10).returncode == 0
    for _, connections in run(two, tmp_path, "a:3", PYMPX_TRANSPORT="tcp"):
        assert ("127.0.0.1", "127.0.0.1") in connections


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"PYMPX_TCP_INTERFACES": "eth7"}, "PYMPX_TCP_INTERFACES='eth7' matches no interface that is up with an IPv4 address; there are: "),
        ({"PYMPX_TCP_INTERFACES": "10.77/33"}, "PYMPX_TCP_INTERFACES: '10.77/33' is neither an interface name nor an IPv4 network"),
        ({"PYMPX_TCP_INTERFACES": "lo"}, "no way leads to another host's 127.0.0.1:"),
        ({"PYMPX_TCP_INTERFACES": "docker0"}, "no way leads to another host's 172.17.0.1:"),
        ({"PYMPX_TCP_PORTS": "9000-8000"}, "PYMPX_TCP_PORTS='9000-8000' is no range first-last of ports between 1 and 65535"),
        ({"PYMPX_TCP_PORTS": "8500"}, "every port of PYMPX_TCP_PORTS=8500-8500 is in use at 10.77.0."),
    ],
    ids=["no-such", "nonsense", "loopback", "bogus", "range", "too-few"],
)  # fmt: skip
def test_what_cannot_work_is_one_line_that_names_the_setting(two: Hosts, tmp_path: Path, settings: dict[str, str], expected: str) -> None:
    done = launch(two, "run", "a:2,b:2", 4, program(tmp_path, LISTENING), folder=tmp_path, **settings)
    assert done.returncode == 1
    assert expected in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("pympx: ")]
    assert 1 <= len(ours) <= 4, "at most one line per rank"
    assert all("PYMPX_T" in line for line in ours)
    assert "Traceback" not in done.stderr


def test_an_interface_that_is_down_is_not_used(two: Hosts, tmp_path: Path) -> None:
    two.interface("a", "virbr0", up=False)
    (first, _), (second, _) = run(two, tmp_path)
    assert "192.168.122.1" not in [address for address, _ in first]
    assert "192.168.122.1" in [address for address, _ in second]
