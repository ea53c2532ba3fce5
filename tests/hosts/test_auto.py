"""`auto` over several hosts, without any setting: shm inside a host, tcp between, shown by counters; started in less than 3 s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_support import LAUNCHERS, LIMIT, ROOT, environment, launch, program

from pympx.testing.hosts import HEAD, Hosts

PLACEMENTS = {2: "a:2,b:2", 3: "a:2,b:1,c:1"}

COUNT = """
    import json, socket, sys
    import numpy as np
    import pympx
    from pympx import MPI
    comm = MPI.COMM_WORLD
    hosts = comm.allgather(socket.gethostname())
    before = pympx.counters()
    length = 50000
    for shift in range(1, comm.size):
        to, source = (comm.rank + shift) % comm.size, (comm.rank - shift) % comm.size
        got = np.empty(length, np.uint8)
        comm.Sendrecv(np.full(length, 16 * comm.rank + to, np.uint8), to, 1, got, source, 1)
        assert (got == 16 * source + comm.rank).all()
    after = pympx.counters()
    sent = {name: after[name]["sent_bytes"] - before.get(name, {"sent_bytes": 0})["sent_bytes"] for name in after if name != "self"}
    everybody = comm.gather(sent)
    if comm.rank == 0:
        print(json.dumps({"hosts": hosts, "sent": everybody, "length": length}))
"""


@pytest.fixture(params=[2, 3], ids=["2hosts", "3hosts"])
def some(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Hosts(*"abc"[: request.param]) as hosts:
        yield hosts


def check_counts(text: str, placement: str) -> None:
    """Assert that a rank's bytes went over shm to ranks of its host, and over tcp to the others."""
    found = json.loads(text)
    hosts = [name for item in placement.split(",") for name in item[0] * int(item[2:])]
    assert found["hosts"] == hosts
    for rank, sent in enumerate(found["sent"]):
        same = hosts.count(hosts[rank]) - 1
        for name, peers in (("shm", same), ("tcp", len(hosts) - 1 - same)):
            assert peers * found["length"] <= sent.get(name, 0) < (peers + 0.1) * found["length"], (rank, found)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_shm_inside_and_tcp_between(some: Hosts, launcher: str, tmp_path: Path) -> None:
    placement = PLACEMENTS[len(some.names)]
    begin = time.monotonic()
    done = launch(some, launcher, placement, 4, program(tmp_path, COUNT), folder=tmp_path)
    seconds = time.monotonic() - begin
    assert (done.returncode, done.stderr) == (0, "")
    check_counts(done.stdout, placement)
    assert seconds < 3, "bogus addresses cost time"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_hosts_with_processes_of_their_own(launcher: str, tmp_path: Path) -> None:
    """As the hosts of others would be: no process sees those of the other host."""
    with Hosts("a", "b", pids=True) as hosts:
        done = launch(hosts, launcher, "a:2,b:2", 4, program(tmp_path, COUNT), folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        check_counts(done.stdout, "a:2,b:2")


def test_shm_by_name_does_not_leave_the_host(two: Hosts, tmp_path: Path) -> None:
    """Though the hosts of this test share a kernel and see each other's processes."""
    done = launch(two, "run", "a,b", 2, program(tmp_path, COUNT), folder=tmp_path, PYMPX_TRANSPORT="shm")
    assert done.returncode == 1
    assert "PYMPX_TRANSPORT=shm cannot serve" in done.stderr
    assert "hostname of its own" in done.stderr


def test_the_report_tells_hosts_and_transports(two: Hosts, tmp_path: Path) -> None:
    done = launch(two, "run", "a:2,b:2", 4, program(tmp_path, COUNT), folder=tmp_path, PYMPX_REPORT="1")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("a: rank 0-1", "b: rank 2-3", "0-1 <-> 0-1: shm", "0-1 <-> 2-3: tcp", "2-3 <-> 2-3: shm"):
        assert line in done.stdout


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_hello(some: Hosts, launcher: str, tmp_path: Path) -> None:
    text = """
    import socket
    from pympx import MPI
    print(f"hello from {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} on {socket.gethostname()} alias {MPI.Get_processor_name()}")
    """
    done = launch(some, launcher, PLACEMENTS[len(some.names)], 4, program(tmp_path, text), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    where = [item[0] for item in PLACEMENTS[len(some.names)].split(",") for _ in range(int(item[2:]))]
    assert sorted(done.stdout.splitlines()) == [f"hello from {n} of 4 on {host} alias {host}" for n, host in enumerate(where)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_heat(some: Hosts, launcher: str, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    words = [sys.executable, str(ROOT / "apps/heat/heat.py"), "--size", "31", "--json", str(record)]
    done = launch(some, launcher, PLACEMENTS[len(some.names)], 4, words, folder=tmp_path, OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = json.loads(record.read_text())
    assert found["verified"] is True
    assert found["findings"] == []
    assert found["counters"]["shm"]["sent_bytes"] > 0
    assert found["counters"]["tcp"]["sent_bytes"] > 0


@pytest.mark.parametrize(("some", "launcher"), [(2, "hydra"), (3, "run")], indirect=["some"], ids=["2hosts-hydra", "3hosts-run"])
def test_point_to_point_tests(some: Hosts, launcher: str, tmp_path: Path) -> None:
    """tests/api/test_p2p.py, what it has for 3 and 4 ranks, on several hosts."""
    names = ",".join(some.names)
    ours = {"PYMPX_HOSTS": names, "PYMPX_RSH": some.rsh}
    hydras = {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": some.rsh, "HYDRA_HOST_FILE": str(tmp_path / "machines")}
    (tmp_path / "machines").write_text("\n".join(some.names) + "\n")
    pytest_script = str(Path(sys.executable).with_name("pytest"))
    option = {"hydra": "mpiexec", "run": "run"}[launcher]
    words = [pytest_script, "-q", "-p", "no:cacheprovider", "-k", "n3 or n4"]
    words += ["--ranks-launcher", option, "--ranks-batch", "50", "--transports", "auto"]
    os.chdir(ROOT)
    done = subprocess.run(
        some.inside(HEAD, [*words, str(ROOT / "tests/api/test_p2p.py")]),
        env=environment(**(ours if launcher == "run" else hydras)), capture_output=True, text=True, timeout=3 * LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert " passed" in done.stdout
