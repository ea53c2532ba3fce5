"""The hosts of these tests are what they should be, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts_support import environment

from pympx.testing.hosts import BOGUS, Hosts, HostsError
from pympx.testing.jobs import eventually

SHOW = "hostname; stat -c %d:%i /dev/shm; ip -4 -o addr show | awk '{print $2, $4}' | sort"


def namespaces_in_use(inodes: set[int]) -> set[int]:
    """Return which of these network namespaces any process is in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.add(os.stat(entry / "ns/net").st_ino)
            except OSError:
                continue
    return found & inodes


@pytest.mark.parametrize("pids", [False, True])
def test_hosts_differ_in_what_hosts_differ_in(pids: bool) -> None:
    before = sorted(os.listdir("/sys/class/net"))
    with Hosts("a", "b", pids=pids) as hosts:
        shown = {name: hosts.run(name, ["sh", "-c", SHOW], timeout=10).stdout.split("\n") for name in ("a", "b")}
        assert shown["a"][0] == "a"
        assert shown["b"][0] == "b"
        shm = os.stat("/dev/shm")
        assert len({shown["a"][1], shown["b"][1], f"{shm.st_dev}:{shm.st_ino}"}) == 3
        for name, address in (("a", "10.77.0.1/24"), ("b", "10.77.0.2/24")):
            expected = sorted(["lo 127.0.0.1/8", f"eth0 {address}", *(f"{bridge} {at}" for bridge, at in BOGUS.items())])
            assert sorted(filter(None, shown[name][2:])) == expected
        processes = hosts.run("a", ["sh", "-c", "ls /proc | grep -c '^[0-9]'"], timeout=10)
        assert (int(processes.stdout) < 10) == pids
        connect = "import socket; socket.create_connection(('b', 7777), 3)"
        assert "refused" in hosts.run("a", [sys.executable, "-c", connect], timeout=10).stderr.lower()
        hosts.close_ports("b", 7000, 8000)
        assert "timed out" in hosts.run("a", [sys.executable, "-c", connect], timeout=10).stderr.lower()
        hosts.open_ports("b")
        assert "refused" in hosts.run("a", [sys.executable, "-c", connect], timeout=10).stderr.lower()
    assert sorted(os.listdir("/sys/class/net")) == before, "an interface was made or left in the machine's own network"


def test_an_rsh_passes_on_words_output_and_exit_code(two: Hosts) -> None:
    done = subprocess.run([two.rsh, "-x", "b", "hostname;", "cat; exit 7"], input=b"in", capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"b\nin", b"")
    assert subprocess.run([two.rsh, "c", "true"], capture_output=True, timeout=10, check=False).returncode == 255


@pytest.mark.parametrize("pids", [False, True])
def test_nothing_is_left_after_a_failure(pids: bool) -> None:
    """Not even a process that left its session."""
    with pytest.raises(ZeroDivisionError), Hosts("a", "b", pids=pids) as hosts:
        folder = Path(hosts.rsh).parent
        inodes = {os.stat(f"/proc/{host.pid}/ns/net").st_ino for host in hosts._hosts.values()}
        subprocess.run([hosts.rsh, "a", "setsid sleep 1000 >/dev/null 2>&1 &"], timeout=10, check=True)
        assert eventually(lambda: any("sleep 1000" in command for command in hosts.processes("a").values()), 5)
        assert namespaces_in_use(inodes) == inodes
        raise ZeroDivisionError
    assert eventually(lambda: not namespaces_in_use(inodes), 5)
    assert not folder.exists()


def test_nothing_is_left_when_the_test_is_killed() -> None:
    text = """if True:
        import os, sys, time
        from pympx.testing.hosts import Hosts
        with Hosts("a", "b", pids=True) as hosts:
            print(*(os.stat(f"/proc/{host.pid}/ns/net").st_ino for host in hosts._hosts.values()), flush=True)
            time.sleep(100)
    """
    process = subprocess.Popen([sys.executable, "-P", "-c", text], env=environment(), stdout=subprocess.PIPE)
    try:
        assert process.stdout
        inodes = set(map(int, process.stdout.readline().split()))
        assert len(inodes) == 3
        assert namespaces_in_use(inodes) == inodes
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert eventually(lambda: not namespaces_in_use(inodes), 5)


def test_what_fails_while_hosts_are_made_is_said() -> None:
    with pytest.raises(HostsError, match="host head: ip: "), Hosts("a", "a-name-that-is-too-long-for-an-interface"):
        pass
